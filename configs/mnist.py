"""Learned guidance on a published model: a class-conditional rectified-flow transformer (209k parameters) on MNIST.

    python -m experiments.main --config=configs/mnist.py --workdir=runs/mnist

The three paths of `problem` say where the weights of the model, those of the LeNet that gives the metrics' features
and the four MNIST files are; none of them is part of this repository. The published sweep (50 Euler steps: Frechet
distance 3.15 at omega = -1, 0.29 at omega = 0, 0.84 at omega = 1) is reproduced by tests/test_mnist.py. Expect 0.23
(10 steps) and 0.22 (20 steps) for the rollout, 0.24 and 0.23 for the best interval, 0.25 and 0.24 for the best
constant, 0.17 for true data. An hour and a half on 2 cores, half of it at 50 steps.
"""

from ml_collections import config_dict

PRESETS = {}


def get_config(preset: str = "") -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.job = "all"
    config.seed = 0
    config.seeds = 5
    config.figures = True

    config.problem = problem = config_dict.ConfigDict()
    problem.name = "mnist"
    problem.model = "../shared/data/weights/mnist_cfg_flow_vit.npz"
    problem.classifier = "../shared/data/weights/mnist_lenet5.npz"
    problem.data = "../shared/data/mnist"

    config.learn = learn = config_dict.ConfigDict()
    learn.objectives = ("self_consistency", "l2", "rollout")
    learn.iterations = 200
    learn.batch = 64
    learn.particles = 4
    learn.beta = 1.75
    learn.lambda_ = 1.0
    learn.delta = 0.1
    learn.s_min = 0.01
    learn.zeta = 0.01
    learn.churn = 1.0
    learn.learning_rate = 1e-3
    learn.width = 64
    learn.depth = 6
    learn.embedding = 32
    learn.gammas = (0.0,)
    learn.rollout_iterations = 150
    learn.rollout_batch = 16
    learn.rollout_real = 256
    learn.remat = "steps"
    learn.rollout_learning_rate = 5e-3
    learn.checkpoint_every = 20

    config.eval = evaluation = config_dict.ConfigDict()
    evaluation.steps = (10, 20, 50)
    evaluation.sweep_seeds = 1
    evaluation.samples = 2000
    evaluation.omegas = (0.0, 0.1, 0.2, 0.35, 0.6)
    evaluation.intervals = ((0.0, 0.5), (0.0, 0.7), (0.2, 0.6), (0.3, 0.8))
    evaluation.clamp = (1.0,)
    evaluation.sampler = "ddim"
    evaluation.churn = 0.0

    return config

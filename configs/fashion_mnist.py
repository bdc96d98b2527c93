"""Learned guidance on Fashion-MNIST: a small diffusion transformer that is trained here, on real images.

    python -m experiments.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

The 60,000 training images are split in three: 60 % train the denoiser and the weights, 25 % the classifier whose
features the metrics use, the rest is held out and is the reference for every number. `problem.source` is the folder of
the four idx files, or fashion_mnist after `python -m experiments.prepare fashion_mnist`. The preset `under` stops the
training after a tenth of its updates.
"""

from ml_collections import config_dict

PRESETS = {
    "under": {"base.steps": 600},
    "smoke": {
        "seeds": 1, "base.steps": 20, "base.batch": 16, "base.pictures": 1, "base.keep": (10,), "problem.images": 600,
        "problem.classifier_steps": 30, "learn.iterations": 4, "learn.rollout_iterations": 2, "learn.batch": 8,
        "learn.rollout_batch": 2, "learn.rollout_real": 8, "learn.width": 16, "learn.depth": 1, "learn.embedding": 8,
        "eval.steps": (3,), "eval.samples": 40, "eval.omegas": (0.0, 1.0), "eval.intervals": ((0.0, 0.5),),
    },
}  # fmt: skip


def get_config(preset: str = "") -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.job = "all"
    config.seed = 0
    config.seeds = 5
    config.figures = True

    config.problem = problem = config_dict.ConfigDict()
    problem.name = "labelled"
    problem.source = "../shared/data/fashion_mnist"
    problem.split = "train"
    problem.size = 28
    problem.images = 0
    problem.schedule = "rectified_flow"
    problem.train_fraction = 0.6
    problem.classifier_fraction = 0.25
    problem.classifier_steps = 2000

    config.base = base = config_dict.ConfigDict()
    base.network = "dit"
    base.steps = 6000
    base.batch = 128
    base.learning_rate = 1e-3
    base.width = 64
    base.depth = 4
    base.heads = 4
    base.patch = 4
    base.precision = "float32"
    base.remat = False
    base.condition_dropout = 0.1
    base.guidance_matched = 0.0
    base.accumulate = 1
    base.weighting = "prediction"
    base.averages = (0.1,)
    base.keep = (600,)
    base.pictures = 4

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
    learn.rollout_iterations = 100
    learn.rollout_batch = 16
    learn.rollout_real = 128
    learn.remat = "steps"
    learn.rollout_learning_rate = 5e-3
    learn.checkpoint_every = 20

    config.eval = evaluation = config_dict.ConfigDict()
    evaluation.steps = (10, 25, 50)
    evaluation.sweep_seeds = 1
    evaluation.samples = 2000
    evaluation.omegas = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
    evaluation.intervals = ((0.0, 0.5), (0.0, 0.8), (0.2, 0.8), (0.4, 1.0))
    evaluation.clamp = (1.0,)
    evaluation.sampler = "ddim"
    evaluation.churn = 0.0

    config.update_from_flattened_dict(PRESETS.get(preset, {}))
    return config

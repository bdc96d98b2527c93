"""Learned guidance on real data: the 1,797 handwritten digits (8 x 8 pixels) that ship inside scikit-learn.

    python -m experiments.main --config=configs/digits.py --workdir=runs/digits

The digits are split in three: one part trains the denoiser and the weights, one trains the classifier whose features
the metrics use, the rest is held out and is the reference for every number. Two disjoint halves of real digits give
the floor. Expect a feature-space Frechet distance of 1.23, 1.08 and 1.02 for the rollout at 10, 20 and 50 steps; of
1.29, 1.11 and 1.05 for the best interval; of 0.70 for true digits.
"""

from ml_collections import config_dict

PRESETS = {}


def get_config(preset: str = "") -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.job = "all"
    config.seed = 0
    config.seeds = 3
    config.figures = True

    config.problem = problem = config_dict.ConfigDict()
    problem.name = "digits"
    problem.schedule = "rectified_flow"
    problem.train_fraction = 0.5
    problem.classifier_fraction = 0.25
    problem.classifier_steps = 2000

    config.base = base = config_dict.ConfigDict()
    base.steps = 3000
    base.batch = 256
    base.learning_rate = 1e-3
    base.width = 256
    base.depth = 4
    base.condition_dropout = 0.1
    base.guidance_matched = 0.0
    base.accumulate = 1
    base.weighting = "prediction"
    base.averages = ()
    base.keep = ()
    base.pictures = 0

    config.learn = learn = config_dict.ConfigDict()
    learn.objectives = ("self_consistency", "l2", "rollout")
    learn.iterations = 500
    learn.batch = 128
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
    learn.rollout_iterations = 200
    learn.rollout_batch = 32
    learn.rollout_real = 128
    learn.remat = "none"
    learn.rollout_learning_rate = 5e-3
    learn.checkpoint_every = 200

    config.eval = evaluation = config_dict.ConfigDict()
    evaluation.steps = (10, 20, 50)
    evaluation.sweep_seeds = 5
    evaluation.samples = 2000
    evaluation.omegas = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
    evaluation.intervals = ((0.0, 0.5), (0.0, 0.8), (0.2, 0.8), (0.4, 1.0))
    evaluation.clamp = (1.0,)
    evaluation.sampler = "ddim"
    evaluation.churn = 0.0

    return config

r"""Learned guidance on Fashion-MNIST: a small diffusion transformer that is trained here, on real images.

    python -m experiments.tools.prepare fashion_mnist
    python -m experiments.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist \
        --config.problem.source=fashion_mnist

The 60,000 training images are split in three: 60 % train the denoiser and the weights, 25 % train the classifier whose
features the metrics use; the rest is held out and is the reference for every number. `problem.source` may also be the
folder of the four idx files: the default is one in a folder `shared` beside this repository. docs/fashion_mnist.md has
the results.

Presets: under, the training stops after a tenth of its updates; unet, the same with a small U-Net; smoke, the whole
chain in a minute or two.
"""

from configs import _common as common

APG = "apg(cap=2.5)"  # for a model of this size
UNDER = {"base.steps": 1500, "base.keep": (300,), "eval.weak": 300}
PRESETS = {
    "under": UNDER,
    "unet": UNDER
    | {
        "base.network": "unet", "base.width": 16, "base.depth": 1, "learn.objectives": ("rollout",),
        "learn.rules": ("cfg", "autoguided"), "eval.steps": (10,),
    },
    "smoke": {
        "seeds": 1, "base.steps": 20, "base.batch": 16, "base.pictures": 1, "base.keep": (10,), "eval.weak": 10,
        "problem.images": 600, "problem.classifier_steps": 30, "learn.iterations": 4, "learn.rollout_iterations": 2,
        "learn.batch": 8, "learn.rules": ("cfg", APG, "autoguided"), "learn.rollout_batch": 2,
        "learn.rollout_real": 8, "learn.width": 16, "learn.depth": 1, "learn.embedding": 8, "eval.steps": (3,),
        "eval.samples": 40, "eval.omegas": (0.0, 1.0), "eval.intervals": ((0.0, 0.5),),
    },
}  # fmt: skip


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=5,
        problem={
            "name": "labelled",
            "source": "../shared/data/fashion_mnist",
            "size": 28,
            "schedule": "rectified_flow",
            "train_fraction": 0.6,
            "classifier_fraction": 0.25,
        },
        base={
            "network": "dit",
            "steps": 15000,
            "batch": 128,
            "width": 64,
            "depth": 4,
            "heads": 4,
            "patch": 7,
            "precision": "float32",
            "remat": False,
            "averages": (0.1,),
            "keep": (3000,),
            "pictures": 4,
        },
        learn={
            "objectives": ("self_consistency", "rollout"),
            "rules": ("cfg", "angle_domain", APG, "autoguided"),
            "iterations": 1000,
            "batch": 64,
            "rollout_iterations": 40,
            "rollout_batch": 16,
            "rollout_real": 128,
            "rollout_learning_rate": 1e-2,
            "remat": "steps",
            "checkpoint_every": 20,
        },
        eval={
            "steps": (10, 25, 50),
            "sweep_seeds": 1,
            "samples": 500,
            "omegas": (0.0, 0.1, 0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0),
            "intervals": ((0.0, 0.5), (0.0, 0.8), (0.2, 0.8)),
            "others": ("unguided_twice", "autoguided", "triangle", "angle_domain", APG),
            "weak": 3000,
        },
    )

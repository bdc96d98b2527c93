"""Learned guidance on ImageNet at 64 x 64 as in arXiv 2510.00815: a class-conditional U-Net that is trained here.

    python -m experiments.tools.prepare imagenet64
    python -m experiments.main --config=configs/imagenet64.py --workdir=runs/imagenet64 --mesh=data:8
    python -m experiments.main --config=configs/imagenet64.py:smoke --workdir=runs/imagenet64_smoke

The paper's numbers (its own U-Net of about 260 million parameters, 100 steps, 50,000 samples):

    unguided                                omega = 0               FID 4.46   IS 43.52
    constant                                omega = 0.25            FID 2.40   IS 66.72
    clamp-linear                                                    FID 2.24
    limited interval                        0.95 on t in [0.2, 0.8] FID 2.11   IS 71.60
    learned by self-consistency             omega(s, t, c)          FID 1.99   IS 73.62

Batch 256, m = 4, beta 1.75, lambda 1, 100k updates, churn 1 in training and 0 in sampling are the paper's; delta,
S_min and zeta are searched there and not printed. The U-Net is ADM's for this set, 296 million parameters with a null
class, trained as a rectified flow; architecture, schedule, length and learning rates are our choice, as the paper does
not print them (ADM's own weights know no null class, so that nothing could be guided). docs/walkthrough.md says what
it costs and where the files come from. Preset smoke: the whole chain with a small U-Net on random pictures of the same
shape, ten classes: 130 s of CPU time with an empty compilation cache.
"""

from configs import _common as common

PRESETS = {"smoke": common.SMOKE | common.SMOKE_TRAINED}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=1,
        problem=common.LARGE_IMAGES
        | {
            "source": "imagenet64",
            "reference": "references/VIRTUAL_imagenet64_labeled.npz",
            "train_fraction": 0.9,
            "classifier_fraction": 0.05,
        },
        base=common.LARGE_UNET | {"steps": 500_000, "batch": 1024},
        learn=common.PAPER,
        eval=common.PAPER_SAMPLES | {"batch": 500, "omegas": (0.0, 0.25, 0.5, 0.95), "intervals": ((0.2, 0.8),)},
    )

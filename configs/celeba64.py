"""Learned guidance on CelebA at 64 x 64 as in arXiv 2510.00815: a U-Net, conditioned on an attribute, trained here.

    python -m experiments.tools.prepare celeb_a
    python -m experiments.main --config=configs/celeba64.py --workdir=runs/celeba64 --mesh=data:8
    python -m experiments.main --config=configs/celeba64.py:smoke --workdir=runs/celeba64_smoke

The paper's numbers (100 steps, 50,000 samples): unguided FID 2.44, IS 2.94; interval, omega = 0.7 on t in [0, 0.8],
FID 2.37, IS 2.96; learned by self-consistency FID 2.10, IS 2.98. A row of a constant, and what it conditions on, were
not found: here it is the attribute Male, and the two classes are sampled equally often. The reference statistics are
those of held-out images unless problem.reference names a file that `python -m experiments.tools.fid ref` wrote.
docs/weights.md says where the weights of Inception come from. Batch 256, m = 4, beta 1.75, lambda 1, 100k updates,
churn 1 in training and 0 in sampling are the paper's; the rest is our choice. Preset smoke: the whole chain with a
small U-Net on random pictures of the same shape, ten classes: 130 s of CPU time with an empty compilation cache.
"""

from configs import _common as common

PRESETS = {"smoke": common.SMOKE | common.SMOKE_TRAINED}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=1,
        problem=common.LARGE_IMAGES
        | {"source": "celeb_a/Male", "reference": "", "train_fraction": 0.5, "classifier_fraction": 0.25},
        base=common.LARGE_UNET | {"steps": 300_000, "batch": 256},
        learn=common.PAPER,
        eval=common.PAPER_SAMPLES | {"batch": 500, "omegas": (0.0, 0.25, 0.7), "intervals": ((0.0, 0.8), (0.2, 0.8))},
    )

"""Learned guidance on real data: the 1,797 handwritten digits (8 x 8 pixels) that ship inside scikit-learn.

    python -m experiments.main --config=configs/digits.py --workdir=runs/digits

The digits are split in three: one part trains the denoiser and the weights, one trains the classifier whose features
the metrics use; the rest is held out and is the reference for every number. Two disjoint halves of real digits give
the floor. Expect a feature-space Frechet distance of 1.23, 1.08 and 1.02 for the rollout at 10, 20 and 50 steps; of
1.29, 1.11 and 1.04 for the best interval; of 0.70 for true digits.
"""

from configs import _common as common

PRESETS = {}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=3,
        problem={
            "name": "digits",
            "schedule": "rectified_flow",
            "train_fraction": 0.5,
            "classifier_fraction": 0.25,
        },
        base={"steps": 3000, "batch": 256, "width": 256, "depth": 4},
        learn={"iterations": 500, "batch": 128, "rollout_iterations": 200, "rollout_batch": 32, "rollout_real": 128},
        eval={
            "steps": (10, 20, 50),
            "omegas": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
            "intervals": ((0.0, 0.5), (0.0, 0.8), (0.2, 0.8), (0.4, 1.0)),
        },
    )

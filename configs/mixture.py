"""Learned guidance on a Gaussian mixture whose truth is known in closed form.

    python -m experiments.main --config=configs/mixture.py --workdir=runs/mixture
    python -m experiments.main --config=configs/mixture.py:attenuated --workdir=runs/attenuated

Presets, and what to expect of the learned weights (numbers: the table of README.md):
  exact             the denoiser has no error: the rollout stays near 0 and does no harm, self-consistency does
  attenuated        the conditional branch is weakened by rho (problem.attenuation): omega = rho / (1 - rho) repairs it
                    exactly, the rollout almost; the one-step objectives fall short
  under (default)   a small denoiser trained for too short a time: the rollout beats the best constant and the best
                    interval, the one-step objectives beat neither
  record            the same at 10, 20 and 100 steps against a dense grid, 5 seeds (half an hour on 2 cores)
  trained           the same denoiser trained to the end: little is left to gain
  reward            attenuated (rho = 0.3), and the target is the data tilted by a reward: docs/learning.md
  high_dimensional  64 dimensions, 10 classes, under-trained
"""

from configs import _common as common

PRESETS = {
    "exact": {
        "problem.error": "none",
        "seeds": 5,
        "learn.objectives": ("self_consistency", "per_condition", "rollout"),
        "learn.iterations": 500,
        "eval.steps": (100,),
        "eval.samples": 4000,
        "eval.omegas": (0.0, 0.1, 0.2, 0.5, 1.0),
        "eval.intervals": ((0.0, 0.5), (0.2, 0.8)),
    },
    "attenuated": {
        "problem.error": "attenuated",
        "seeds": 5,
        "learn.iterations": 500,
        "learn.rollout_iterations": 300,
        "eval.steps": (20, 100),
        "eval.samples": 4000,
        "eval.omegas": (0.0, 0.1, 0.2, 0.43, 0.7, 1.0, 1.5, 2.5),
        "eval.intervals": ((0.0, 0.5), (0.2, 0.8)),
    },
    "under": {"problem.error": "under"},
    "record": {
        "problem.error": "under",
        "seeds": 5,
        "learn.iterations": 500,
        "learn.rollout_iterations": 300,
        "eval.steps": (10, 20, 100),
        "eval.samples": 4000,
        "eval.omegas": (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 13.0),
        "eval.intervals": tuple(
            (lo, hi) for lo in (0.0, 0.2, 0.3, 0.4, 0.5) for hi in (0.5, 0.6, 0.7, 0.8, 1.0) if lo < hi
        ),
    },
    "trained": {"problem.error": "trained", "base.steps": 20000, "base.width": 256},
    "reward": {
        "problem.error": "attenuated",
        "problem.attenuation": 0.3,
        "problem.reward": "linear_quadratic((1, 0), 0.2)",
        "seeds": 5,
        "learn.objectives": ("self_consistency", "reward_only", "rollout"),
        "learn.gammas": (0.0, 0.01, 0.03, 0.1, 0.3, 1.0),
        "learn.rollout_iterations": 300,
        "eval.steps": (20,),
        "eval.samples": 4000,
    },
    "high_dimensional": {
        "problem.error": "under",
        "problem.dimension": 64,
        "problem.classes": 10,
        "problem.modes": 2,
        "problem.layout": "random",
        "problem.radius": 6.0,
        "seeds": 5,
        "base.width": 128,
        "base.steps": 600,
        "learn.rollout_batch": 48,
        "learn.rollout_real": 192,
        "eval.samples": 4000,
        "eval.sweep_seeds": 2,
        "eval.omegas": (0.0, 0.1, 0.25, 0.5, 1.0, 2.0),
        "eval.intervals": ((0.0, 0.5), (0.0, 0.8), (0.2, 0.8), (0.5, 0.9)),
    },
}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=3,
        problem={
            "name": "mixture",
            "dimension": 2,
            "classes": 4,
            "modes": 2,
            "layout": "ring",
            "radius": 3.0,
            "deviation": 0.5,
            "schedule": "rectified_flow",
            "error": "under",
            "attenuation": 0.6,
        },
        base={"steps": 200, "batch": 256, "width": 64, "depth": 3},
        learn={"iterations": 300, "batch": 256, "rollout_iterations": 120, "rollout_batch": 128, "rollout_real": 512},
        eval={
            "steps": (10, 20),
            "omegas": (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.5, 6.5),
            "intervals": ((0.0, 0.5), (0.0, 0.8), (0.2, 0.6), (0.4, 0.7)),
        },
    )

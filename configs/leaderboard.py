"""The leaderboard: every rule and weight on a dozen mixtures that each isolate one effect, at equal NFE.

    python -m experiments.main --config=configs/leaderboard.py --workdir=runs/mixtures

The job writes leaderboard.md, leaderboard.csv and pictures; docs/leaderboard.md is such a page, of the preset all.
Expect a second-order sampler to gain more than any rule, and learned weights to lead where no constant repairs the
model. 13 minutes on 2 cores.
"""

from configs import _common as common
from experiments.config.expressions import COMBINATIONS

# rules that compete with other knobs than the library's: those for models of this size
KNOBS = {
    "apg": "apg(cap=2.5)",
    "gap_normalised": "gap_normalised(gamma=0.5)",
    "magnitude_aware": "magnitude_aware(sensitivity=2)",
}
PRESETS = {
    "smoke": {"nfe": (10,), "samples": 32, "seeds": 2, "tuning_seeds": 1, "updates": 2, "base_steps": (5, 10)},
    "images": {"columns": ("mnist", "pair")},
    "all": {"columns": ("mixtures", "mnist", "pair")},
}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        columns=("mixtures",),
        problem={
            "name": "leaderboard",
            "model": "../shared/data/weights/mnist_cfg_flow_vit.npz",
            "classifier": "../shared/data/weights/mnist_lenet5.npz",
            "data": "../shared/data/mnist",
            "epochs": "../shared/data/weights",
        },
        seeds=4,
        tuning_seeds=2,
        samples=256,
        nfe=(10, 20, 50),
        image_nfe=(10, 20),
        omegas=(0.0, 0.15, 0.3, 0.6, 1.0, 1.5, 2.5, 4.0),
        rules=tuple(KNOBS.get(name, name) for name in COMBINATIONS),
        weights=(
            "interval(0.3, 0.8)", "interval(0, 0.6)", "clamp_linear(1)", "triangle", "ramp(cosine)",
            "ramp(inverse_linear)", "step_up", "exponential(-2)",
        ),
        learned=("cfg", "angle_domain", KNOBS["apg"], "cfg_plus_plus"),
        updates=300,
        base_steps=(300, 5000),
    )  # fmt: skip

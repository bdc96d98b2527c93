"""Learned guidance on a published model: a class-conditional rectified-flow transformer (209k parameters) on MNIST.

    python -m experiments.main --config=configs/mnist.py --workdir=runs/mnist

problem.model names the weights of the model, problem.classifier those of the LeNet that gives the metrics' features,
and problem.data the folder of the four MNIST files. None of them is part of this repository: the defaults are in a
folder `shared` beside it. The published sweep (50 Euler steps: Frechet distance 3.15 at omega = -1, 0.29 at omega = 0,
0.84 at omega = 1) is reproduced by tests/experiments/problems/test_mnist.py. Expect 0.23 (10 steps) and 0.22 (20
steps) for the rollout, 0.24 and 0.23 for the best interval, 0.25 and 0.24 for the best constant, 0.17 for true data.
An hour and a half on 2 cores, half of it at 50 steps.
"""

from configs import _common as common

PRESETS = {}


def get_config(preset: str = ""):
    return common.config(
        PRESETS.get(preset, {}),
        seeds=5,
        problem={
            "name": "mnist",
            "model": "../shared/data/weights/mnist_cfg_flow_vit.npz",
            "classifier": "../shared/data/weights/mnist_lenet5.npz",
            "data": "../shared/data/mnist",
        },
        learn={
            "iterations": 200,
            "batch": 64,
            "rollout_iterations": 150,
            "rollout_batch": 16,
            "rollout_real": 256,
            "remat": "steps",
            "checkpoint_every": 20,
        },
        eval={
            "steps": (10, 20, 50),
            "sweep_seeds": 1,
            "omegas": (0.0, 0.1, 0.2, 0.35, 0.6),
            "intervals": ((0.0, 0.5), (0.0, 0.7), (0.2, 0.6), (0.3, 0.8)),
        },
    )

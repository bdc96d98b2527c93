"""Real data that trains anywhere: the 1,797 handwritten 8x8 digits inside scikit-learn."""

from experiments import data
from experiments.problems.images import labelled
from experiments.problems.interface import Problem
from guidance.nets.mlp import DenoiserMLP


def build(config, folder) -> Problem:
    """Returns the problem of the digits, with a small MLP that is trained on them."""
    net = DenoiserMLP(10, config.base.width, config.base.depth)
    return labelled.assemble(config, folder, data.digits(), net, "velocity", f"digits, {config.base.steps} updates")

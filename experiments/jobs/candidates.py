"""The hand-made competitors of the job `evaluate`: families with one or two knobs, and what samples with each."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from experiments.families import AUTOGUIDED, RULES, WEIGHTS
from guidance import weights
from guidance.types import Array, Weight

TWICE = "unguided, 2 x steps"  # the NFE of guided sampling
UNGUIDED = ("unguided", TWICE)
FAMILIES = tuple(dict.fromkeys(("constant", "interval", "clamp_linear", AUTOGUIDED, *WEIGHTS, *RULES)))  # once each


class Candidate(NamedTuple):
    """A weight to evaluate: the family it belongs to, its knobs, its words, the weight on a grid, the rule that it
    enters, and how many times the steps it takes."""

    method: str
    settings: dict
    words: str
    weight: Callable[[Array], Weight]  # of the grid
    rule: str = "cfg"
    longer: int = 1


def candidates(config) -> list[Candidate]:
    """Unguided, constants, intervals, clamped ramps, and the families of eval.others, on the grids of the config."""
    found = [fixed("unguided", {}, "omega = 0", weights.constant(0.0))]
    omegas = [omega for omega in config.eval.omegas if omega != 0]
    for omega in omegas:
        found.append(fixed("constant", {"omega": omega}, f"omega = {omega:g}", weights.constant(omega)))
    for lo, hi in config.eval.intervals:
        for omega in omegas:
            knobs, words = {"omega": omega, "lo": lo, "hi": hi}, f"omega = {omega:g} on t in ({lo:g}, {hi:g}]"
            found.append(fixed("interval", knobs, words, weights.interval(omega, lo, hi)))
    for floor in config.eval.clamp:
        for omega in omegas:
            words = f"scale = max({floor:g}, {2 * (1 + omega):g} (1 - t))"
            knobs = {"omega": omega, "floor": floor}
            found.append(fixed("clamp_linear", knobs, words, weights.clamp_linear(omega, floor)))
    for name in config.eval.others:
        found += _other(name, omegas)
    return found


def fixed(method, settings, words, weight: Weight, **more) -> Candidate:
    """A candidate whose weight is the same on every grid."""
    return Candidate(method, settings, words, functools.partial(_same, weight), **more)


def _same(weight, grid):
    del grid
    return weight


def _other(name: str, omegas) -> list[Candidate]:
    if name == "unguided_twice":
        return [fixed(TWICE, {}, "omega = 0", weights.constant(0.0), longer=2)]
    if name in WEIGHTS:
        schedule = WEIGHTS[name]
        return [
            Candidate(name, {"omega": omega}, f"omega = {omega:g}", functools.partial(_scheduled, schedule, omega))
            for omega in omegas
        ]
    return [
        fixed(name, {"omega": omega}, f"omega = {omega:g}", weights.constant(omega), rule=name) for omega in omegas
    ]


def _scheduled(schedule, omega, grid):
    return schedule(grid, omega)

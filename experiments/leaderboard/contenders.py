"""Who competes: rules, weights and samplers, each with one knob that is tuned over equally many values."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.config.expressions import COMBINATIONS, SHAPES, parse, shortened
from experiments.leaderboard.problems import SCHEDULE
from experiments.problems import construct
from guidance import guides, rules, sampling, weights
from guidance.types import Array, Guide, Rule, Solver, Step, Weight


class Contender(NamedTuple):
    """A guide for each value of its knob.

    name       what people see
    identity   what tells it from every other: its calls, with all knobs spelled
    structure  what compiles together: contenders of one structure differ in tables of omega only
    """

    name: str
    identity: str
    structure: str
    guide: Callable[[Weight, int], Guide]  # (weight, null label) -> guide
    weight: Callable[[Array, float], Weight]  # (grid, knob) -> weight
    knobs: tuple[float, ...]
    evaluations: int  # of each step, where nothing is skipped
    step: Step | Solver = sampling.ddim()
    saved: int = 0  # evaluations that the last step does without
    knob: str = "omega"  # what the value of the weight means to the rule

    def steps(self, nfe: int) -> int:
        """Returns how many steps a budget pays for, at least one."""
        return max(1, (nfe + self.saved) // self.evaluations)

    def table(self, grid: Array, longest: int) -> np.ndarray:
        """Returns omega for every knob and step, [knobs, longest]; steps beyond the grid have 0."""
        found = np.zeros((len(self.knobs), longest), np.float32)
        t, s = jnp.asarray(grid[:-1]), jnp.asarray(grid[1:])
        for i, knob in enumerate(self.knobs):
            found[i, : len(t)] = self.weight(grid, knob)(t=t, s=s, cond=jnp.zeros(len(t), jnp.int32))
        return found


def by_rule(rule: Rule) -> Callable[[Weight, int], Guide]:
    """Returns a function (weight, null) -> the guide of a rule. It skips no evaluation, so its NFE is known."""
    return lambda weight, null: guides.guided(rule, weight, null, skip=False)


def _constant(grid, omega):
    del grid
    return weights.constant(omega)


def unguided(weight, null):
    """Returns the guide that takes no weight."""
    del weight, null
    return guides.unguided()


# name: (solver, evaluations of CFG a step, evaluations that the last step saves)
SAMPLERS: dict[str, tuple[Step | Solver, int, int]] = {
    "DDPM": (sampling.ddpm(), 2, 0),
    "Heun": (sampling.heun(), 4, 2),
    "DPM-Solver++ 2M": (sampling.dpmpp_2m(), 2, 0),
    "UniPC": (sampling.unipc(), 2, 0),
}


def contenders(config) -> list[Contender]:
    """Returns all contenders. A knob has the values of config.omegas or, where it is a lambda, as many in (0, 1]."""
    omegas = tuple(config.omegas)
    found = [Contender("unguided", "unguided", "unguided", unguided, _constant, (0.0,), 1)]
    for text in config.rules:
        knob, guide = weight_of(text), by_rule(construct.rule(text))
        knobs = tuple(float(a) for a in np.linspace(0.15, 1.0, len(omegas))) if knob != "omega" else omegas
        found.append(Contender(shortened(text, COMBINATIONS), text, text, guide, _constant, knobs, 2, knob=knob))
    for text in config.weights:
        name, shape = f"cfg, {shortened(text, SHAPES)}", functools.partial(_shaped, text)
        found.append(Contender(name, f"cfg, {text}", "cfg", by_rule(rules.cfg), shape, omegas, 2))
    for name, (step, evaluations, saved) in SAMPLERS.items():
        title, guide = f"cfg, {name}", by_rule(rules.cfg)
        found.append(Contender(title, title, name, guide, _constant, omegas, evaluations, step, saved))
    found.append(Contender("rectified", "rectified", "rectified", guides.rectified, _constant, omegas, 3))
    return found


def weight_of(text: str) -> str:
    """Returns what the value of the weight means to a rule: omega, or the name that the rule gives it."""
    member = COMBINATIONS[parse("rule", text, COMBINATIONS)[0].name]
    return member.weight.name if member.weight else "omega"


def _shaped(text, grid, omega):
    return construct.swept(text, grid, SCHEDULE, omega)


# the work of one thread, in order: (the settings in the ledger, a function that returns the rows)
Unit = list[tuple[dict, Callable[[], list[dict]]]]


def units(
    entrants: list[Contender], problem: str, nfes, measure: Callable[[Contender, int], list[dict]]
) -> list[Unit]:
    """Returns one unit for each structure, so that it is compiled once; `measure(contender, nfe)` gives the rows."""
    found: dict[str, Unit] = {}
    for entrant in entrants:
        found.setdefault(entrant.structure, []).extend(
            ({"problem": problem, "contender": entrant.identity, "nfe": nfe}, functools.partial(measure, entrant, nfe))
            for nfe in nfes
        )
    return list(found.values())

"""The weights that the job `evaluate` compares: hand-made families with one or two knobs, and learned ones."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.config.expressions import (
    AUTOGUIDED,
    COMBINATIONS,
    SWEPT,
    TWICE,
    WEIGHTS,
    parse,
    shortened,
    spelled,
    written,
)
from experiments.problems import construct
from guidance.types import Array, Schedule, Weight

UNGUIDED = {"unguided": "unguided", TWICE: "unguided, 2 x steps"}  # family: what people see


class Candidate(NamedTuple):
    """A weight to evaluate.

    family         among whose members the best is chosen
    method, words  what people see
    settings       its knobs
    weight         grid -> the weight
    called, rule   the call of the weight (of a learned one, the name of its task) and of the rule that it enters, with
                   all knobs spelled
    longer         how many times as many steps it takes
    """

    family: str
    method: str
    settings: dict
    words: str
    weight: Callable[[Array], Weight]
    called: str
    rule: str = "cfg"
    longer: int = 1
    learned: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the fields that distinguish this weight from every other, without its descriptions for people."""
        kind = "learned" if self.learned else "weight"
        return {"family": self.family, kind: self.called, "rule": self.rule, "longer": self.longer}


def candidates(config, schedule: Schedule) -> list[Candidate]:
    """Returns the hand-made weights of a config: unguided, constants, intervals, clamped ramps, and eval.others."""
    found = [_fixed("unguided", {"family": "unguided"}, "omega = 0", "constant(0)")]
    omegas = [omega for omega in config.eval.omegas if omega != 0]
    for omega in omegas:
        found.append(_fixed("constant", {"omega": omega}, f"omega = {omega:g}", f"constant({written(omega)})"))
    for lo, hi in config.eval.intervals:
        for omega in omegas:
            knobs, words = {"omega": omega, "lo": lo, "hi": hi}, f"omega = {omega:g} on t in ({lo:g}, {hi:g}]"
            found.append(_fixed("interval", knobs, words, f"interval({', '.join(map(written, knobs.values()))})"))
    for floor in config.eval.clamp:
        for omega in omegas:
            words = f"scale = max({floor:g}, {2 * (1 + omega):g} (1 - t))"
            knobs = {"omega": omega, "floor": floor}
            found.append(_fixed("clamp_linear", knobs, words, f"clamp_linear({written(omega)}, {written(floor)})"))
    for text in config.eval.others:
        found += _other(text, omegas, schedule)
    return found


def learned(task, weight: Weight) -> Candidate:
    """Returns the weight that a task of the job `learn` has learned, as a candidate."""
    settings, on_grid = {"family": task.family, "line": task.line}, functools.partial(_same, weight)
    return Candidate(task.family, task.name, settings, "omega(s, t, c)", on_grid, task.name, task.rule, learned=True)


def _fixed(family: str, settings, words, text: str, rule: str = "cfg", longer: int = 1, method: str = "") -> Candidate:
    """Returns a candidate whose weight is the same on every grid."""
    weight = functools.partial(_same, construct.fixed(text))
    called, method = spelled("weight", text, WEIGHTS), method or UNGUIDED.get(family, family)
    return Candidate(family, method, settings, words, weight, called, rule, longer)


def _same(weight, grid):
    del grid
    return weight


def _other(text: str, omegas, schedule: Schedule) -> list[Candidate]:
    if text == TWICE:
        return [_fixed(TWICE, {"family": TWICE}, "omega = 0", "constant(0)", longer=2)]
    name, found = parse("call", text, SWEPT)[0].name, []
    for omega in omegas:
        settings, words, method = {"omega": omega}, f"omega = {omega:g}", shortened(text, SWEPT)
        if name == AUTOGUIDED or name in COMBINATIONS:
            found.append(_fixed(text, settings, words, f"constant({written(omega)})", text, method=method))
        else:
            on_grid = functools.partial(_on_grid, text, schedule, omega)
            found.append(Candidate(text, method, settings, words, on_grid, f"{text}, omega={written(omega)}"))
    return found


def _on_grid(text, schedule, omega, grid):
    return construct.swept(text, grid, schedule, omega)

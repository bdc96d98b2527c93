"""Values inside the range of a knob, for tests that run over everything that has a name."""

import math
from inspect import Parameter
from typing import Any

from experiments.config.registry import Member
from guidance import ranges


def needed(member: Member) -> dict[str, Any]:
    """Every knob without a default at a value that its range allows."""
    found: dict[str, Any] = {}
    for knob in member.knobs:
        if knob.default is knob.empty:
            found[knob.name] = inside(knob, found)
    return found


def inside(knob: Parameter, others: dict[str, Any]) -> Any:
    """A value that the range of a knob allows, above the `others` that it must be above."""
    kind, above = ranges.of(knob.annotation)
    low = max((others[bound.knob] for bound in above), default=0)
    if isinstance(kind, ranges.Number):
        top = min(kind.high, max(kind.low, low, 0) + 2)
        return (max(kind.low, low) + top) / 2 if math.isfinite(kind.low) else low + 0.5
    if isinstance(kind, ranges.Whole):
        return min(max(kind.low, low) + 1, kind.high)
    if isinstance(kind, ranges.Each):
        return (1, 0, 1)
    return tuple(kind.names)[1]


def outside(knob: Parameter) -> list:
    """Values that the range of a knob does not allow."""
    kind, _ = ranges.of(knob.annotation)
    if isinstance(kind, ranges.Number):
        ends = [end + step for end, step in ((kind.low, -1), (kind.high, 1)) if math.isfinite(end)]
        open_ends = [end for end, mark in zip((kind.low, kind.high), kind.ends, strict=True) if mark in "()"]
        return [*ends, *open_ends, math.nan, "hello"]
    if isinstance(kind, ranges.Whole):
        return [kind.low - 1, kind.high + 1, 0.5, "hello"]
    if isinstance(kind, ranges.Each):
        return [(), 1, ("hello",)]
    return ["hello", 1]

"""Ranges of knobs, written as annotations in the signature of the function that has the knobs. Imports no JAX.

    @ranged
    def interval(omega: Finite, lo: Time, hi: Annotated[Time, Above("lo")]) -> Weight: ...

`ranged` makes the function raise for numbers outside their ranges; arrays and traced values pass unchecked. The
command line reads the same ranges, names and defaults from the source (`experiments.config.registry`), without
importing anything heavy.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, TypeVar

Function = TypeVar("Function", bound=Callable)
_LARGEST = 2**1023  # no larger integer is sure to fit a float


class Number(NamedTuple):
    """A number from `low` to `high`. The brackets in `ends` say whether each end, even an infinite one, is included.

    NaN is in no range.
    """

    low: float = -math.inf
    high: float = math.inf
    ends: str = "()"

    def holds(self, value: Any) -> bool:
        """Returns whether the value lies in the range."""
        if not _is(numbers.Real, value) or _is(numbers.Integral, value) and abs(value) > _LARGEST:
            return False
        above = self.low <= value if self.ends[0] == "[" else self.low < value
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)

    @property
    def words(self) -> str:
        """Describes the range, as in "a number above 0 or inf"."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"a number in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        text = "a finite number"
        if math.isfinite(self.low):
            text = f"a number {'of at least' if self.ends[0] == '[' else 'above'} {self.low:g}"
        text += " or -inf" if self.low == -math.inf and self.ends[0] == "[" else ""
        return text + (" or inf" if self.ends[1] == "]" else "")


class Whole(NamedTuple):
    """An integer from `low` to `high`, both included."""

    low: int
    high: int = 2**31 - 1

    def holds(self, value: Any) -> bool:
        """Returns whether the value is an integer in the range."""
        return _is(numbers.Integral, value) and self.low <= value <= self.high

    @property
    def words(self) -> str:
        """Describes the range, as in "an integer of at least 1"."""
        bound = f"of at least {self.low}" if self.high == 2**31 - 1 else f"from {self.low} to {self.high}"
        return f"an integer {bound}"


class OneOf(NamedTuple):
    """One of some words. names: a tuple of the words, or a dict whose keys they are."""

    names: Iterable[str]

    def holds(self, value: Any) -> bool:
        """Returns whether the value is one of the words."""
        return isinstance(value, str) and value in tuple(self.names)

    @property
    def words(self) -> str:
        """Describes the range, as in "a or b"."""
        return " or ".join(self.names)


class Each(NamedTuple):
    """A tuple or list of one or more values of one kind."""

    kind: Number | Whole

    def holds(self, value: Any) -> bool:
        """Returns whether the value is a tuple or list of one or more such values."""
        return isinstance(value, tuple | list) and len(value) > 0 and all(map(self.kind.holds, value))

    @property
    def words(self) -> str:
        """Describes the range, as in "a tuple, each an integer of at least 1"."""
        return f"a tuple, each {self.kind.words}"


class Above(NamedTuple):
    """A value above that of another knob, or, with `equal`, at least that of the other knob."""

    knob: str
    equal: bool = False


class WeightIs(NamedTuple):
    """The name and the range of the weight's value, for a rule that reads it as something other than omega."""

    name: str
    kind: Number


Finite = Annotated[Any, Number()]
Share = Annotated[Any, Number(0, 1, "[]")]
Time = Share
NonNegative = Annotated[Any, Number(0, math.inf, "[)")]
Positive = Annotated[Any, Number(0, math.inf, "()")]
Cap = Annotated[Any, Number(0, math.inf, "(]")]  # inf: no cap
Floor = Annotated[Any, Number(-math.inf, math.inf, "[)")]  # -inf: no floor
Extended = Annotated[Any, Number(-math.inf, math.inf, "[]")]
Count = Annotated[int, Whole(1)]
Index = Annotated[int, Whole(0)]


def of(annotation: Any) -> tuple[Any, tuple[Above, ...]]:
    """Returns the range in an annotation, None if it has none, and its `Above` bounds."""
    entries = getattr(annotation, "__metadata__", ())
    kinds = [entry for entry in entries if hasattr(entry, "holds")]
    return (kinds[-1] if kinds else None), tuple(entry for entry in entries if isinstance(entry, Above))


def words(annotation: Any) -> str:
    """Describes the range in an annotation, as in "a number in [0, 1], above lo"."""
    kind, above = of(annotation)
    bounds = [f"{'at least' if bound.equal else 'above'} {bound.knob}" for bound in above]
    return ", ".join([kind.words, *bounds])


def fault(annotations: dict[str, Any], values: dict[str, Any]) -> str | None:
    """Describes the first value outside its range, as in "hi = 0.2: allowed: above lo = 0.8"; None if there is none.

    Values other than numbers, words and tuples of them (arrays, traced values) are not checked.
    """
    plain = {name: value for name, value in values.items() if name in annotations and _is_plain(value)}
    for name, value in plain.items():
        kind, _ = of(annotations[name])
        if kind is not None and not kind.holds(value):
            return f"{name} = {value}: allowed: {kind.words}"
    for name, value in plain.items():
        for bound in of(annotations[name])[1]:
            low = plain.get(bound.knob)
            if low is not None and not (value >= low if bound.equal else value > low):
                words = "at least" if bound.equal else "above"
                return f"{name} = {value}: allowed: {words} {bound.knob} = {low}"
    return None


def ranged(maker: Function) -> Function:
    """Decorates a function so that it raises ValueError, naming the knob, for a value outside its annotated range."""
    signature = inspect.signature(maker)
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}

    @functools.wraps(maker)
    def refusing(*args, **kwargs):
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        wrong = fault(annotations, given.arguments)
        if wrong is not None:
            raise ValueError(f"{maker.__name__}: {wrong}")
        return maker(*args, **kwargs)

    return refusing  # type: ignore[return-value]


def not_by_name(reason: str) -> Callable[[Function], Function]:
    """Decorates a function that configs cannot name, although all its knobs have ranges, with the reason for that."""
    del reason  # the registry reads it from the source
    return lambda function: function


def _is(kind: type, value: Any) -> bool:
    """Returns isinstance(value, kind); mypy, which cannot compare abstract numbers, does not see through the call."""
    return isinstance(value, kind)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return _is(numbers.Real, value) or isinstance(value, str)

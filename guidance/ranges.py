"""What a knob may hold, said once: in the signature of the function whose knob it is. Imports no JAX.

    @ranged
    def interval(omega: Finite, lo: Time, hi: Annotated[Time, Above("lo")]) -> Weight: ...

`ranged` makes the function refuse concrete numbers outside their ranges; traced values and arrays pass. Whoever reads
signatures from source (`experiments.config.registry`) finds the same ranges, names and defaults there, before
anything heavy is imported.
"""

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Annotated, Any, NamedTuple, TypeVar

Function = TypeVar("Function", bound=Callable)
_LARGEST = 2**1023  # integers beyond it are no floats


class Number(NamedTuple):
    """A number between `low` and `high`; the brackets of `ends` say whether each end belongs to the range. An infinite
    end belongs to it only where its bracket says so; NaN never does."""

    low: float = -math.inf
    high: float = math.inf
    ends: str = "()"

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the range."""
        if not _is(numbers.Real, value) or _is(numbers.Integral, value) and abs(value) > _LARGEST:
            return False
        above = self.low <= value if self.ends[0] == "[" else self.low < value
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)

    @property
    def words(self) -> str:
        """The range for people."""
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"a number in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"
        found = "a finite number"
        if math.isfinite(self.low):
            found = f"a number {'of at least' if self.ends[0] == '[' else 'above'} {self.low:g}"
        found += " or -inf" if self.low == -math.inf and self.ends[0] == "[" else ""
        return found + (" or inf" if self.ends[1] == "]" else "")


class Whole(NamedTuple):
    """An integer from `low` to `high`, both included."""

    low: int
    high: int = 2**31 - 1

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the range."""
        return _is(numbers.Integral, value) and self.low <= value <= self.high

    @property
    def words(self) -> str:
        """The range for people."""
        bound = f"of at least {self.low}" if self.high == 2**31 - 1 else f"from {self.low} to {self.high}"
        return f"an integer {bound}"


class OneOf(NamedTuple):
    """One of some words: a tuple of them, or a table whose keys they are."""

    names: Iterable[str]

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the words."""
        return isinstance(value, str) and value in tuple(self.names)

    @property
    def words(self) -> str:
        """The words for people."""
        return " or ".join(self.names)


class Each(NamedTuple):
    """A tuple of values of one kind, at least one."""

    kind: Number | Whole

    def holds(self, value: Any) -> bool:
        """Whether the value is a tuple, or list, of such values."""
        return isinstance(value, tuple | list) and len(value) > 0 and all(map(self.kind.holds, value))

    @property
    def words(self) -> str:
        """The range for people."""
        return f"a tuple, each {self.kind.words}"


class Above(NamedTuple):
    """Larger than the value of another knob; `equal`: or equal to it."""

    knob: str
    equal: bool = False


class WeightIs(NamedTuple):
    """What the value of the weight means to a rule for which it is not omega: its name and its range."""

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
    """(the kind of values, what they must be above) that an annotation says; (None, ()) where it says nothing."""
    said = getattr(annotation, "__metadata__", ())
    kinds = [entry for entry in said if hasattr(entry, "holds")]
    return (kinds[-1] if kinds else None), tuple(entry for entry in said if isinstance(entry, Above))


def words(annotation: Any) -> str:
    """The range of an annotation for people, as in "a number in [0, 1], above lo"."""
    kind, above = of(annotation)
    bounds = [f"{'at least' if bound.equal else 'above'} {bound.knob}" for bound in above]
    return ", ".join([kind.words, *bounds])


def fault(annotations: dict[str, Any], values: dict[str, Any]) -> str | None:
    """What is wrong with the values of knobs, as in "hi = 0.2: allowed: above lo = 0.8"; None where nothing is.

    Values that are not numbers, words or tuples of them (arrays, traced values) are not looked at.
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
    """Makes `maker` raise ValueError, which names the knob, for plain values outside the ranges of its signature."""
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
    """Says why a config cannot name the function below, although every knob of it has a range."""
    del reason  # read from source
    return lambda function: function


def _is(kind: type, value: Any) -> bool:
    """Whether the value is a number of the kind, Python's or NumPy's."""
    return isinstance(value, kind)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return _is(numbers.Real, value) or isinstance(value, str)

"""What one field of a config may hold: how its text is read, and the words for what is allowed; nothing heavy."""

import ast
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # its smallest normal number and its largest
REQUIRED = object()  # the default of a field that every config file has to fill


class Refused(ValueError):
    """A value that says more than what is allowed; the message is one line that follows the value."""


def hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    """ "; did you mean X?" where something known is close to `name`, else ""."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


class Kind(NamedTuple):
    """What a field may hold. `read` returns the value in its final type or raises ValueError
    (Refused, to say more than `allowed`).
    """

    allowed: str
    read: Callable[[Any], Any]
    parse: Callable[[str], Any]  # text of the command line -> what `read` takes


class Field(NamedTuple):
    """A field of a config: what it may hold, what it means, what it is where nothing is said."""

    kind: Kind
    meaning: str
    default: Any = REQUIRED


class Constraint(NamedTuple):
    """A condition between fields; `field` is the one to name when it fails."""

    field: str
    allowed: str
    holds: Callable[[Any], bool]


class Form(NamedTuple):
    """What the config of a problem holds: its fields by dotted name, and the conditions between them."""

    fields: Mapping[str, Field]
    constraints: tuple[Constraint, ...]


def literal(text: str) -> Any:
    """A Python literal, true or false; anything else stays text (and fails later, by name, where text is wrong)."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    with warnings.catch_warnings():  # "0x1for" is a SyntaxWarning before it is an error
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return text


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def integer(low: int, high: int = 2**31 - 1) -> Kind:
    def read(value):
        _require(isinstance(value, int) and not isinstance(value, bool) and low <= value <= high)
        return value

    bound = f"of at least {low}" if high == 2**31 - 1 else f"from {low} to {high}"
    return Kind(f"an integer {bound}", read, literal)


def number(low: float = -math.inf, high: float = math.inf, ends: str = "[]") -> Kind:
    """A finite number between low and high that float32 holds, in which everything is computed; `ends` says with
    brackets whether each end belongs to the range."""

    def read(value):
        _require(isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
        _require(low <= value if ends[0] == "[" else low < value)
        _require(value <= high if ends[1] == "]" else value < high)
        if value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
            raise Refused(f"float32 does not hold it; allowed: {allowed}")
        return float(value)

    if low > -math.inf and high < math.inf:
        allowed = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    elif low > -math.inf:
        allowed = f"a number {'of at least' if ends[0] == '[' else 'above'} {low:g}"
    else:
        allowed = "a finite number"
    return Kind(allowed, read, literal)


def flag() -> Kind:
    def read(value):
        _require(isinstance(value, bool))
        return value

    return Kind("true or false", read, literal)


def text(allowed: str, *, empty: bool = False) -> Kind:
    def read(value):
        _require(isinstance(value, str) and (empty or value != ""))
        return value

    return Kind(allowed, read, lambda raw: raw.strip("'\""))


def choice(*names: str) -> Kind:
    def read(value):
        _require(value in names)
        return value

    return Kind(" or ".join(names), read, lambda raw: raw.strip("'\""))


def each(kind: Kind, *, empty: bool = False, names: bool = False) -> Kind:
    """A tuple of distinct values of one kind; a lone value counts as a tuple of one. `names`: text split at commas."""

    def read(value):
        value = tuple(value) if isinstance(value, tuple | list) else (value,)
        _require(empty or len(value) > 0)
        value = tuple(map(kind.read, value))
        _require(len(set(value)) == len(value))
        return value

    def split(raw):
        return [name.strip(" '\"") for name in raw.strip("()[] ").split(",") if name.strip()]

    size = "any number of" if empty else "one or more"
    return Kind(f"{size} distinct values separated by commas, each {kind.allowed}", read, split if names else literal)


def span() -> Kind:
    """A pair (lo, hi) in time."""

    def read(value):
        _require(isinstance(value, tuple | list) and len(value) == 2)
        low, high = map(number(0, 1).read, value)
        _require(low < high)
        return low, high

    return Kind("a pair (lo, hi) with 0 <= lo < hi <= 1, as in ((0.2, 0.8),)", read, literal)


POSITIVE = number(0, ends="()")
COUNT = integer(1)
# what is unrolled, allocated or squared: beyond these no machine answers
STEPS = integer(1, 100_000)
WIDTH = integer(1, 65_536)
DEPTH = integer(1, 1_000)
SIDE = 4_096
SAMPLES = 1_000_000

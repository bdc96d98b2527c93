"""What one field of a config may hold: a `Kind` says it in words, and turns a value or its text into the final type.

Values come from a config file (Python objects), from a config.json (JSON) or from the command line (text). One method,
`Kind.read`, takes all three, and refuses in one line what it cannot take. Nothing heavy is imported.
"""

import ast
import difflib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from os.path import isfile  # it answers False for a text that no file can be called, where pathlib raises
from typing import Any, NamedTuple

from guidance import ranges

FLOAT32 = (2.0**-126, (2 - 2.0**-23) * 2.0**127)  # its smallest normal number and its largest
LONGEST = 10_000  # characters of a value
REQUIRED = object()  # the default of a field that every config file has to fill


class Refused(ValueError):
    """A field cannot hold a value. The message is one line, and is printed after the name and the value."""


class Kind(NamedTuple):
    """The values that a field may hold."""

    allowed: str  # the words for people
    convert: Callable[[Any], Any]  # a value, or its text -> the value in its final type; may raise ValueError
    holds: Callable[[Any], Any] = lambda value: True  # whether the field may have the converted value
    exists: Callable[[Any], bool] = lambda value: True  # whether the file or folder that it names is there

    def read(self, value: Any) -> Any:
        """Returns the value in its final type. Raises Refused for whatever the field cannot hold."""
        try:
            if isinstance(value, str) and len(value) > LONGEST:
                raise Refused(f"a text of {len(value)} characters; allowed: {self.allowed}")
            value = self.convert(value)
            if self.holds(value):
                return value
        except Refused:
            raise
        except (ValueError, TypeError, OverflowError, SyntaxError, RecursionError, MemoryError):
            pass
        raise Refused(f"allowed: {self.allowed}")


class Field(NamedTuple):
    """A field of a config: what it may hold, what it means, and its value where a config file does not set it."""

    kind: Kind
    meaning: str
    default: Any = REQUIRED
    used: Callable[[Any], bool] = lambda config: (
        True
    )  # whether the job of a config opens the file that the field names


class Form:
    """What a config may hold: fields by dotted name ("learn.batch"), and conditions between them.

    A condition is (the field that a refusal names, what is allowed there, a function of a config: whether it is so).
    """

    def __init__(self, fields: Mapping[str, Field], *conditions: tuple[str, str, Callable[[Any], Any]]):
        self.fields, self.conditions = fields, conditions

    def __or__(self, other: "Form") -> "Form":
        """Joins two forms; where both have a field, that of the second stays."""
        return Form({**self.fields, **other.fields}, *self.conditions, *other.conditions)


def group(name: str, **fields: Field) -> dict[str, Field]:
    """Returns the fields of a group by their dotted names."""
    return {f"{name}.{field}": value for field, value in fields.items()}


def nearest(name: str, known: Iterable[str], otherwise: str = "", prefix: str = "") -> str:
    """Returns "; did you mean X?" for the known name that is closest to `name`, or `otherwise` where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else otherwise


def literal(value: Any) -> Any:
    """Returns what a text stands for: a Python literal, true or false. Any other value stays as it is."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    with warnings.catch_warnings():  # Python warns of "0x1for" before it refuses it
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return value


def listed(value: Any) -> list:
    """Returns the entries of a tuple or list, or of its text: "a, b(1)", "(a, b(1))" and "['a', 'b(1)']" are equal.

    The entries of a text are texts. Any other value is an entry by itself.
    """
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple | list) else [value]
    try:
        entries = ast.parse(f"[{value}]", mode="eval").body.elts
    except (SyntaxError, MemoryError):
        return [value]  # refused, with words for it, where entries are read
    if len(entries) == 1 and isinstance(entries[0], ast.List | ast.Tuple):
        entries = entries[0].elts
    return [str(entry.value) if isinstance(entry, ast.Constant) else ast.unparse(entry) for entry in entries]


def words(value: Any) -> str:
    """Returns a text without blanks and quotes around it, or a number as text. Raises ValueError for other values."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError
    return str(value).strip().strip("'\"")


def integer(low: int, high: int = 2**31 - 1) -> Kind:
    """An integer from low to high, both included."""
    allowed = ranges.Whole(low, high)
    return Kind(allowed.words, literal, lambda value: allowed.holds(value) and not isinstance(value, bool))


def number(low: float, high: float = math.inf, ends: str = "[]") -> Kind:
    """A finite number between low and high that float32 holds; a square bracket in `ends` includes that end."""
    allowed = ranges.Number(low, high, ends if high < math.inf else f"{ends[0]})")

    def convert(value):
        value = literal(value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError
        if allowed.holds(value) and value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
            raise Refused(f"float32 does not hold it; allowed: {allowed.words}")
        return float(value)

    return Kind(allowed.words, convert, allowed.holds)


def choice(*names: str, why: str = "") -> Kind:
    """One of some words; people are told `why` there are no others."""
    return Kind(" or ".join(names) + why, words, names.__contains__)


def text(allowed: str) -> Kind:
    """A text that is not empty; whether it means anything turns out when the problem is built."""
    return Kind(allowed, words, bool)


def path(allowed: str, *others: str, exists: Callable[[str], bool] = isfile) -> Kind:
    """The path of something that exists, or one of the words `others`."""
    return Kind(allowed, words, exists=lambda value: value in others or exists(value))


def each(kind: Kind, *, empty: bool = False) -> Kind:
    """A tuple of distinct values of one kind; a single value counts as a tuple of one."""
    size = "any number of" if empty else "one or more"
    return Kind(
        f"{size} distinct values separated by commas, each {kind.allowed}",
        lambda value: tuple(map(kind.read, listed(value))),
        lambda found: (found or empty) and len(set(found)) == len(found),
    )


FLAG = Kind("true or false", literal, lambda value: isinstance(value, bool))
SPAN = Kind(
    "a pair (lo, hi) with 0 <= lo < hi <= 1, as in ((0.2, 0.8),)",
    lambda value: tuple(map(number(0, 1).read, listed(value))),
    lambda pair: len(pair) == 2 and pair[0] < pair[1],
)
POSITIVE = number(0, ends="()")
COUNT = integer(1)
# what is unrolled, allocated or squared: beyond these no machine answers
STEPS = integer(1, 100_000)
WIDTH = integer(1, 65_536)
DEPTH = integer(1, 1_000)
SIDE = 4_096
SAMPLES = 1_000_000

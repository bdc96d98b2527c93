"""Fields of a config, and the kinds of values that they may hold. Imports nothing heavy.

A value comes from a config file (a Python object), from a config.json (JSON) or from the command line (text). One
method, `Kind.read`, takes all three: it returns the value in its final type, or refuses it in one line.
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
    """A field cannot hold a value. The message is one line, which is printed after the field's name and the value."""


class Kind(NamedTuple):
    """The set of values that a field may hold, and how they are read."""

    allowed: str  # the set in words, for refusals and --help
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
    """A field of a config."""

    kind: Kind
    meaning: str  # for --help
    default: Any = REQUIRED  # its value where a config file does not set it
    used: Callable[[Any], bool] = lambda config: (
        True
    )  # whether the job of a config opens the file that the field names


class Form:
    """What the config of a problem holds: fields by dotted name ("learn.batch"), and conditions between them.

    A condition is (name of a field, words, function of a config). Where the function returns false, the value of that
    field is refused, and the words say what is allowed.
    """

    def __init__(self, fields: Mapping[str, Field], *conditions: tuple[str, str, Callable[[Any], Any]]):
        self.fields, self.conditions = fields, conditions

    def __or__(self, other: "Form") -> "Form":
        """Returns a form with the fields and conditions of both; the second replaces fields of the first."""
        return Form({**self.fields, **other.fields}, *self.conditions, *other.conditions)


def group(name: str, **fields: Field) -> dict[str, Field]:
    """Returns {"name.field": field} for the fields of a group."""
    return {f"{name}.{field}": value for field, value in fields.items()}


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "", prefix: str = "") -> str:
    """Returns "; did you mean X?", where X is the known name closest to `name`; `otherwise` if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else otherwise


def literal(value: Any) -> Any:
    """Returns the number, tuple or boolean that a text spells. Returns any other value as it is."""
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
    """Returns the entries of a tuple or list, or of the text of one. Any other value is returned as the only entry.

    The texts "a, b(1)", "(a, b(1))" and "['a', 'b(1)']" all have the entries "a" and "b(1)", which are texts.
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


def as_text(value: Any) -> str:
    """Returns a text without blanks and quotes around it, or the text of a number. Raises ValueError for others."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise ValueError
    return str(value).strip().strip("'\"")


def integer(low: int, high: int = 2**31 - 1) -> Kind:
    """Returns the kind of the integers from low to high, both included."""
    allowed = ranges.Whole(low, high)
    return Kind(allowed.words, literal, lambda value: allowed.holds(value) and not isinstance(value, bool))


def number(low: float, high: float = math.inf, ends: str = "[]") -> Kind:
    """Returns the kind of the float32 numbers from low to high; a square bracket in `ends` includes that end."""
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
    """Returns the kind of these words; a refusal also says `why` there are no others."""
    return Kind(" or ".join(names) + why, as_text, names.__contains__)


def text(allowed: str) -> Kind:
    """Returns the kind of any text but the empty one. What it means is found out when the problem is built."""
    return Kind(allowed, as_text, bool)


def path(allowed: str, *others: str, exists: Callable[[str], bool] = isfile) -> Kind:
    """Returns the kind whose values are paths that `exists` accepts, or one of the words `others`."""
    return Kind(allowed, as_text, exists=lambda value: value in others or exists(value))


def each(kind: Kind, *, empty: bool = False) -> Kind:
    """Returns the kind of tuples of distinct values of `kind`, and of the empty tuple if `empty`.

    A single value is read as a tuple of one.
    """
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

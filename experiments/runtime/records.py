"""What a run leaves behind in its folder: evaluations.jsonl, results.json and the table for people.

results.json is a list of rows; each has exactly the fields of `guidance.tables.Row`, null where those say None.
`kind` is one of ABOUT, null in a leaderboard.
"""

import json
import math
import os
import pathlib
import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.config import ConfigError
from experiments.runtime import launch
from guidance.tables import Row, comparable, mean_row, table  # noqa: F401 (of records, too)

# what a row is about: no guidance, one hand-made weight, the best of a family of them, a learned weight, the share of
# the gap to true data that this closes, its difference to the best of a family, or what else was measured
NONE, GIVEN, TUNED, LEARNED = "unguided", "given", "tuned", "learned"
SHARE, DIFFERENCE, IN_FULL = "share", "difference", "in full"
ABOUT = (NONE, GIVEN, TUNED, LEARNED, SHARE, DIFFERENCE, IN_FULL, None)


KINDS = {
    **dict.fromkeys(("problem", "method", "weight", "sampler", "metric"), (str,)),
    **dict.fromkeys(("steps", "seeds"), (int,)),
    **dict.fromkeys(("value", "standard_error", "floor"), (int, float, type(None))),
    "nfe": (int, float),
    "settings": (dict,),
    "kind": (str, type(None)),
}


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces the file as a whole: a reader, or a kill, sees the old content or the new, never half of it."""
    path = pathlib.Path(path)
    fresh = path.with_name(f".{path.name}.new")
    try:
        with open(fresh, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def write_results(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes checked rows as JSON, one row a line. Raises ValueError naming the row and field that is wrong."""
    rows = [check(Row(*map(_plain, row))) for row in rows]
    lines = ",\n".join(json.dumps(row._asdict(), allow_nan=False) for row in rows)
    write_atomically(path, f"[\n{lines}\n]\n" if rows else "[]\n")


def read_results(path: pathlib.Path) -> list[Row]:
    """The rows of a results.json. Raises ValueError naming what is not as documented."""
    rows = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: not a list of rows")
    for i, row in enumerate(rows):
        if row.keys() != KINDS.keys():
            raise ValueError(f"{path}: row {i}: fields {sorted(row)}, expected {sorted(KINDS)}")
    return [check(Row(**row)) for row in rows]


def check(row: Row) -> Row:
    """The row itself if every field has its documented type. Raises ValueError naming the field."""
    for name, kinds in KINDS.items():
        value = getattr(row, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} = {value!r} in {row}: expected {' or '.join(k.__name__ for k in kinds)}")
    if row.steps < 1 or row.seeds < 1 or row.nfe < 0:
        raise ValueError(f"steps and seeds are at least 1, nfe is at least 0 in {row}")
    if row.standard_error is not None and row.standard_error < 0:
        raise ValueError(f"standard_error is negative in {row}")
    return row


def key(settings: Mapping[str, Any]) -> str:
    """Settings as one text: equal settings have equal texts, and different ones different texts, to the last bit."""
    return json.dumps(settings, sort_keys=True)


def _measured(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


# what a line of a ledger may hold, where it holds it
HELD = {
    "nfe": lambda value: value is not None and _measured(value),
    "score": _measured,
    "metrics": lambda value: isinstance(value, dict) and len(value) > 0 and all(map(_measured, value.values())),
    "table": lambda value: isinstance(value, list) and all(isinstance(row, list) for row in value),
    "rows": lambda value: (
        isinstance(value, list) and all(isinstance(row, dict) and row.keys() == KINDS.keys() for row in value)
    ),
    "label": lambda value: isinstance(value, str),
}


class Damaged(UserWarning):
    """A line of a file that a run appends to is not what it wrote."""


class Ledger:
    """Finished evaluations, one JSON line each, known by their settings; a line cut by a kill is dropped.

    What was measured and is not finite is null in the file, and infinite for who compares: lower is better.
    `done`: {key(settings): entry}; an entry holds its settings under "key", has all `fields` and, among its "metrics",
    all `metrics`: what a line without them was is measured again. Several processes all go by what process 0 has read
    and measured, so that they agree on what is left and what won. Raises ConfigError for a file of an earlier version,
    which named evaluations in words, and leaves it as it is.
    """

    def __init__(self, path, fields: Iterable[str] = (), metrics: Iterable[str] = ()):
        self.path, self.lock = path, threading.Lock()
        self.done = launch.first(lambda: _read_ledger(path, frozenset(fields), frozenset(metrics)))

    def get(self, settings: Mapping[str, Any], compute) -> dict:
        """The entry of these settings, computed and appended if it is not there yet."""
        name = key(settings)
        if name not in self.done:
            entry = compute() | {"key": settings}
            self.done[name] = launch.first(lambda: self._append(entry))
        return self.done[name]

    def _append(self, entry: dict) -> dict:
        line = json.dumps(_plain(entry), allow_nan=False)
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return _with_infinities(json.loads(line))


def _read_ledger(path, fields: frozenset[str], metrics: frozenset[str]) -> dict[str, dict]:
    """The entries of the file. A whole line that is none stays where it is, and is told of."""
    found = {}
    for entry, number in entries(path):
        sound = isinstance(entry, dict) and all(HELD[name](entry[name]) for name in HELD.keys() & entry.keys())
        whole = sound and fields <= entry.keys() and metrics <= entry.get("metrics", {}).keys()
        if whole and isinstance(entry.get("key"), dict):
            found[key(entry["key"])] = _with_infinities(entry)
        elif sound and isinstance(entry.get("key"), str):
            raise ConfigError(
                f"{path} was written by an earlier version, which named evaluations in words; allowed: a new folder, "
                "or that version (the file is left as it is)"
            )
        else:
            told_of(path, number, "what it was is measured again")
    return found


def entries(path) -> list[tuple[Any, int]]:
    """(what a line holds, its number) for each whole line of a file of JSON lines, None for what is no JSON; a last
    line without an end, cut by a kill, is removed from the file."""
    lines = pathlib.Path(path).read_bytes().splitlines(keepends=True) if os.path.exists(path) else []
    if lines and not lines[-1].endswith(b"\n"):
        write_atomically(path, b"".join(lines[:-1]))
        lines.pop()
    return [(_json(line), number) for number, line in enumerate(lines, 1)]


def told_of(path, number: int, words: str) -> None:
    """Warns of a line that is not what a run wrote."""
    warnings.warn(f"{path}: line {number} is not what a run wrote; it is left alone, {words}", Damaged, stacklevel=3)


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _with_infinities(entry: dict) -> dict:
    measured = {name: math.inf if value is None else value for name, value in entry.get("metrics", {}).items()}
    scored = {"score": math.inf} if entry.get("score", 0) is None else {}
    return entry | ({"metrics": measured} if measured else {}) | scored


def _plain(value: Any) -> Any:
    """NumPy and JAX scalars as Python numbers; numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

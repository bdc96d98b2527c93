"""The ledger: evaluations that have finished, one JSON line each, so that a run that goes on repeats none.

What was measured and is not finite is null in the file, and infinite for who compares: lower is better.
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
from experiments.runtime import launch, results
from experiments.runtime.writing import write_whole


def key(settings: Mapping[str, Any]) -> str:
    """Returns settings as one text, the same for equal settings and another for all others, to the last bit."""
    return json.dumps(settings, sort_keys=True)


def _is_measured(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


# the checks of an entry's values, by name
CHECKS = {
    "nfe": lambda value: value is not None and _is_measured(value),
    "score": _is_measured,
    "metrics": lambda value: isinstance(value, dict) and len(value) > 0 and all(map(_is_measured, value.values())),
    "table": lambda value: isinstance(value, list) and all(isinstance(row, list) for row in value),
    "rows": lambda value: (
        isinstance(value, list) and all(isinstance(row, dict) and row.keys() == results.TYPES.keys() for row in value)
    ),
    "label": lambda value: isinstance(value, str),
}


class Damaged(UserWarning):
    """A line of a file that a run appends to is not what it wrote."""


class Ledger:
    """Finished evaluations by their settings.

    `done`: {key(settings): entry}. An entry holds its settings under "key", and has all `fields` and, among its
    "metrics", all `metrics`; what stands in a line without them is measured again. Where there are several processes,
    all go by what process 0 has read and measured, so that they agree on what is left and on what won. Raises
    ConfigError for a file of an earlier version, which named evaluations in words, and leaves it as it is.
    """

    def __init__(self, path, fields: Iterable[str] = (), metrics: Iterable[str] = ()):
        self.path, self.lock = path, threading.Lock()
        self.done = launch.first(lambda: _read(path, frozenset(fields), frozenset(metrics)))

    def get(self, settings: Mapping[str, Any], compute) -> dict:
        """Returns the entry of these settings, computed and appended if the ledger does not have it yet."""
        name = key(settings)
        if name not in self.done:
            entry = compute() | {"key": settings}
            self.done[name] = launch.first(lambda: self._append(entry))
        return self.done[name]

    def _append(self, entry: dict) -> dict:
        line = json.dumps(results.plain(entry), allow_nan=False)
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
        return _with_infinities(json.loads(line))


def _read(path, fields: frozenset[str], metrics: frozenset[str]) -> dict[str, dict]:
    """Returns the entries of the file; warns of a whole line that holds none, and leaves it where it is."""
    found = {}
    for entry, number in entries(path):
        sound = isinstance(entry, dict) and all(CHECKS[name](entry[name]) for name in CHECKS.keys() & entry.keys())
        whole = sound and fields <= entry.keys() and metrics <= entry.get("metrics", {}).keys()
        if whole and isinstance(entry.get("key"), dict):
            found[key(entry["key"])] = _with_infinities(entry)
        elif sound and isinstance(entry.get("key"), str):
            raise ConfigError(
                f"{path} was written by an earlier version, which named evaluations in words; allowed: a new folder, "
                "or that version (the file is left as it is)"
            )
        else:
            warn_of(path, number, "what it was is measured again")
    return found


def entries(path) -> list[tuple[Any, int]]:
    """Returns (content, line number) of every whole line of a file of JSON lines.

    The content of a line that is no JSON is None. A last line without an end was cut by a kill, and is removed from
    the file.
    """
    lines = pathlib.Path(path).read_bytes().splitlines(keepends=True) if os.path.exists(path) else []
    if lines and not lines[-1].endswith(b"\n"):
        write_whole(path, b"".join(lines[:-1]))
        lines.pop()
    return [(_json(line), number) for number, line in enumerate(lines, 1)]


def warn_of(path, number: int, words: str) -> None:
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

"""What a run leaves behind in its folder: evaluations.jsonl, results.json and the table for people.

results.json is a list of rows; each has exactly the fields of `Row`:

    problem         name of the problem with its preset's essentials, as in "mixture under"
    method          how the weight was found: unguided, constant, interval, clamp_linear, rollout, ...
    weight          the weight in words, as in "omega = 0.4 on t in (0.2, 0.8]"
    settings        its knobs, {"omega": 0.4, "lo": 0.2, "hi": 0.8}; {} for learned weights
    sampler         step and grid
    steps, nfe      sampler steps; network evaluations per sample, all branches together
    seeds           number of independent repetitions behind the value
    metric          what was measured, as in "energy_distance"
    value           mean over the seeds; null where it is not finite
    standard_error  of that mean; null for a single seed
    floor           what true data score against true data; null where there is no such number
    kind            what the row is about, one of ABOUT; null in a leaderboard
"""

import json
import math
import os
import pathlib
import statistics
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import launch
from experiments.config import ConfigError

# what a row is about: no guidance, one hand-made weight, the best of a family of them, a learned weight, the share of
# the gap to true data that this closes, its difference to the best of a family, or what else was measured
NONE, GIVEN, TUNED, LEARNED = "unguided", "given", "tuned", "learned"
SHARE, DIFFERENCE, IN_FULL = "share", "difference", "in full"
ABOUT = (NONE, GIVEN, TUNED, LEARNED, SHARE, DIFFERENCE, IN_FULL, None)


class Row(NamedTuple):
    """One line of results.json; the module's docstring explains the fields."""

    problem: str
    method: str
    weight: str
    settings: dict[str, Any]
    sampler: str
    steps: int
    nfe: float
    seeds: int
    metric: str
    value: float | None
    standard_error: float | None = None
    floor: float | None = None
    kind: str | None = None


KINDS = {
    **dict.fromkeys(("problem", "method", "weight", "sampler", "metric"), (str,)),
    **dict.fromkeys(("steps", "seeds"), (int,)),
    **dict.fromkeys(("value", "standard_error", "floor"), (int, float, type(None))),
    "nfe": (int, float),
    "settings": (dict,),
    "kind": (str, type(None)),
}


def mean_row(
    problem: str,
    method: str,
    weight: str,
    settings,
    sampler: str,
    steps: int,
    nfe: float,
    metric: str,
    values,
    floor=None,
    kind=None,
) -> Row:
    """The row of one value for each seed: their mean, and its standard error s / sqrt(n) where there are several."""
    values = [float(value) for value in values]
    mean, n = statistics.fmean(values), len(values)
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 and math.isfinite(mean) else None
    return Row(problem, method, weight, settings, sampler, steps, nfe, n, metric, mean, error, floor, kind)


def write_atomically(path: pathlib.Path, content: str) -> None:
    """Replaces the file as a whole: a reader, or a kill, sees the old content or the new, never half of it."""
    path = pathlib.Path(path)
    fresh = path.with_name(f".{path.name}.new")
    try:
        with open(fresh, "w", encoding="utf-8") as file:
            file.write(content)
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


class Ledger:
    """Finished evaluations, one JSON line each, known by their settings; a line cut by a kill is dropped.

    `done`: {key(settings): entry}; an entry holds its settings under "key". Several processes all go by what process 0
    has read and measured, so that they agree on what is left and what won. Raises ConfigError for a file of an earlier
    version, which named evaluations in words, and leaves it as it is.
    """

    def __init__(self, path):
        self.path, self.done, self.lock = path, launch.first(lambda: _read_ledger(path)), threading.Lock()

    def get(self, settings: Mapping[str, Any], compute) -> dict:
        """The entry of these settings, computed and appended if it is not there yet."""
        name = key(settings)
        if name not in self.done:
            entry = compute() | {"key": settings}
            self.done[name] = launch.first(lambda: self._append(entry))
        return self.done[name]

    def _append(self, entry: dict) -> dict:
        with self.lock, open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        return entry


def _read_ledger(path) -> dict[str, dict]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) != len(lines):
        write_atomically(path, "".join(whole))
    entries = [json.loads(line) for line in whole]
    if any(isinstance(entry["key"], str) for entry in entries):
        raise ConfigError(
            f"{path} was written by an earlier version, which named evaluations in words; allowed: a new folder, "
            "or that version (the file is left as it is)"
        )
    return {key(entry["key"]): entry for entry in entries}


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text: best value first within each problem, metric and number of steps."""
    if not rows:
        return "no results"
    header = ("problem", "metric", "steps", "nfe", "method", "weight", "value", "floor", "seeds")
    worst = math.inf
    ordered = sorted(rows, key=lambda r: (r.problem, r.metric, r.steps, worst if r.value is None else r.value))
    lines = [
        (
            row.problem, row.metric, f"{row.steps}", f"{row.nfe:g}", row.method, row.weight,
            _figure(row.value) + ("" if None in (row.value, row.standard_error) else f" ± {row.standard_error:.1g}"),
            _figure(row.floor), f"{row.seeds}",
        )
        for row in ordered
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (header, rule, *lines)
    )


def _plain(value: Any) -> Any:
    """NumPy and JAX scalars as Python numbers; numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

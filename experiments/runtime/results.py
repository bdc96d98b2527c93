"""Writes and reads results.json, the measurements of a run: a list of rows with the fields of `guidance.tables.Row`.

`kind` is one of the words below, or null in a leaderboard. A number that is not finite is null.
"""

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

from experiments.runtime.writing import write_whole
from guidance.tables import Row

# the kinds of rows: no guidance, one hand-made weight, the best hand-made weight of a family, a learned weight; the
# share of the gap to true data that a learned weight closes, its difference to the best of a family, all other metrics
NONE, GIVEN, TUNED, LEARNED = "unguided", "given", "tuned", "learned"
SHARE, DIFFERENCE, IN_FULL = "share", "difference", "in full"

TYPES = {
    **dict.fromkeys(("problem", "method", "weight", "sampler", "metric"), (str,)),
    **dict.fromkeys(("steps", "seeds"), (int,)),
    **dict.fromkeys(("value", "standard_error", "floor"), (int, float, type(None))),
    "nfe": (int, float),
    "settings": (dict,),
    "kind": (str, type(None)),
}


def write(path: pathlib.Path, rows: Iterable[Row]) -> None:
    """Writes checked rows as JSON, one row a line. Raises ValueError naming the row and field that is wrong."""
    rows = [check(Row(*map(plain, row))) for row in rows]
    lines = ",\n".join(json.dumps(row._asdict(), allow_nan=False) for row in rows)
    write_whole(path, f"[\n{lines}\n]\n" if rows else "[]\n")


def read(path: pathlib.Path) -> list[Row]:
    """Returns the rows of a results.json. Raises ValueError naming what is not as documented."""
    rows = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: not a list of rows")
    for i, row in enumerate(rows):
        if row.keys() != TYPES.keys():
            raise ValueError(f"{path}: row {i}: fields {sorted(row)}, expected {sorted(TYPES)}")
    return [check(Row(**row)) for row in rows]


def check(row: Row) -> Row:
    """Returns the row itself if every field has its documented type. Raises ValueError naming the field."""
    for name, types in TYPES.items():
        value = getattr(row, name)
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{name} = {value!r} in {row}: expected {' or '.join(t.__name__ for t in types)}")
    if row.steps < 1 or row.seeds < 1 or row.nfe < 0:
        raise ValueError(f"steps and seeds are at least 1, nfe is at least 0 in {row}")
    if row.standard_error is not None and row.standard_error < 0:
        raise ValueError(f"standard_error is negative in {row}")
    return row


def plain(value: Any) -> Any:
    """Returns a value as JSON takes it.

    NumPy and JAX scalars become Python numbers, numbers that are not finite None.
    """
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [plain(entry) for entry in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

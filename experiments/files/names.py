"""Names of classes, kept beside what was made with them: a number says nothing once folders have come or gone."""

import json
import pathlib

from experiments.files.opening import reading
from experiments.runtime.writing import write_whole

FILE = "classes.json"
CLASSES = 100_000  # at most: more are a label gone wrong, and networks have a row for each


def difference(there: tuple[str, ...] | None, here: tuple[str, ...] | None) -> str | None:
    """What tells two lists of names apart, in words; None where they are equal, or one is not known."""
    if there is None or here is None or there == here:
        return None
    if len(there) != len(here):
        return f"{len(there)} classes there, {len(here)} here"
    i = next(i for i, (a, b) in enumerate(zip(there, here, strict=True)) if a != b)
    return f"class {i} is {there[i]!r} there, {here[i]!r} here"


def kept(folder) -> tuple[str, ...] | None:
    """The names in a run's folder; None where it keeps none. Raises ValueError, in one line, for a file that is no
    such list."""
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        return None
    with reading(path, "a list of names of classes"):
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))


def keep(folder, names: tuple[str, ...] | None) -> None:
    """Writes the names of the classes, in the order of their numbers, into a run's folder, or compares them with those
    that the run began with. Does nothing without a folder or names.

    Raises ValueError, in one line, where they differ.
    """
    if folder is None or names is None:
        return
    path, there = pathlib.Path(folder) / FILE, kept(folder)
    differing = difference(there, names)
    if differing:
        raise ValueError(f"{path} is of a run on other classes: {differing}; another folder is needed")
    if there is None:
        write_whole(path, json.dumps(names, indent=0, ensure_ascii=False) + "\n")

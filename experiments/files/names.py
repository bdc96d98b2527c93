"""The names of a run's classes, stored in its folder: a class's number changes when folders of pictures come or go."""

import json
import pathlib

from experiments.files.opening import reading
from experiments.runtime.writing import write_whole

FILE = "classes.json"
CLASSES = 100_000  # a larger number comes from a wrong label; networks would have a row for each


def difference(there: tuple[str, ...] | None, here: tuple[str, ...] | None) -> str | None:
    """Returns the first difference of two lists of names, in words; None if they are equal or one is not known."""
    if there is None or here is None or there == here:
        return None
    if len(there) != len(here):
        return f"{len(there)} classes there, {len(here)} here"
    i = next(i for i, (a, b) in enumerate(zip(there, here, strict=True)) if a != b)
    return f"class {i} is {there[i]!r} there, {here[i]!r} here"


def kept(folder) -> tuple[str, ...] | None:
    """Returns the names stored in a run's folder, or None. Raises ValueError for a file that is no list of names."""
    path = pathlib.Path(folder) / FILE
    if not path.exists():
        return None
    with reading(path, "a list of names of classes"):
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))


def keep(folder, names: tuple[str, ...] | None) -> None:
    """Writes the names of the classes, in the order of their numbers, into a run's folder, if it has none yet.

    Raises ValueError if the folder has other names. Does nothing without a folder or names.
    """
    if folder is None or names is None:
        return
    path, stored = pathlib.Path(folder) / FILE, kept(folder)
    differing = difference(stored, names)
    if differing:
        raise ValueError(f"{path} is of a run on other classes: {differing}; another folder is needed")
    if stored is None:
        write_whole(path, json.dumps(names, indent=0, ensure_ascii=False) + "\n")

"""Lists the pictures of a folder or .zip, reads their bytes, and takes classes from the names of sub-folders."""

import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

from experiments.data import pictures
from experiments.files.opening import existing, reading

# the usual names of splits
SPLITS = {"dev", "test", "testing", "train", "training", "val", "valid", "validation"}


class Folder(NamedTuple):
    """The pictures of a folder or .zip. A name is the path inside it, such as a/b.png; `fetch` reads its bytes."""

    path: pathlib.Path
    names: list[str]  # sorted, so that every host sees the same order
    empty: list[str]  # sub-folders without any file
    fetch: Callable[[str], bytes]


def opened(path) -> Folder:
    """Lists the pictures in the folder or .zip at `path`, without hidden files and those that macOS adds to archives.

    Raises FileNotFoundError, and ValueError for an archive that cannot be read.
    """
    path = pathlib.Path(path)
    return _folder(path) if os.path.isdir(path) else _archive(path)


def in_split(folder: Folder, split: str | None) -> list[str]:
    """Returns the names of the pictures in the sub-folder `split`; None: all. Raises FileNotFoundError if none."""
    names = folder.names if split is None else [name for name in folder.names if name.startswith(f"{split}/")]
    if not names:
        where = folder.path if split is None else folder.path / split
        raise FileNotFoundError(f"{where} holds no picture; expected {', '.join(pictures.SUFFIXES)}")
    return names


def classes(folder: Folder, split: str | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns the class number of each sub-folder with pictures, and the names of the classes; ({}, ()) if unlabelled.

    Each sub-folder of a split is a class; without splits, each sub-folder of the folder. Classes are collected from
    all splits and from empty sub-folders too, so that a class has the same number in every split. They are sorted
    alphabetically, or by value if all are integers (2 before 10). A folder with a single class is unlabelled.

    Splits are `split` and the folders beside it. With split None all pictures are read; the top folders then count as
    splits if all of them have a usual name (`SPLITS`) and keep their pictures in sub-folders.
    Raises ValueError if there are pictures beside sub-folders.
    """
    parents = sorted({name.rpartition("/")[0] for name in in_split(folder, split)})
    everything = {name.rpartition("/")[0] for name in folder.names} | set(folder.empty)
    depth = 0 if split is None else split.count("/") + 1
    if split is None and all("/" in parent and parent.partition("/")[0] in SPLITS for parent in parents):
        depth = 1
    below = {parent: "/".join(parent.split("/")[depth:]) for parent in everything if parent}
    below[""] = ""
    in_this_split = {below[parent] for parent in parents}
    if len(in_this_split) > 1 and "" in in_this_split:
        stray = next(name for name in in_split(folder, split) if not below[name.rpartition("/")[0]])
        raise ValueError(f"{folder.path} has pictures beside sub-folders ({stray}); expected one or other")
    names = in_order({name for name in below.values() if name})
    if in_this_split == {""} or len(names) < 2:
        return {}, ()
    return {parent: names.index(below[parent]) for parent in parents}, names


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sorts names alphabetically, or by value if all of them are different integers."""
    names = sorted(names)
    if all(re.fullmatch("[0-9]+", name) for name in names) and len({int(name) for name in names}) == len(names):
        names.sort(key=int)
    return tuple(names)


def _folder(path: pathlib.Path) -> Folder:
    names, empty = [], []
    for parent, folders, files in os.walk(path):
        below = pathlib.Path(parent).relative_to(path)
        names += [(below / file).as_posix() for file in files]
        if not folders and not files and parent != str(path):
            empty.append(below.as_posix())
    return Folder(path, _pictures(names), sorted(filter(_visible, empty)), lambda name: (path / name).read_bytes())


def _archive(path: pathlib.Path) -> Folder:
    path = existing(path, "a .zip of pictures")
    with reading(path, "a readable zip archive"):
        archive = zipfile.ZipFile(path)  # it may be read from several threads
    names = archive.namelist()
    inside = {parent for name in names for parent in _above(name)}
    empty = [name[:-1] for name in names if name.endswith("/") and name[:-1] not in inside]
    return Folder(path, _pictures(names), sorted(filter(_visible, empty)), archive.read)


def _above(name: str) -> Iterable[str]:
    """Returns all folders above a member of an archive."""
    parts = name.removesuffix("/").split("/")[:-1]
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def _pictures(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(pictures.SUFFIXES) and _visible(name))


def _visible(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))

"""Pictures in a folder or a .zip: their names in one order, their bytes, and the classes that sub-folders are."""

import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

from experiments.data import pictures
from experiments.files.opening import existing, reading

# what splits are usually called
SPLITS = {"dev", "test", "testing", "train", "training", "val", "valid", "validation"}


class Folder(NamedTuple):
    """Pictures by name, the path below the folder or in the archive: a/b.png."""

    path: pathlib.Path
    names: list[str]  # sorted, so that every host sees one order
    empty: list[str]  # sub-folders that hold nothing at all
    fetch: Callable[[str], bytes]


def opened(path) -> Folder:
    """The pictures in the folder or .zip at `path`, without hidden files and those that macOS adds to archives.

    Raises FileNotFoundError or ValueError, in one line, for what cannot be opened.
    """
    path = pathlib.Path(path)
    return _folder(path) if os.path.isdir(path) else _archive(path)


def in_split(folder: Folder, split: str | None) -> list[str]:
    """The names of the pictures of a split, which is a sub-folder; None: all. Raises FileNotFoundError if none."""
    names = folder.names if split is None else [name for name in folder.names if name.startswith(f"{split}/")]
    if not names:
        where = folder.path if split is None else folder.path / split
        raise FileNotFoundError(f"{where} holds no picture; expected {', '.join(pictures.SUFFIXES)}")
    return names


def classes(folder: Folder, split: str | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """({parent of a picture: number of its class}, names of the classes in their order); ({}, ()) without labels.

    A class is a sub-folder of the split, or of the whole where there are no splits. The names are those of all splits,
    and of sub-folders that are empty, so that a class has one number wherever pictures of it are missing. They are in
    alphabetical order, or by value where all of them are integers (2 before 10). One name alone is no label.

    Splits are the folders beside `split`. With split None the whole is read, and its top folders are splits where all
    of them are called so (`SPLITS`) and have sub-folders.
    Raises ValueError for pictures beside sub-folders.
    """
    held = {name.rpartition("/")[0] for name in folder.names}
    parents = sorted({name.rpartition("/")[0] for name in in_split(folder, split)})
    everything = held | {name for name in folder.empty if name not in held}
    depth = 0 if split is None else split.count("/") + 1
    if split is None and all("/" in parent and parent.partition("/")[0] in SPLITS for parent in parents):
        depth = 1
    below = {parent: "/".join(parent.split("/")[depth:]) for parent in everything if parent}
    below[""] = ""
    own = {below[parent] for parent in parents}
    if len(own) > 1 and "" in own:
        stray = next(name for name in in_split(folder, split) if not below[name.rpartition("/")[0]])
        raise ValueError(f"{folder.path} has pictures beside sub-folders ({stray}); expected one or other")
    names = in_order({name for name in below.values() if name})
    if own == {""} or len(names) < 2:
        return {}, ()
    return {parent: names.index(below[parent]) for parent in parents}, names


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Alphabetically, or by value where all names are integers and differ as such."""
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
    return Folder(path, _pictures(names), sorted(filter(_seen, empty)), lambda name: (path / name).read_bytes())


def _archive(path: pathlib.Path) -> Folder:
    path = existing(path, "a .zip of pictures")
    with reading(path, "a readable zip archive"):
        archive = zipfile.ZipFile(path)  # reads of its members take turns by themselves
    names = archive.namelist()
    inside = {parent for name in names for parent in _above(name)}
    empty = [name[:-1] for name in names if name.endswith("/") and name[:-1] not in inside]
    return Folder(path, _pictures(names), sorted(filter(_seen, empty)), archive.read)


def _above(name: str) -> Iterable[str]:
    """The folders that a member of an archive lies in."""
    parts = name.removesuffix("/").split("/")[:-1]
    return ("/".join(parts[: i + 1]) for i in range(len(parts)))


def _pictures(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(pictures.SUFFIXES) and _seen(name))


def _seen(name: str) -> bool:
    return not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))

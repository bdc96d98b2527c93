"""Reads images block by block: from a folder or .zip of pictures, or an .npz of the ADM evaluation suite.

The .npz has `arr_0`, uint8 [n, H, W, 3] or [n, H, W, 1]. If it also has `ids` or `seeds`, integers [n], their range
goes into the result. A folder has pictures of one size, also in sub-folders, in the order of their names. They are
decoded as for training (`experiments.data.pictures`), with three differences: grey is repeated to three channels,
sub-folders are not classes, and nothing is cropped or resized, because we measure the files as a sampler wrote them.
"""

import os
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from experiments.data import folders, pictures
from experiments.fid import BadInput
from experiments.files import npz
from guidance.words import listed


class Images(NamedTuple):
    """A set of images on disk; `blocks(size)` reads its pixels, as uint8 [<= size, H, W, C] in order."""

    path: str
    count: int
    shape: tuple[int, int, int]  # H, W, C
    blocks: Callable[[int], Iterator[np.ndarray]]
    ids: dict[str, dict[str, int]]  # first, last and distinct values of `ids` and `seeds`, if stored


def open_images(path) -> Images:
    """Opens the images at `path`. Raises BadInput; so does `blocks` for damaged pixels."""
    path = pathlib.Path(path)
    if os.path.isdir(path) or path.suffix == ".zip":
        return _folder(path)
    if not os.path.isfile(path):
        raise BadInput(f"{path} does not exist; expected a folder or .zip of images or an .npz with arr_0")
    return _archive(path)


@contextmanager
def refusing() -> Iterator[None]:
    """Turns FileNotFoundError and ValueError, which readers of files raise, into BadInput."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(str(error)) from None


def _archive(path: pathlib.Path) -> Images:
    with refusing():
        found = npz.headers(path)
    if "arr_0" not in found:
        raise BadInput(f"{path} holds {listed(sorted(found)) or 'nothing'}; expected images as arr_0")
    shape, fortran, dtype = found["arr_0"]
    if dtype != np.uint8:
        raise BadInput(f"{path}: arr_0 is {dtype}, expected uint8 in 0..255; images are not rescaled by guesswork")
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape or fortran:
        raise BadInput(f"{path}: arr_0 has shape {shape}{', Fortran order' * fortran}, expected [n, H, W, 1 or 3]")

    def blocks(size):
        with refusing():
            yield from npz.blocks(path, "arr_0", size)

    with refusing():
        stored = npz.read(path, ("ids", "seeds").__contains__)
    ids = {name: _range(path, name, array, shape[0]) for name, array in stored.items()}
    return Images(str(path), shape[0], tuple(shape[1:]), blocks, ids)


def _range(path, name: str, array: np.ndarray, count: int) -> dict[str, int]:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: {name} is {array.dtype} {array.shape}, expected one integer for each of {count} images"
        )
    return {"first": int(array.min()), "last": int(array.max()), "distinct": len(np.unique(array))}


def _folder(path: pathlib.Path) -> Images:
    with refusing():
        folder = folders.opened(path)
        names = folders.in_split(folder, None)
    shape = _pixels(folder, names[0]).shape

    def load(name):
        found = _pixels(folder, name)
        if found.shape != shape:
            sizes = " and ".join(f"{s[1]}x{s[0]} ({n})" for s, n in ((shape, names[0]), (found.shape, name)))
            raise BadInput(f"{path} holds images of sizes {sizes}; expected one size")
        return found

    def blocks(size):
        for start in range(0, len(names), size):
            yield np.stack([load(name) for name in names[start : start + size]])

    return Images(str(path), len(names), shape, blocks, {})


def _pixels(folder: folders.Folder, name: str) -> np.ndarray:
    """Returns a picture as uint8 [H, W, 3]."""
    try:
        return pictures.decode(folder.fetch(name), 3)
    except Exception as error:  # a file system, an archive or a decoder may fail
        raise BadInput(f"{folder.path / name}: {error}") from None

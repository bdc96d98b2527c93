"""Images on disk, block by block: a folder or .zip of pictures, or the .npz files of the ADM evaluation suite.

The .npz holds `arr_0`, uint8 [n, H, W, 3] (or 1 channel); `ids` or `seeds`, integers [n], are reported if they are
there, anything else is not looked at. A folder, with those inside it, holds pictures of one size, which
`experiments.data.pictures` decodes as it does for training, in the order of their names. What differs from training:
three channels always, grey repeated; sub-folders are no classes; and nothing is cropped or resized, since what is
measured is what a sampler wrote. No more than a block is in memory.
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
    """What is known before the pixels are read, and `blocks(size)`, which yields uint8 [<= size, H, W, C] in order."""

    path: str
    count: int
    shape: tuple[int, int, int]  # H, W, C
    blocks: Callable[[int], Iterator[np.ndarray]]
    ids: dict[str, dict[str, int]]  # of `ids` and `seeds`, if stored: first, last, distinct


def open_images(path) -> Images:
    """The images at `path`. Raises BadInput here, or from `blocks` if what follows is damaged."""
    path = pathlib.Path(path)
    if os.path.isdir(path) or path.suffix == ".zip":
        return _folder(path)
    if not os.path.isfile(path):
        raise BadInput(f"{path} does not exist; expected a folder or .zip of images or an .npz with arr_0")
    return _archive(path)


@contextmanager
def refusing() -> Iterator[None]:
    """What the readers of `experiments.data` raise, as BadInput."""
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
        held = npz.read(path, ("ids", "seeds").__contains__)
    ids = {name: _range(path, name, array, shape[0]) for name, array in held.items()}
    return Images(str(path), shape[0], tuple(shape[1:]), blocks, ids)


def _range(path, name: str, array: np.ndarray, count: int) -> dict[str, int]:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: {name} is {array.dtype} {array.shape}, expected one integer for each of {count} images"
        )
    return {"first": int(array.min()), "last": int(array.max()), "distinct": len(np.unique(array))}


def _folder(path: pathlib.Path) -> Images:
    with refusing():
        held = folders.opened(path)
        names = folders.in_split(held, None)
    shape = _pixels(held, names[0]).shape

    def load(name):
        found = _pixels(held, name)
        if found.shape != shape:
            sizes = " and ".join(f"{s[1]}x{s[0]} ({n})" for s, n in ((shape, names[0]), (found.shape, name)))
            raise BadInput(f"{path} holds images of sizes {sizes}; expected one size")
        return found

    def blocks(size):
        for start in range(0, len(names), size):
            yield np.stack([load(name) for name in names[start : start + size]])

    return Images(str(path), len(names), shape, blocks, {})


def _pixels(held: folders.Folder, name: str) -> np.ndarray:
    """uint8 [H, W, 3]."""
    try:
        return pictures.decode(held.fetch(name), 3)
    except Exception as error:  # of a file system, an archive or a decoder
        raise BadInput(f"{held.path / name}: {error}") from None

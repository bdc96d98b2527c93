"""Images on disk, block by block: a folder, or the .npz files of the ADM evaluation suite.

The .npz holds `arr_0`, uint8 [n, H, W, 3] (or 1 channel); `ids` or `seeds`, integers [n], are reported if they are
there, anything else is not looked at. A folder, with those inside it, holds 8-bit files of one size, grey or colour,
taken in the order of their paths. Nothing is resized, rescaled or unpickled, and no more than a block is in memory.
"""

import contextlib
import math
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.fid import BadInput

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MODES = {"1", "L", "P", "RGB"}  # what converts to 8-bit RGB without inventing or losing anything
BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, NotImplementedError)


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
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise BadInput(f"{path} does not exist; expected a folder of images or an .npz with arr_0")
    return _archive(path)


def members(path) -> set[str]:
    """Names of the arrays in an .npz. Raises BadInput if it is none, for instance half of one."""
    with _readable(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_arrays(path, names) -> dict[str, np.ndarray]:
    """The arrays of these names, those that are there, never unpickled. Raises BadInput."""
    with _readable(path), np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names if name in arrays}


@contextlib.contextmanager
def _readable(path):
    """Turns whatever NumPy and zipfile make of a damaged file into one line."""
    try:
        yield
    except BROKEN as error:
        raise BadInput(f"{path} is not a whole .npz file of plain arrays ({' '.join(str(error).split())})") from None


def _archive(path: pathlib.Path) -> Images:
    if "arr_0" not in (found := members(path)):
        raise BadInput(f"{path} holds {', '.join(sorted(found)) or 'nothing'}; expected images as arr_0")
    with _readable(path), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        shape, fortran, dtype = _header(file)
    if dtype != np.uint8:
        raise BadInput(f"{path}: arr_0 is {dtype}, expected uint8 in 0..255; images are not rescaled by guesswork")
    if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape or fortran:
        raise BadInput(f"{path}: arr_0 has shape {shape}{', Fortran order' * fortran}, expected [n, H, W, 1 or 3]")

    def blocks(size):
        with _readable(path), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            _header(file)
            for start in range(0, shape[0], size):
                rows = min(size, shape[0] - start)
                wanted = rows * math.prod(shape[1:])
                content = file.read(wanted)
                if len(content) != wanted:
                    raise ValueError(f"arr_0 announces {shape[0]} images and ends before number {start + rows}")
                if start + rows == shape[0]:
                    file.read(1)  # past the end, which checks the sum over what was read
                yield np.frombuffer(content, np.uint8).reshape(rows, *shape[1:])

    ids = {name: _range(path, name, array, shape[0]) for name, array in read_arrays(path, ("ids", "seeds")).items()}
    return Images(str(path), shape[0], tuple(shape[1:]), blocks, ids)


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"arr_0 has npy version {version}")
    return read[version](file)


def _range(path, name: str, array: np.ndarray, count: int) -> dict[str, int]:
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: {name} is {array.dtype} {array.shape}, expected one integer for each of {count} images"
        )
    return {"first": int(array.min()), "last": int(array.max()), "distinct": len(np.unique(array))}


def _folder(path: pathlib.Path) -> Images:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise BadInput(f"{path} holds no images; expected files ending in {', '.join(sorted(SUFFIXES))}")
    shape = _pixels(files[0]).shape

    def load(file):
        pixels = _pixels(file)
        if pixels.shape != shape:
            sizes = " and ".join(f"{s[1]}x{s[0]} ({f.name})" for s, f in ((shape, files[0]), (pixels.shape, file)))
            raise BadInput(f"{path} holds images of sizes {sizes}; expected one size")
        return pixels

    def blocks(size):
        for start in range(0, len(files), size):
            yield np.stack([load(file) for file in files[start : start + size]])

    return Images(str(path), len(files), shape, blocks, {})


def _pixels(file: pathlib.Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    try:
        with Image.open(file) as image:
            if image.mode not in MODES:
                raise BadInput(
                    f"{file} has mode {image.mode}, expected 8-bit grey, palette or RGB without transparency"
                )
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(f"{file} is not a readable image ({' '.join(str(error).split())})") from None

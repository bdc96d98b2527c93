"""Reads small data sets as whole arrays, and splits them."""

import gzip
import math
import pathlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.files.npz import DEFLATED
from experiments.files.opening import existing, reading

IDX_UINT8 = 0x08  # the only element type that MNIST and its relatives use


class Labelled(NamedTuple):
    """Images [n, H, W, C], uint8 0..255 or float32 in [0, 1], with labels int32 [n] and the names of the classes."""

    images: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] | None = None


def read_idx(path) -> np.ndarray:
    """Reads the uint8 array in an idx file, which is gzipped if its name ends in .gz.

    The layout is two zero bytes, the element type (8 = uint8), the rank, one big-endian uint32 per axis, the elements.
    Raises FileNotFoundError, and ValueError for any other layout.
    Source: the description of the MNIST file format by LeCun, Cortes and Burges.
    """
    path = existing(path, "an idx file (.gz or plain)")
    zipped = path.suffix == ".gz"
    kind = "a readable gzip file" if zipped else "a readable file"
    with reading(path, kind), gzip.open(path) if zipped else path.open("rb") as file:
        head = file.read(4)
        rank = head[3] if head[:3] == bytes([0, 0, IDX_UINT8]) and len(head) == 4 else 0
        sizes = file.read(4 * rank)
        shape = struct.unpack(f">{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4])
        announced = math.prod(shape)
        possible = announced <= path.stat().st_size * (DEFLATED if zipped else 1)
        raw = file.read(announced + 1) if possible and shape else b""  # one byte more shows whether something follows
    if not shape or len(shape) != rank:
        raise ValueError(f"{path} is not an idx file of uint8 (expected it to start with bytes 0 0 8)")
    if len(raw) != announced:
        found = "more" if len(raw) > announced else f"{len(raw)} bytes" if possible else "fewer bytes"
        raise ValueError(f"{path} announces shape {shape} but holds {found}")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def mnist(folder) -> tuple[Labelled, Labelled]:
    """Reads the training and the test set of MNIST, or of a set with the same four files (Fashion-MNIST).

    The files are {train,t10k}-{images-idx3,labels-idx1}-ubyte, each plain or with .gz. Images are uint8 [n, H, W, 1].
    Raises FileNotFoundError for the first missing file, and ValueError if there are not as many labels as images.
    """
    return tuple(_mnist_part(pathlib.Path(folder), part) for part in ("train", "t10k"))


def digits() -> Labelled:
    """Returns the 1,797 handwritten digits of scikit-learn, with images float32 [n, 8, 8, 1] in [0, 1].

    Raises ModuleNotFoundError if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the digits need scikit-learn: pip install scikit-learn") from None
    bunch = load_digits()
    return Labelled((bunch.images[..., None] / 16).astype(np.float32), bunch.target.astype(np.int32))


def split(n: int, fractions: Sequence[float], seed: int) -> tuple[np.ndarray, ...]:
    """Returns disjoint index arrays, one per fraction f_i of n, from one permutation drawn with `seed`.

    Part i has the rows from round(n (f_1 + .. + f_{i-1})) to round(n (f_1 + .. + f_i)) of the permutation. Its size is
    within one of n f_i, and fractions that sum to one use every row.
    Raises ValueError unless the fractions are positive and sum to at most one.
    """
    if not fractions or min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise ValueError(f"fractions must be positive and sum to at most 1, got {tuple(fractions)}")
    order = np.random.default_rng(seed).permutation(n)
    ends = np.rint(n * np.cumsum(fractions)).astype(int)
    return tuple(np.split(order[: ends[-1]], ends[:-1]))


def to_unit(images: np.ndarray) -> np.ndarray:
    """Returns uint8 images 0..255 as float32 in [0, 1]."""
    return images.astype(np.float32) / 255


def _mnist_part(folder: pathlib.Path, part: str) -> Labelled:
    images_at = _plain_or_gz(folder / f"{part}-images-idx3-ubyte")
    labels_at = _plain_or_gz(folder / f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_at), read_idx(labels_at)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{images_at} holds shape {images.shape} and {labels_at} {labels.shape}; expected [n, H, W] and [n]"
        )
    return Labelled(images[..., None], labels.astype(np.int32))


def _plain_or_gz(path: pathlib.Path) -> pathlib.Path:
    """Returns `path` if it exists, else `path`.gz."""
    return path if path.exists() else path.with_name(path.name + ".gz")

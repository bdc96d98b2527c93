"""Reads arrays from .npz files. It compares the shapes that a file announces with the file's size before it allocates
memory, and unpickles nothing.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.files.opening import existing, reading

WHOLE = "a whole .npz file of plain arrays"
DEFLATED = 1032  # the largest factor by which deflate can shrink data (zlib's technical notes)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Header(NamedTuple):
    """The shape, order and type that a file announces for an array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def headers(path) -> dict[str, Header]:
    """Returns the header of every array in an .npz file, by name.

    Raises FileNotFoundError, and ValueError for a file that is damaged or whose headers do not match its size.
    """
    path = existing(path, "an .npz file of arrays")
    with reading(path, WHOLE), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        return {member.filename.removesuffix(".npy"): _checked(archive, member) for member in members}


def read(path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """Reads the arrays whose names are `wanted`, and verifies their checksums. Raises the errors of `headers`."""
    names = [name for name in headers(path) if wanted(name)]
    with reading(path, WHOLE), np.load(path, allow_pickle=False) as arrays:
        return {name: _native(arrays[name]) for name in names}


def blocks(path, name: str, size: int) -> Iterator[np.ndarray]:
    """Yields the rows of an array in C order, `size` at a time (fewer at the end). Raises the errors of `headers`."""
    header = headers(path)[name]
    with reading(path, WHOLE), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        _header(file)
        for start in range(0, header.shape[0], size):
            shape = (min(size, header.shape[0] - start), *header.shape[1:])
            content = file.read(math.prod(shape) * header.dtype.itemsize)
            if start + size >= header.shape[0]:
                file.read(1)  # reading past the end makes zipfile verify the checksum
            yield np.frombuffer(content, header.dtype).reshape(shape)


def _native(array: np.ndarray) -> np.ndarray:
    """Returns the array in this machine's byte order, the only one that JAX accepts."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _header(file) -> Header:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"npy version {version}")
    return Header(*HEADERS[version](file))


def _checked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    packed, unpacked = member.compress_size, member.file_size
    most = {zipfile.ZIP_STORED: packed, zipfile.ZIP_DEFLATED: DEFLATED * packed}.get(member.compress_type)
    if most is None:
        raise ValueError(f"{member.filename} is compressed by method {member.compress_type}, which is not numpy's")
    if packed > os.fstat(archive.fp.fileno()).st_size or unpacked > most:
        raise ValueError(f"{member.filename} claims {unpacked} bytes, more than the file can hold")
    with archive.open(member) as file:
        header = _header(file)
        size = unpacked - file.tell()
    if not header.dtype.hasobject and math.prod(header.shape) * header.dtype.itemsize != size:
        raise ValueError(f"{member.filename} announces {header.dtype} {header.shape} and holds {size} bytes")
    return header

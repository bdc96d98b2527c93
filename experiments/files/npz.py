"""Arrays in .npz files. What a file announces is compared with what it holds before anything is allocated, and nothing
is unpickled.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from experiments.files.opening import existing, reading

WHOLE = "a whole .npz file of plain arrays"
DEFLATED = 1032  # times smaller than what it holds is what deflate makes of a file at most (zlib's technical notes)
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Header(NamedTuple):
    """What is known of an array before it is read."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


def headers(path) -> dict[str, Header]:
    """What the arrays in an .npz file announce, by name.

    Raises FileNotFoundError, and ValueError for a file that is damaged or does not hold what it announces.
    """
    path = existing(path, "an .npz file of arrays")
    with reading(path, WHOLE), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        return {member.filename.removesuffix(".npy"): _checked(archive, member) for member in members}


def read(path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """The arrays of an .npz file whose names are wanted, checked against their sums. Raises as `headers`."""
    names = [name for name in headers(path) if wanted(name)]
    with reading(path, WHOLE), np.load(path, allow_pickle=False) as arrays:
        return {name: _native(arrays[name]) for name in names}


def blocks(path, name: str, size: int) -> Iterator[np.ndarray]:
    """The rows of an array in C order, `size` at a time; the last may be fewer. Raises as `headers`."""
    header = headers(path)[name]
    with reading(path, WHOLE), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        _header(file)
        for start in range(0, header.shape[0], size):
            shape = (min(size, header.shape[0] - start), *header.shape[1:])
            content = file.read(math.prod(shape) * header.dtype.itemsize)
            if start + size >= header.shape[0]:
                file.read(1)  # past the end, which checks the sum over what was read
            yield np.frombuffer(content, header.dtype).reshape(shape)


def _native(array: np.ndarray) -> np.ndarray:
    """In the byte order of this machine, the only one that JAX takes."""
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
        held = unpacked - file.tell()
    if not header.dtype.hasobject and math.prod(header.shape) * header.dtype.itemsize != held:
        raise ValueError(f"{member.filename} announces {header.dtype} {header.shape} and holds {held} bytes")
    return header

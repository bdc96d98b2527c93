"""Writes samples in parts, each an .npz that is written whole or not at all, and joins the parts into one .npz.

`write` puts a part on the disk and only then renames it into place; `read` verifies its checksums. `assemble` holds
one part in memory at a time. It writes the same bytes whether one run or several killed runs made the parts.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.files.npz import read
from experiments.runtime.writing import replacing
from guidance.keeping import write as write

Arrays = dict[str, np.ndarray]


def assemble(path: pathlib.Path, parts: Sequence[pathlib.Path], names: Sequence[str], count: int) -> None:
    """Joins the arrays `names` of all parts along their first axis, into one uncompressed .npz of `count` rows."""
    # np.savez writes the same bytes, but needs the whole arrays in memory
    with replacing(path) as fresh, zipfile.ZipFile(fresh, "w") as archive:
        for name in names:
            _join(archive, name, parts, count)


def _join(archive: zipfile.ZipFile, name: str, parts: Sequence[pathlib.Path], count: int) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        for i, array in enumerate(_each(name, parts)):
            if i == 0:
                header = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(member, header | {"shape": (count, *array.shape[1:])})
            member.write(array.tobytes())


def _each(name: str, parts: Sequence[pathlib.Path]) -> Iterator[np.ndarray]:
    for part in parts:
        yield np.ascontiguousarray(read(part, name.__eq__)[name])

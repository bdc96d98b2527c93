"""Samples on their way to one .npz: parts that are written whole or not at all, and what is made of them.

A part is an .npz of its own, renamed into place once it is on the disk, and read back with its checksums; what is
damaged counts as absent. The whole is written member by member, so that no more than one part is in memory, with the
same bytes whether the parts came from one run or from several that were killed.
"""

import pathlib
import zipfile
from collections.abc import Iterator, Sequence

import numpy as np

from experiments.files.npz import read  # of a part, too
from experiments.runtime.writing import replacing
from guidance.keeping import write as write  # its bytes reach the disk before its name

Arrays = dict[str, np.ndarray]


def assemble(path: pathlib.Path, parts: Sequence[pathlib.Path], names: Sequence[str], count: int) -> None:
    """Joins the arrays `names` of all parts along their first axis, `count` rows in all, in one uncompressed .npz."""
    # np.savez would want the whole arrays; it writes the same: members without a date
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

"""Saves the state of a fit as one file, so that a fit that was killed can go on where it was.

`guidance.fit` uses this module when it is given a folder; no other module of `guidance` touches files. The state is
about a megabyte, so one .npz is enough. A new file is written beside the old one and then replaces it whole; damage is
noticed by the check sums of its zip archive. (The jobs also save denoisers: see `experiments.runtime.checkpoints`.)
"""

import json
import os
import pathlib
import re
import zipfile
import zlib
from typing import Any

import jax
import numpy as np

NAME = "fit.npz"
_ABOUT = "about"


def save(folder, about: dict[str, Any], state: Any) -> None:
    """Writes the tree of arrays `state` to folder/fit.npz, with `about`, which describes the fit it belongs to."""
    path = pathlib.Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)} | _named(state))


def write(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes an uncompressed .npz; the file appears under its name only when it is complete."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with open(fresh, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def restore(folder, about: dict[str, Any], like: Any) -> Any | None:
    """Returns the state in a folder, as a tree of the structure of `like`, or None if there is no file.

    Raises ValueError, in one line, if the file is damaged, or if its `about` differs: the line says in what.
    """
    path = pathlib.Path(folder) / NAME
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stored = json.loads(arrays.pop(_ABOUT).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); remove it to start over") from None
    wanted = json.loads(json.dumps(about))
    for name in dict.fromkeys([*wanted, *stored]):
        if stored.get(name) != wanted.get(name):
            raise ValueError(
                f"{path} holds another fit: {name} is {stored.get(name)!r} there, {wanted.get(name)!r} here; take "
                "another folder"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])


def summed(tree: Any) -> int:
    """Returns a check sum (CRC-32) of all arrays and numbers of a tree; other leaves are left out."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float)):
            if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            total = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).tobytes(), total)
    return total


def program(traced: jax.stages.Traced) -> int:
    """Returns a check sum of what a function computes: of its operations and of the arrays that it closes over.

    It tells apart what names do not, such as two networks of one name or two schedules with different constants.
    """
    operations = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))  # drops addresses of functions, which vary
    return zlib.crc32(operations.encode(), summed(traced.jaxpr.consts))


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

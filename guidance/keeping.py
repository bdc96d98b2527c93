"""The state of a fit as one file, so that a killed one goes on where it was.

This is the one module of `guidance` that touches files, for people who pass a folder to `guidance.fit`. The state is
that of a small network, a megabyte, so that one .npz will do: it is written beside the old one and put in its place as
a whole, and a zip archive carries sums of what it holds. (The jobs keep denoisers too: see
`experiments.runtime.checkpoints`.)
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
    """Writes the tree of arrays `state`, with what it belongs to, as folder/fit.npz."""
    path = pathlib.Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, {_ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8)} | _named(state))


def write(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes an uncompressed .npz: the file appears only when it is whole."""
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
    """The state in a folder, in the structure of `like`; None where there is none.

    Raises ValueError, in one line, if the file is damaged or belongs to another fit, and says what differs.
    """
    path = pathlib.Path(folder) / NAME
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file) as held:
            arrays = {name: held[name] for name in held.files}
        stored = json.loads(arrays.pop(_ABOUT).tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); remove it to start over") from None
    here = json.loads(json.dumps(about))
    for name in dict.fromkeys([*here, *stored]):
        if stored.get(name) != here.get(name):
            raise ValueError(
                f"{path} holds another fit: {name} is {stored.get(name)!r} there, {here.get(name)!r} here; take "
                "another folder"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in _named(like)])


def summed(tree: Any) -> int:
    """A sum over all arrays of a tree, to tell whether they are the same ones."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float)):
            if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            total = zlib.crc32(np.ascontiguousarray(np.asarray(leaf)).tobytes(), total)
    return total


def program(traced: jax.stages.Traced) -> int:
    """A sum over what a function computes: its operations, and the values of the arrays that it closes over.

    Two functions of one name, schedules of other constants and networks that predict something else differ in it.
    """
    operations = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))  # without the addresses of Python's functions
    return zlib.crc32(operations.encode(), summed(traced.jaxpr.consts))


def _named(tree: Any) -> dict[str, np.ndarray]:
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

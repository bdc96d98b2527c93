"""What the importers of published weights share: the check of what a file holds, the torch layouts, tables of names.

An importer is a table: a row says under which names a file keeps one of our arrays and in which layout. The same table
gives the names and shapes to expect, our params from a file's arrays, and the file's arrays from our params.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from guidance.words import listed

Shapes = dict[str, tuple[int, ...]]


def check_arrays(what: str, arrays: Mapping[str, np.ndarray], shapes: Shapes) -> None:
    """Compares `arrays` with the names and shapes that the network called `what` has.

    Raises one ValueError, on one line, that lists missing names, unexpected names, wrong shapes, arrays that are not
    of real floating point numbers (float16, bfloat16, float32, ..) and arrays with a NaN or an infinity: the first
    few of each, and how many there are beside them.
    """
    missing = [f"missing {name} {shapes[name]}" for name in sorted(shapes.keys() - arrays.keys())]
    unexpected = [f"unexpected {name}" for name in sorted(arrays.keys() - shapes.keys())]
    faults = []
    for name in sorted(shapes.keys() & arrays.keys()):
        array = np.asarray(arrays[name])
        if array.shape != shapes[name]:
            faults.append(f"{name} has shape {array.shape}, expected {shapes[name]}")
        if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize > 8:  # longer ones JAX lacks
            faults.append(f"{name} has dtype {array.dtype}, expected floating point numbers")
        elif not np.all(np.isfinite(array)):
            faults.append(f"{name} holds NaN or infinity")
    kinds = [listed(kind, between="; ") for kind in (missing, unexpected, faults) if kind]
    if kinds:
        raise ValueError(f"{what} weights: {'; '.join(kinds)}")


def dense(weight: np.ndarray, bias: np.ndarray) -> dict:
    """The params of nn.Dense from a torch Linear: [out, in] -> [in, out]."""
    return {"kernel": jnp.asarray(np.transpose(weight)), "bias": jnp.asarray(bias)}


def conv(weight: np.ndarray, bias: np.ndarray) -> dict:
    """The params of nn.Conv from a torch Conv2d: [out, in, H, W] -> [H, W, in, out]."""
    return {"kernel": jnp.asarray(np.transpose(weight, (2, 3, 1, 0))), "bias": jnp.asarray(bias)}


def norm(weight: np.ndarray, bias: np.ndarray) -> dict:
    """The params of nn.LayerNorm from a torch LayerNorm."""
    return {"scale": jnp.asarray(weight), "bias": jnp.asarray(bias)}


class Layout(NamedTuple):
    """How a file lays an array out: `ours(theirs, our shape) -> ours` and its inverse `theirs(ours) -> theirs`."""

    ours: Callable
    theirs: Callable


def matrix(inputs: int = 1) -> Layout:
    """A torch Linear's weight [out, in]; ours [*in, *out] has `inputs` axes of input (nn.DenseGeneral, nn.Dense)."""
    return Layout(
        lambda a, shape: a.T.reshape(shape),
        lambda a: a.reshape(math.prod(a.shape[:inputs]), -1).T,
    )


def patches(size: int) -> Layout:
    """A torch Conv2d's weight [out, in, size, size]; ours [size * size * in, out] acts on flattened square patches."""
    return Layout(
        lambda a, shape: a.transpose(2, 3, 1, 0).reshape(shape),
        lambda a: a.reshape(size, size, -1, a.shape[-1]).transpose(3, 2, 0, 1),
    )


KERNEL = Layout(lambda a, shape: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # a torch Conv2d's weight
FLAT = Layout(lambda a, shape: a.reshape(shape), lambda a: a.reshape(-1))  # a torch bias; ours may have several axes
SAME = Layout(lambda a, shape: a, lambda a: a)


class Row(NamedTuple):
    """One of our arrays, by its path ("block_0/up/kernel"), and the torch arrays that make it, joined on axis 0.

    Several rows of one path are copies that a file keeps, and must be equal.
    """

    path: str
    names: tuple[str, ...]
    layout: Layout


def layer(path: str, names: str | Sequence[str], weight: Layout) -> list[Row]:
    """The rows of a linear layer or convolution: kernel and bias, from `<name>.weight` and `<name>.bias`."""
    names = (names,) if isinstance(names, str) else tuple(names)
    return [
        Row(f"{path}/kernel", tuple(f"{name}.weight" for name in names), weight),
        Row(f"{path}/bias", tuple(f"{name}.bias" for name in names), FLAT),
    ]


def norm_rows(path: str, name: str) -> list[Row]:
    """The rows of a normalisation's scale and bias."""
    return [Row(f"{path}/scale", (f"{name}.weight",), SAME), Row(f"{path}/bias", (f"{name}.bias",), SAME)]


def shapes_of(rows: Sequence[Row], ours) -> Shapes:
    """Names and shapes of the file that `rows` describe, for params (or their ShapeDtypeStructs) `ours`."""
    flat = traverse_util.flatten_dict(ours, sep="/")
    shapes: Shapes = {}
    for row in rows:
        leading, *rest = jax.eval_shape(row.layout.theirs, flat[row.path]).shape
        shapes |= dict.fromkeys(row.names, (leading // len(row.names), *rest))
    return shapes


def assemble(what: str, rows: Sequence[Row], arrays: Mapping[str, np.ndarray], ours) -> dict:
    """The params that `rows` make from `arrays`, which `check_arrays` has passed; dtypes are kept.

    Raises one ValueError, on one line, that lists every copy that differs from the first.
    """
    flat = traverse_util.flatten_dict(ours, sep="/")
    made, faults = {}, []
    for row in rows:
        whole = np.concatenate([arrays[name] for name in row.names]) if len(row.names) > 1 else arrays[row.names[0]]
        array = row.layout.ours(np.asarray(whole), flat[row.path].shape)
        if row.path not in made:
            made[row.path] = jnp.asarray(array)
        elif not np.array_equal(made[row.path], array):
            faults.append(f"{', '.join(row.names)} should be a copy of the first block's and is not")
    if faults:
        raise ValueError(f"{what} weights: {listed(faults, between='; ')}")
    return traverse_util.unflatten_dict(made, sep="/")


def disassemble(rows: Sequence[Row], params) -> dict[str, np.ndarray]:
    """The arrays of the file that `rows` describe; the inverse of `assemble`."""
    flat = traverse_util.flatten_dict(params, sep="/")
    arrays: dict[str, np.ndarray] = {}
    for row in rows:
        whole = row.layout.theirs(np.asarray(flat[row.path]))
        arrays |= dict(zip(row.names, np.split(whole, len(row.names)), strict=True))
    return arrays

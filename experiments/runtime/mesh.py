"""Devices: the mesh, and how arrays lie on it. It changes where numbers are computed, not which.

The mesh has two axes: `data`, over which batches are cut, and `model`, for weights that have rules in
guidance.nets.sharding. With one device `shard` commits arrays to it, and every other function returns its argument.
Axes are Auto: jax decides how to cut arrays that have no rule, and inserts the communication.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from experiments.config import ConfigError
from experiments.runtime import sizes
from guidance.nets.sharding import batch_sharding, shardings


class Layout(NamedTuple):
    """The mesh, with the axes "data" and "model", and whether weights and optimiser state are cut over "data" too."""

    mesh: Mesh
    fsdp: bool


_current: Layout | None = None


def use(data: int | None = None, model: int = 1, fsdp: bool = False) -> None:
    """Sets the layout of the process. Raises ConfigError if there are not data * model devices."""
    global _current
    _current = Layout(make(data, model), fsdp)


@contextmanager
def laid_out(data: int | None = None, model: int = 1, fsdp: bool = False) -> Iterator[None]:
    """Sets the layout by `use` for as long as the context lasts; then it is again what it was before."""
    global _current
    before = _current
    use(data, model, fsdp)
    try:
        yield
    finally:
        _current = before


def current() -> Layout:
    """Returns the layout that `use` has set or, without one, a mesh over all devices."""
    if _current is None:
        use()
    return _current


def make(data: int | None = None, model: int = 1) -> Mesh:
    """Returns a mesh of data x model devices; data None: as many as there are.

    A CPU that pretends to be several devices counts as one, since cutting it gains nothing, unless `data` is larger or
    there are several processes. Raises ConfigError if there are not enough devices or, with several processes, if some
    would be left out.
    """
    devices = jax.devices()
    if data is None and model == 1 and jax.process_count() == 1 and devices[0].platform == "cpu":
        data = 1
    data = len(devices) // model if data is None else data
    wanted = data * model
    left_out = wanted != len(devices) and jax.process_count() > 1
    if wanted > len(devices) or wanted == 0 or left_out:
        raise ConfigError(f"--mesh=data:{data},model:{model} wants {wanted} devices: there are {len(devices)}")
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted])


def part(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): which of `count` equal parts of a batch this process feeds, as `data.Loader` takes it.

    Processes that share a row of the mesh, because the model axis spans them, feed the same part. Raises ConfigError
    if the rows of a process are not contiguous.
    """
    fed = np.array([[d.process_index == jax.process_index() for d in row] for row in mesh.devices]).any(axis=1)
    places = np.flatnonzero(fed)
    count, rest = divmod(len(fed), len(places))
    if rest or (places != places[0] + np.arange(len(places))).any() or places[0] % len(places):
        shape = f"data:{len(fed)},model:{mesh.shape['model']}"
        raise ConfigError(f"--mesh={shape} cuts batches within a process; allowed: axes that processes divide evenly")
    return int(places[0]) // len(places), count


def share(batch: int) -> tuple[int, int]:
    """Returns the part (index, count) of a batch that this process reads; all, if `places()` does not divide it."""
    return (0, 1) if batch % places() else part(current().mesh)


def place(batch: Any, rows: int) -> Any:
    """Makes global arrays [rows, ...] of a batch of which this process has `share(rows)`; keeps other leaves.

    They are cut over `data`, or whole on every device if `places()` does not divide the rows.
    """
    mesh = current().mesh
    lie = NamedSharding(mesh, PartitionSpec()) if rows % places() else batch_sharding(mesh)

    def global_array(value):
        return jax.make_array_from_process_local_data(lie, value) if isinstance(value, np.ndarray) else value

    return jax.tree.map(global_array, batch)


def places() -> int:
    """Returns the number of parts that batches are cut into: the size of the axis `data`."""
    return current().mesh.shape["data"]


def memory() -> int:
    """Returns the bytes of memory of all devices of the layout, or of their hosts where they share that memory."""
    devices = [device for device in current().mesh.devices.flat if device.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return (sum(limits) if all(limits) else sizes.memory()) * jax.process_count()


def rounded(rows: int) -> int:
    """Returns `rows` rounded up to a multiple of `places()`."""
    return -(-rows // places()) * places()


def cut(batch: Any) -> jax.Array:
    """Returns an array [batch, ...] with its rows over `data`, as `spread` does inside jit.

    Every process must have the same whole array, and `places()` must divide the batch.
    """
    mesh, values = current().mesh, np.asarray(batch)
    return jax.make_array_from_callback(values.shape, batch_sharding(mesh), lambda index: values[index])


def spread(tree: Any) -> Any:
    """Cuts the first axis of every array over `data`, inside jit, unless `places()` does not divide it."""
    mesh = current().mesh
    if mesh.size == 1:
        return tree

    def laid(x):
        whole = x.shape[0] % places()
        return jax.lax.with_sharding_constraint(
            x, NamedSharding(mesh, PartitionSpec()) if whole else batch_sharding(mesh)
        )

    return jax.tree.map(laid, tree)


def spreading(function: Callable) -> Callable:
    """Returns a function of (x, t, cond) with arguments and value cut over `data`: a denoiser in data parallel.

    If `places()` does not divide the rows, copies of the last one fill them up, and are dropped from the value. The
    returned function is a pytree with the leaves of `function`.
    """
    return Partial(_in_parallel, function if isinstance(function, Partial) else Partial(function))


def _in_parallel(function: Callable, *arguments):
    rows = jax.tree.leaves(arguments)[0].shape[0]
    if rows == rounded(rows):
        return spread(function(*spread(arguments)))
    value = spread(function(*spread(filled(arguments, rounded(rows)))))
    return spread(jax.tree.map(lambda x: x[:rows], value))


def filled(tree: Any, rows: int) -> Any:
    """Fills every array of the tree up to `rows` rows, with copies of its last one."""
    return jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], rows - x.shape[0], axis=0)]), tree)


def shard(state: Any) -> Any:
    """Places weights and optimiser state on the mesh, by the rules of guidance.nets.sharding.

    An array with a rule is cut over `model`, with fsdp over `data` too; others are whole on every device. Every
    process must have the same whole arrays. A single device, too, commits them: results are committed, and jit would
    compile again as soon as one takes the place of an array that is not.
    """
    mesh, fsdp = current()
    if mesh.size == 1:
        return jax.device_put(state, mesh.devices.item())

    def global_array(x, sharding):
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        values = _whole(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: values[index])

    return jax.tree.map(global_array, state, shardings(state, mesh, fsdp=fsdp))


def local(tree: Any) -> Any:
    """Returns the arrays whole, on this process's device: for everything that is not computed on the mesh."""
    return tree if current().mesh.size == 1 else jax.tree.map(lambda x: jnp.asarray(_whole(x)), tree)


def whole(tree: Any) -> Any:
    """Returns the arrays whole, in NumPy."""
    return jax.tree.map(_whole, tree)


def _whole(x) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

"""Helpers for arrays [batch, ...] and scalars [batch]: broadcasting without implicit rank promotion, keys, norms."""

from typing import Any

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.types import Array, Cond


def like(a: Array, x: Array) -> Array:
    """Reshapes a per-sample scalar `a` [batch] (or a plain scalar) to [batch, 1, ..., 1] with the rank of `x`."""
    a = jnp.asarray(a)
    return a if a.ndim == 0 else a.reshape(a.shape + (1,) * (x.ndim - 1))


def as_state(x: Array) -> Array:
    """Casts x to float32 or wider, the dtype of a sampler's state, so that small steps add up; integers stay."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if _is_floating(x) else x


def with_dtypes_of(new: Any, old: Any) -> Any:
    """Casts the floating leaves of `new` to the dtypes of the leaves of `old`, as the carry of a scan must be."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype) if _is_floating(a) and _is_floating(b) else a, new, old)


def _is_floating(a: Array) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def row_keys(key: Array, ids: Array) -> Array:
    """Returns one key per row, fold_in(key, id): ids [batch] -> keys [batch]. A row's key depends on its id alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def normal_like(keys: Array, x: Array) -> Array:
    """Draws standard normal noise of the shape and dtype of `x` [batch, ...] from one key per row, keys [batch]."""
    return jax.vmap(lambda key, row: jax.random.normal(key, row.shape, row.dtype))(keys, x)


def null_like(cond: Cond, null: Cond) -> Cond:
    """Repeats the null condition (leaves without batch axis, e.g. the label C) to the shapes of `cond`."""
    checks.null_fits(cond, null)
    return jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), cond, null)


def row_dot(a: Array, b: Array) -> Array:
    """Returns the inner product of each row of a and b [batch, ...], over all other axes: [batch]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def row_norm(a: Array) -> Array:
    """Returns the Euclidean norm of each row of a [batch, ...], over all other axes: [batch].

    Dividing by the largest entry avoids overflow and underflow. The gradient at zero is zero.
    """
    flat = a.reshape(a.shape[0], -1)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat), axis=-1))
    zero = largest == 0
    largest = jnp.where(zero, 1, largest)
    squares = jnp.sum((flat / largest[:, None]) ** 2, axis=-1)
    return jnp.where(zero, 0, largest * jnp.sqrt(jnp.where(zero, 1, squares)))


def unit(a: Array) -> Array:
    """Returns a/|a| for each row of a [batch, ...]; it is zero, with zero gradient, where the row is zero."""
    return ratio(a, like(row_norm(a), a))


def ratio(a: Array, b: Array, otherwise=0.0) -> Array:
    """Returns a / b elementwise, and `otherwise`, with zero gradient, where b is zero."""
    zero = b == 0
    return jnp.where(zero, otherwise, a / jnp.where(zero, 1, b))


def safe_sqrt(a: Array) -> Array:
    """Returns sqrt(max(a, 0)) elementwise. Where a <= 0 its gradient is 0, not infinite. NaN stays NaN."""
    zero = a <= 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, a)))

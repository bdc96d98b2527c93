"""Broadcasting helpers for per-sample scalars, so that no operation relies on implicit rank promotion."""

import jax
import jax.numpy as jnp

from guidance.types import Array, Cond


def like(a: Array, x: Array) -> Array:
    """Reshapes a per-sample scalar `a` [batch] (or a plain scalar) to [batch, 1, ..., 1] with the rank of `x`."""
    a = jnp.asarray(a)
    return a if a.ndim == 0 else a.reshape(a.shape + (1,) * (x.ndim - 1))


def normal_like(keys: Array, x: Array) -> Array:
    """Standard normal noise of the shape and dtype of `x` [batch, ...] from one key per sample, `keys` [batch]."""
    return jax.vmap(lambda key, row: jax.random.normal(key, row.shape, row.dtype))(keys, x)


def null_like(cond: Cond, null: Cond) -> Cond:
    """The null condition `null` (leaves without batch axis, e.g. the int label C) repeated to the shape of `cond`."""
    return jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), cond, null)


def row_dot(a: Array, b: Array) -> Array:
    """Inner product per sample over all other axes: [batch, ...] x [batch, ...] -> [batch]."""
    return jnp.sum((a * b).reshape(a.shape[0], -1), axis=-1)


def row_norm(a: Array) -> Array:
    """Euclidean norm per sample over all other axes, [batch, ...] -> [batch]; its gradient at zero is zero."""
    squared = row_dot(a, a)
    zero = squared == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def ratio(a: Array, b: Array, otherwise=0.0) -> Array:
    """a / b elementwise, and `otherwise`, with zero gradient, where b is zero."""
    zero = b == 0
    return jnp.where(zero, otherwise, a / jnp.where(zero, 1, b))

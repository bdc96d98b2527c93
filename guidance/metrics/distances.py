"""Squared Euclidean distances between the rows of two blocks, accurate where each of two ways is."""

import jax
import jax.numpy as jnp

from guidance.types import Array

# Up to this many features the differences are formed one feature at a time and fuse with whatever reduces them: no
# block is written to memory. Beyond it a matrix product is faster, and is what accelerators are built for.
EXPLICIT_FEATURES = 8


def squared_distances(x: Array, y: Array) -> Array:
    """|x_i - y_j|^2 of rows x [n, d], y [m, d] as [n, m].

    d <= 8: summed squared differences, relative error of a few eps, exactly 0 for equal rows. d > 8: the Gram form
    |x|^2 + |y|^2 - 2 x.y after subtracting the mean row of y from both (distances do not change, the norms that
    cancel shrink to the spread of the data), clipped at 0. Its absolute error is about eps (|x|^2 + |y|^2): nothing
    for typical pairs, whose distance is of that size, but equal rows may come out as far apart as sqrt(eps) times
    their norm. So callers mask self pairs instead of relying on a zero diagonal. Our choice.
    """
    d = x.shape[1]
    if d <= EXPLICIT_FEATURES:
        total = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
        for k in range(d):
            total += jnp.square(x[:, k][:, None] - y[:, k][None, :])
        return total
    centre = jax.lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))
    x, y = x - centre, y - centre
    # HIGHEST: the default on accelerators rounds the factors to 8 or 11 bits, which the cancellation would amplify.
    gram = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)[None, :]
    return jnp.maximum(norms - 2 * gram, 0)


def padded_blocks(x: Array, size: int) -> Array:
    """Rows x [n, d] as [blocks, size, d]. The end is filled with copies of the last row, which stay finite under any
    kernel; callers mask them by index."""
    return jnp.pad(x, ((0, -x.shape[0] % size), (0, 0)), mode="edge").reshape(-1, size, x.shape[1])

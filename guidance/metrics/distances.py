"""Squared Euclidean distances between the rows of two arrays, computed in the more accurate of two ways."""

import jax
import jax.numpy as jnp

from guidance.types import Array

# Up to this many features we sum squared differences feature by feature. XLA fuses this with the reduction that
# follows, so that no block of distances is written to memory. For more features a matrix product is faster.
EXPLICIT_FEATURES = 8


def squared_distances(x: Array, y: Array) -> Array:
    """Returns |x_i - y_j|^2 [n, m] for rows x [n, d], y [m, d].

    For d <= 8 it sums squared differences: the relative error is a few eps, and equal rows give exactly 0. For d > 8
    it computes |x|^2 + |y|^2 - 2 x.y, clipped at 0, after subtracting the mean row of y from both. (Distances do not
    change, and the norms that cancel shrink to the spread of the data.) The absolute error is then about eps (|x|^2 +
    |y|^2). This is negligible for typical pairs, but two equal rows may come out as far apart as sqrt(eps) times their
    norm. Callers therefore mask pairs of a row with itself. Our choice.
    """
    d = x.shape[1]
    if d <= EXPLICIT_FEATURES:
        total = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
        for k in range(d):
            total += jnp.square(x[:, k][:, None] - y[:, k][None, :])
        return total
    centre = jax.lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))
    x, y = x - centre, y - centre
    # HIGHEST: by default accelerators round the factors to 8 or 11 bits, an error that the cancellation would amplify
    gram = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sum(jnp.square(x), axis=1)[:, None] + jnp.sum(jnp.square(y), axis=1)[None, :]
    return jnp.maximum(norms - 2 * gram, 0)


def padded_blocks(x: Array, size: int) -> Array:
    """Reshapes rows x [n, d] to [blocks, size, d], padded with copies of the last row, which callers must mask.

    Copies of a row are finite under any kernel.
    """
    return jnp.pad(x, ((0, -x.shape[0] % size), (0, 0)), mode="edge").reshape(-1, size, x.shape[1])

"""Exact Wasserstein distances in one dimension, and sliced ones over random lines in more dimensions."""

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array

# Lines that are handled at once; memory is this many sorted projections of the samples.
LINES_AT_ONCE = 8


def wasserstein_1d(u: Array, v: Array, p: float = 1.0) -> Array:
    """Computes W_p = (int_0^1 |F_u^{-1}(q) - F_v^{-1}(q)|^p dq)^{1/p} of samples u [n], v [m]; a scalar.

    Its unit is that of the samples. It is exact for unequal sizes too: the quantile functions jump at the levels i/n
    and j/m, and the integral is a sum over the merged levels. Raises ValueError for empty samples, for samples of
    other than one axis, and for p < 1.
    Source: Computational Optimal Transport, arXiv 1803.00567, remark 2.30.
    """
    power = _wasserstein_1d_to_the_p(u, v, p)
    return _root(power, p)


def sliced_wasserstein(key: Array, x: Array, y: Array, lines: int = 128, p: float = 2.0) -> Array:
    """Estimates SW_p = (mean over directions theta of W_p(theta.x, theta.y)^p)^{1/p}, with `lines` random directions.

    x [n, d], y [m, d] -> scalar. The mean is over W_p^p, not W_p, as in the sources. For two distributions that differ
    by a shift delta it is |delta| / sqrt(d) at p = 2. Raises ValueError as `sliced_wasserstein_along` does.
    Source: Sliced and Radon Wasserstein Barycenters (Bonneel et al., JMIV 51, 2015); so computed by POT.
    """
    directions = jax.random.normal(key, (lines, x.shape[1]), x.dtype)
    return sliced_wasserstein_along(directions, x, y, p)


def sliced_wasserstein_along(directions: Array, x: Array, y: Array, p: float = 2.0) -> Array:
    """Computes (mean_l W_p(theta_l.x, theta_l.y)^p)^{1/p} for given directions theta [lines, d]; a scalar.

    The directions are normalised first. Raises ValueError unless x is [n, d], y is [m, d] and p >= 1. Source: as
    `sliced_wasserstein`.
    """
    if x.ndim != 2 or y.ndim != 2 or not x.shape[1] == y.shape[1] == directions.shape[1]:
        raise ValueError(f"x {x.shape}, y {y.shape} and directions {directions.shape} must share their last axis")

    def along(direction):
        theta = direction / jnp.linalg.norm(direction)
        project = jax.lax.Precision.HIGHEST
        return _wasserstein_1d_to_the_p(
            jnp.matmul(x, theta, precision=project), jnp.matmul(y, theta, precision=project), p
        )

    return _root(jnp.mean(jax.lax.map(along, directions, batch_size=LINES_AT_ONCE)), p)


def _wasserstein_1d_to_the_p(u: Array, v: Array, p: float) -> Array:
    if u.ndim != 1 or v.ndim != 1 or 0 in (u.size, v.size):
        raise ValueError(f"samples must have shapes [n] and [m], not empty, got {u.shape} and {v.shape}")
    if p < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    u, v = jnp.sort(u), jnp.sort(v)
    if u.size == v.size:
        return jnp.mean(_power(u - v, p))
    rank_u, rank_v, width = _merged_levels(u.size, v.size)
    return jnp.sum(jnp.asarray(width, u.dtype) * _power(u[rank_u] - v[rank_v], p))


def _merged_levels(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the cells between the merged levels {i/n} and {j/m}: the rank in each sample, and the width.

    They depend on the sizes alone. Levels are integers in units of 1/(n m), so that equal levels are found exactly.
    """
    levels = np.union1d(m * np.arange(n + 1, dtype=np.int64), n * np.arange(m + 1, dtype=np.int64))
    left, width = levels[:-1], np.diff(levels)
    return (left // m).astype(np.int32), (left // n).astype(np.int32), width / (n * m)


def _power(difference: Array, p: float) -> Array:
    """Returns |difference|^p, with a finite gradient at 0."""
    if p == 2:
        return jnp.square(difference)
    magnitude = jnp.abs(difference)
    return magnitude if p == 1 else magnitude**p


def _root(power: Array, p: float) -> Array:
    """Returns power^(1/p). Its gradient at 0 is 0, not infinite. NaN stays NaN."""
    if p == 1:
        return power
    zero = power <= 0
    return jnp.where(zero, 0, jnp.where(zero, 1, power) ** (1 / p))

"""Energy distance and kernel MMD between two samples: unbiased, with standard errors, in bounded memory.

Both are one statistic. For a symmetric kernel k and samples x_1..n ~ p, y_1..m ~ q,

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),

and the energy distance is the MMD^2 of the kernel k = -|.|^beta. For each point let

    u_i = 1/(n-1) sum_{l != i} k(x_i, x_l) - 1/m sum_j k(x_i, y_j)          (and v_j with x and y exchanged)

The estimate, a U-statistic, is mean_i u_i + mean_j v_j. It averages small numbers instead of subtracting large means.

Standard error. The first-order (Hoeffding) projections of the statistic at x_i and y_j are 2 u_i and 2 v_j up to
constants, hence SE^2 = 4 var(u)/n + 4 var(v)/m. This is consistent if p != q. If p = q the projections vanish. With
the doubly centred kernel h and tau^2 = E h(x, x')^2 the true variance is then 2 tau^2 (1/n + 1/m)^2 to leading order.
The u_i do not vanish, since they are means over finitely many points: var(u) = var(v) = tau^2 (1/n + 1/m), so that
SE^2 is 4 tau^2 (1/n + 1/m)^2, twice the truth. The standard error is therefore too large by sqrt(2) if p = q, and
right if p and q are many SE apart. (In general it counts the first-order part once and the second-order part twice, as
the jackknife does; Efron and Stein 1981.) If p = q the estimate is distributed as a centred sum of weighted
chi-squares, which is skewed to the right and not normal.

Memory is two blocks of rows and, if XLA does not fuse the distances into their sum, one block of kernel values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.metrics.distances import padded_blocks, squared_distances
from guidance.metrics.estimate import Estimate, accumulator_dtype, block_mean, variance_of_mean
from guidance.shapes import safe_sqrt
from guidance.types import Array

Kernel = Callable[[Array, Array], Array]  # (x [n, d], y [m, d]) -> k(x_i, y_j) as [n, m]; symmetric

# Rows in a block. A block of float32 then fits the cache of a CPU core; accelerators are faster with 4096 or more.
CHUNK = 512


def distance_kernel(beta: float = 1.0) -> Kernel:
    """Returns the kernel k(x, y) = -|x - y|^beta, whose MMD^2 is the energy distance.

    Raises ValueError unless 0 < beta < 2.
    Source: Equivalence of distance-based and RKHS-based statistics, arXiv 1207.6076, section 3.
    """
    if not 0 < beta < 2:
        raise ValueError(f"beta must lie in (0, 2), got {beta}: at 2 only the means are compared")

    def kernel(x, y):
        squared = squared_distances(x, y)
        if beta == 1:
            return -safe_sqrt(squared)
        zero = squared <= 0  # False for NaN, so that a distance from NaN is NaN
        return -jnp.where(zero, 0, jnp.exp(0.5 * beta * jnp.log(jnp.where(zero, 1, squared))))

    return kernel


def rbf_kernel(bandwidth: float | Array) -> Kernel:
    """Returns the kernel k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)), with the bandwidth in the units of the features.

    Source: A Kernel Two-Sample Test (Gretton et al., JMLR 13, 2012).
    """
    return lambda x, y: jnp.exp(-squared_distances(x, y) / (2 * bandwidth**2))


def polynomial_kernel(degree: int = 3) -> Kernel:
    """Returns the kernel k(x, y) = (x.y / d + 1)^degree, whose MMD^2 on Inception features is the KID for degree 3.

    Source: Demystifying MMD GANs, arXiv 1801.01401, section 4.
    """
    return lambda x, y: (jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST) / x.shape[1] + 1) ** degree


def energy_distance(x: Array, y: Array, beta: float = 1.0, chunk: int = CHUNK) -> Estimate:
    """Estimates 2 E|x - y|^beta - E|x - x'|^beta - E|y - y'|^beta without bias from rows x [n, d], y [m, d].

    Its unit is that of the features to the power beta. The true value is 0 if and only if the two distributions are
    equal; the estimate may be negative. Some packages take its square root; we do not. Half of it is the energy loss
    of arXiv 2510.00815. Raises ValueError unless 0 < beta < 2, n, m >= 2 and both have the same number of features.
    Source: Energy statistics (Szekely and Rizzo, J. Stat. Plan. Inference 143, 2013).
    """
    return mmd_squared(distance_kernel(beta), x, y, chunk)


def mmd_squared(kernel: Kernel, x: Array, y: Array, chunk: int = CHUNK) -> Estimate:
    """Estimates E k(x, x') + E k(y, y') - 2 E k(x, y) without bias from rows x [n, d], y [m, d].

    It computes (n + m)^2 kernel values in blocks of [chunk, chunk]. The module explains the standard error. Raises
    ValueError unless n, m >= 2 and both have the same number of features.
    Source: A Kernel Two-Sample Test (Gretton et al., JMLR 13, 2012), eq. 3.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"samples must be [n, d] and [m, d] with n, m >= 2, got {x.shape} and {y.shape}")
    u = _mean_over_others(kernel, x, chunk) - _mean_over(kernel, x, y, chunk)
    v = _mean_over_others(kernel, y, chunk) - _mean_over(kernel, y, x, chunk)
    variance = 4 * (variance_of_mean(u) + variance_of_mean(v))
    return Estimate(block_mean(u) + block_mean(v), safe_sqrt(variance))


def _mean_over(kernel: Kernel, points: Array, sample: Array, chunk: int) -> Array:
    """Returns 1/m sum_j k(points_i, sample_j), [n]."""
    return _kernel_sums(kernel, points, sample, chunk, skip_self=False) / sample.shape[0]


def _mean_over_others(kernel: Kernel, points: Array, chunk: int) -> Array:
    """Returns 1/(n-1) sum_{l != i} k(points_i, points_l), [n]."""
    return _kernel_sums(kernel, points, points, chunk, skip_self=True) / (points.shape[0] - 1)


def _kernel_sums(kernel: Kernel, points: Array, sample: Array, chunk: int, skip_self: bool) -> Array:
    """Returns sum_j k(points_i, sample_j), [n], without the pair i = j if `skip_self`.

    Sums within a block are in the dtype of the data, and sums over blocks in that of the accumulator. A block is laid
    out as [sample, points] and summed over its first axis, because this vectorises on a CPU and a sum along the last
    axis does not. We do not use the symmetry of k to halve the work: the transposed sum would cost more than it saves.
    """
    n, m = points.shape[0], sample.shape[0]
    size = min(chunk, max(n, m))
    offsets = jnp.arange(size, dtype=jnp.int32)
    sample_blocks = padded_blocks(sample, size)
    sample_starts = size * jnp.arange(sample_blocks.shape[0], dtype=jnp.int32)

    def sums_of_block(point_block, point_start):
        @jax.checkpoint  # the gradient recomputes a block instead of keeping all of them
        def add_block(total, block_and_start):
            block, start = block_and_start
            j = (start + offsets)[:, None]
            keep = j < m
            if skip_self:
                keep &= j != (point_start + offsets)[None, :]
            values = jnp.where(keep, kernel(block, point_block), 0)
            return total + jnp.sum(values, axis=0).astype(total.dtype), None

        start = jnp.zeros(size, accumulator_dtype(points.dtype))
        return jax.lax.scan(add_block, start, (sample_blocks, sample_starts))[0]

    point_blocks = padded_blocks(points, size)
    point_starts = size * jnp.arange(point_blocks.shape[0], dtype=jnp.int32)
    sums = jax.lax.map(lambda args: sums_of_block(*args), (point_blocks, point_starts))
    return sums.reshape(-1)[:n]

"""Energy distance and kernel MMD between two samples: unbiased, with standard errors, in bounded memory.

Both are one statistic. For a symmetric kernel k and samples x_1..n ~ p, y_1..m ~ q,

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),

and the energy distance is the same with k = -|.|^beta. With each point's *witness*, what it thinks of the two samples,

    u_i = 1/(n-1) sum_{l != i} k(x_i, x_l) - 1/m sum_j k(x_i, y_j)          (and v_j with x and y exchanged)

the U-statistic is mean_i u_i + mean_j v_j: small numbers are averaged, large means are never subtracted.

Standard error. The first-order (Hoeffding) projections of the statistic at x_i and y_j are 2 u_i and 2 v_j up to
constants, so SE^2 = 4 var(u)/n + 4 var(v)/m. If p != q this is consistent. If p = q the projections vanish and the
true variance is second order: with the doubly centred kernel h and tau^2 = E h(x, x')^2 it is 2 tau^2 (1/n + 1/m)^2,
to leading order. The u_i then do not vanish, for they are means over finitely many partners, and
var(u) = var(v) = tau^2 (1/n + 1/m), so SE^2 comes to 4 tau^2 (1/n + 1/m)^2, twice the truth. Hence SE is never near 0
without cause: too large by sqrt(2) where p = q, right where p and q are many SE apart. (In general the first-order
part is counted once and the second-order part twice: the jackknife's conservatism, Efron and Stein 1981.) Under p = q
the law of the estimate is a centred sum of weighted chi-squares, skewed to the right, not a normal.

Memory is two blocks of rows and, where the distances do not fuse into their sum, one block of kernel values.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.metrics.distances import padded_blocks, squared_distances
from guidance.metrics.estimate import Estimate, accumulator_dtype, block_mean, variance_of_mean
from guidance.shapes import safe_sqrt
from guidance.types import Array

Kernel = Callable[[Array, Array], Array]  # (x [n, d], y [m, d]) -> k(x_i, y_j) as [n, m]; symmetric

# Rows in a block. A float32 block then fits a core's cache; accelerators prefer 4096 or more.
CHUNK = 512


def distance_kernel(beta: float = 1.0) -> Kernel:
    """k(x, y) = -|x - y|^beta, whose MMD^2 is the energy distance. Raises ValueError unless 0 < beta < 2.

    Source: Equivalence of distance-based and RKHS-based statistics, arXiv 1207.6076, section 3.
    """
    if not 0 < beta < 2:
        raise ValueError(f"beta must lie in (0, 2), got {beta}: at 2 only the means are compared")

    def kernel(x, y):
        squared = squared_distances(x, y)
        if beta == 1:
            return -safe_sqrt(squared)
        zero = squared <= 0  # of NaN False: its distance is NaN
        return -jnp.where(zero, 0, jnp.exp(0.5 * beta * jnp.log(jnp.where(zero, 1, squared))))

    return kernel


def rbf_kernel(bandwidth: float | Array) -> Kernel:
    """k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)), the bandwidth in the units of the features.

    Source: A Kernel Two-Sample Test (Gretton et al., JMLR 13, 2012).
    """
    return lambda x, y: jnp.exp(-squared_distances(x, y) / (2 * bandwidth**2))


def polynomial_kernel(degree: int = 3) -> Kernel:
    """k(x, y) = (x.y / d + 1)^degree; its MMD^2 on Inception features is the KID.

    Source: Demystifying MMD GANs, arXiv 1801.01401, section 4.
    """
    return lambda x, y: (jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST) / x.shape[1] + 1) ** degree


def energy_distance(x: Array, y: Array, beta: float = 1.0, chunk: int = CHUNK) -> Estimate:
    """Unbiased estimate of 2 E|x - y|^beta - E|x - x'|^beta - E|y - y'|^beta from rows x [n, d], y [m, d].

    In units of the features to the power beta. The population value is 0 if and only if p = q; the estimate may be
    negative. No square root is taken, which some packages do; half of it is the energy loss of arXiv 2510.00815.
    Raises ValueError unless 0 < beta < 2, n, m >= 2 and both have the same features. Memory: see the module.
    Source: Energy statistics (Szekely and Rizzo, J. Stat. Plan. Inference 143, 2013).
    """
    return mmd_squared(distance_kernel(beta), x, y, chunk)


def mmd_squared(kernel: Kernel, x: Array, y: Array, chunk: int = CHUNK) -> Estimate:
    """Unbiased estimate of E k(x, x') + E k(y, y') - 2 E k(x, y) from rows x [n, d], y [m, d].

    Cost (n + m)^2 kernel values, in blocks of `chunk` rows; `kernel` sees [chunk, d] twice. Standard error: see the
    module. Raises ValueError unless n, m >= 2 and both have the same features.
    Source: A Kernel Two-Sample Test (Gretton et al., JMLR 13, 2012), eq. 3.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"samples must be [n, d] and [m, d] with n, m >= 2, got {x.shape} and {y.shape}")
    u = _mean_over_others(kernel, x, chunk) - _mean_over(kernel, x, y, chunk)
    v = _mean_over_others(kernel, y, chunk) - _mean_over(kernel, y, x, chunk)
    variance = 4 * (variance_of_mean(u) + variance_of_mean(v))
    return Estimate(block_mean(u) + block_mean(v), safe_sqrt(variance))


def _mean_over(kernel: Kernel, points: Array, sample: Array, chunk: int) -> Array:
    """1/m sum_j k(points_i, sample_j) as [n]."""
    return _kernel_sums(kernel, points, sample, chunk, skip_self=False) / sample.shape[0]


def _mean_over_others(kernel: Kernel, points: Array, chunk: int) -> Array:
    """1/(n-1) sum_{l != i} k(points_i, points_l) as [n]."""
    return _kernel_sums(kernel, points, points, chunk, skip_self=True) / (points.shape[0] - 1)


def _kernel_sums(kernel: Kernel, points: Array, sample: Array, chunk: int, skip_self: bool) -> Array:
    """sum_j k(points_i, sample_j) as [n], the pair i = j left out if `skip_self`.

    The sum inside a block runs in the dtype of the data, that over blocks in the accumulator's. The block is laid out
    [sample, points] and summed over its first axis: on a CPU each lane then owns a point, which vectorises where a sum
    along the last axis does not. That is also why the symmetry k(x, y) = k(y, x) is not used to halve the work: the
    transposed sum costs more than recomputing.
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

"""Gaussian statistics of features and the Frechet distance between them.

Statistics can be streamed: start from `empty_stats(d)` and repeat `stats = merge_stats(stats, gaussian_stats(rows))`
block by block. Memory is one block and two d x d matrices, however many rows there are. The result is that of all rows
at once, up to rounding.

Two functions compute one formula. `frechet_distance` is the one to report: it uses NumPy in float64, whatever JAX is
set to, because the distance is a small difference of large traces. `gaussian_frechet_distance` uses JAX in the dtype
of its arguments: it runs inside jit and is differentiable.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array


class Gaussian(NamedTuple):
    """A mean [d] and a covariance [d, d] in float64, as published references give them, without the number of rows."""

    mean: np.ndarray
    covariance: np.ndarray


class GaussianStats(NamedTuple):
    """The statistics of a stream of feature rows, in float64."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    mean: np.ndarray  # [d]
    scatter: np.ndarray  # [d, d]: sum_i (x_i - mean)(x_i - mean)^T

    @property
    def covariance(self) -> np.ndarray:
        """Returns the unbiased covariance scatter / (count - 1) [d, d]. Raises ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}")
        return self.scatter / (self.count - 1)


def empty_stats(d: int) -> GaussianStats:
    """Returns the statistics of no rows, for d features; merging them with others changes nothing."""
    return GaussianStats(0, np.zeros(d), np.zeros((d, d)))


def gaussian_stats(features: np.ndarray) -> GaussianStats:
    """Computes the statistics of feature rows [n, d], n >= 1, in float64. Raises ValueError for another shape."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 1:
        raise ValueError(f"features must have shape [n, d] with n >= 1, got {features.shape}")
    mean = features.mean(axis=0)
    centred = features - mean[None, :]
    return GaussianStats(len(features), mean, centred.T @ centred)


def merge_stats(a: GaussianStats, b: GaussianStats) -> GaussianStats:
    """Returns the statistics of two sets of rows together. Up to rounding the order of merging does not matter.

    With delta = mu_b - mu_a and n = n_a + n_b: mu = mu_a + delta n_b/n, M = M_a + M_b + delta delta^T n_a n_b / n.
    Raises ValueError if neither has rows or if they have different numbers of features.
    Source: Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (Chan, Golub, LeVeque 1979).
    """
    count = a.count + b.count
    if count < 1 or a.mean.shape != b.mean.shape:
        raise ValueError(f"cannot merge {a.count} rows of {a.mean.shape} with {b.count} rows of {b.mean.shape}")
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.count / count)
    scatter = a.scatter + b.scatter + np.outer(delta, delta) * (a.count * b.count / count)
    return GaussianStats(count, mean, scatter)


def frechet_distance(a: GaussianStats | Gaussian, b: GaussianStats | Gaussian, few: bool = False) -> float:
    """Computes |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}), the squared W2 of two Gaussians, in float64.

    On pooled Inception features this is the FID, and on spatial ones the sFID. It is biased upwards for finite
    samples: report the numbers of rows beside it. tr (S_a S_b)^{1/2} is the sum of the root eigenvalues of S_a^{1/2}
    S_b S_a^{1/2}. Since that matrix is symmetric there are no complex parts, and singular covariances need no added
    diagonal. Eigenvalues that rounding makes negative count as 0. Raises ValueError for fewer than two rows. Unless
    `few`, it also raises for d rows or fewer, whose covariance is always singular: the bias may exceed the distance.
    Source: GANs Trained by a Two Time-Scale Update Rule, arXiv 1706.08500, eq. 6; Dowson and Landau 1982; sFID:
    Generating Images with Sparse Representations, arXiv 2103.03841.
    """
    d = len(a.mean)
    for stats in (a, b):
        if isinstance(stats, GaussianStats) and stats.count <= d and not few:
            raise ValueError(f"{stats.count} rows of {d} features have a singular covariance; few=True allows it")
    root_a = _root_numpy(a.covariance)
    eigenvalues = np.linalg.eigvalsh(_symmetric(root_a @ b.covariance @ root_a))
    trace_root = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    shift = np.square(a.mean - b.mean).sum()
    return float(shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_root)


def gaussian_frechet_distance(mean_a: Array, covariance_a: Array, mean_b: Array, covariance_b: Array) -> Array:
    """Computes the formula of `frechet_distance` from means [d] and covariances [d, d], in JAX; differentiable.

    Gradients are finite for equal and for singular covariances (see `trace_root_product`). In float32 the rounding
    error is about sqrt(eps) tr S, so report `frechet_distance`.
    Source: as `frechet_distance`.
    """
    overlap = trace_root_product(covariance_a, covariance_b)
    shift = jnp.sum(jnp.square(mean_a - mean_b))
    return shift + jnp.trace(covariance_a) + jnp.trace(covariance_b) - 2 * overlap


@jax.custom_jvp
def trace_root_product(a: Array, b: Array) -> Array:
    """Returns tr (a b)^{1/2} of symmetric positive semi-definite matrices a, b [d, d]; a scalar.

    Its differential is 1/2 tr(T db) + 1/2 tr(T' da). T = a^{1/2} (a^{1/2} b a^{1/2})^{-1/2} a^{1/2} is the optimal
    transport map from N(0, b) to N(0, a), and T' that from N(0, a) to N(0, b). The inverse is that on the range, where
    eigenvalues exceed d eps times the largest. Source: derived from d tr M^{1/2} = 1/2 tr(M^{-1/2} dM); maps as in
    Computational Optimal Transport, arXiv 1803.00567, remark 2.31.
    """
    root_a = _power_of_spectrum(a, 0.5)
    return jnp.trace(_power_of_spectrum(_product(root_a, b, root_a), 0.5))


@trace_root_product.defjvp
def _trace_root_product_jvp(primals, tangents):
    a, b = primals
    da, db = tangents
    change = jnp.sum(_transport(a, b) * db) + jnp.sum(_transport(b, a) * da)
    return trace_root_product(a, b), 0.5 * change


def _transport(a: Array, b: Array) -> Array:
    root = _power_of_spectrum(a, 0.5)
    return _product(root, _power_of_spectrum(_product(root, b, root), -0.5), root)


def _power_of_spectrum(matrix: Array, power: float) -> Array:
    """Returns the power of a symmetric positive semi-definite matrix [d, d]; on its range if power < 0."""
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=True)
    # A negative power would amplify rounding errors of small eigenvalues; a positive one does not.
    floor = matrix.shape[0] * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.abs(values)) if power < 0 else 0
    in_range = values > floor
    powers = jnp.where(in_range, jnp.where(in_range, values, 1) ** power, 0)
    return jnp.matmul(vectors * powers[None, :], vectors.T, precision=jax.lax.Precision.HIGHEST)


def _product(root: Array, inner: Array, right: Array) -> Array:
    exact = jax.lax.Precision.HIGHEST
    return jnp.matmul(jnp.matmul(root, inner, precision=exact), right, precision=exact)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _root_numpy(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(_symmetric(matrix))
    return (vectors * np.sqrt(np.maximum(values, 0))[None, :]) @ vectors.T

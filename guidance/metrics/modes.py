"""The modes of a sample: their shares, means and widths; and the likelihood of a sample under the true density.

A mode is one component of a known mixture. `responsibilities` [n, J] say how much each row belongs to each mode: they
are the posterior probabilities of the components if the mixture gives them, or 1 for the nearest centre and 0
otherwise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance.metrics.distances import squared_distances
from guidance.metrics.estimate import Estimate, mean_estimate
from guidance.types import Array


class ModeMoments(NamedTuple):
    """The share, mean and covariance of each mode of a sample."""

    share: Array  # [J]
    mean: Array  # [J, d]
    covariance: Array  # [J, d, d]


def nearest_mode(x: Array, centres: Array, radius: float = float("inf")) -> Array:
    """Returns responsibilities [n, J] of rows x [n, d]: 1 for the nearest of `centres` [J, d] and 0 for the others.

    A row farther than `radius` from every centre belongs to no mode: its responsibilities are all 0, so that the
    shares of the modes sum to less than 1.
    """
    squared = squared_distances(x, centres)
    inside = jnp.min(squared, axis=1) <= radius**2
    one_hot = jax.nn.one_hot(jnp.argmin(squared, axis=1), centres.shape[0], dtype=x.dtype)
    return jnp.where(inside[:, None], one_hot, 0)


def mode_shares(responsibilities: Array) -> Array:
    """Returns the shares pi_j = 1/n sum_i r_ij [J] of the modes from responsibilities r [n, J]."""
    return jnp.mean(responsibilities, axis=0)


def share_error(shares: Array, true_shares: Array) -> Array:
    """Returns the total variation 1/2 (sum_j |pi_j - pi*_j| + |lost - lost*|), in [0, 1], for shares pi, pi* [J].

    lost = 1 - sum_j pi_j counts as one more mode, so that a sample that reaches no mode scores 1 and not 1/2.
    """
    lost = jnp.abs(jnp.sum(shares) - jnp.sum(true_shares))
    return 0.5 * (jnp.sum(jnp.abs(shares - true_shares)) + lost)


def mode_moments(x: Array, responsibilities: Array) -> ModeMoments:
    """Computes the share, mean and covariance of each mode from rows x [n, d] and responsibilities r [n, J].

        R_j = sum_i r_ij,   share_j = R_j / n,   mu_j = sum_i r_ij x_i / R_j
        S_j = sum_i r_ij (x_i - mu_j)(x_i - mu_j)^T / (R_j - sum_i r_ij^2 / R_j)

    S_j is the reliability-weighted covariance, which is the usual unbiased one if every r_ij is 0 or 1. If r is the
    posterior and x has the distribution of the mixture, the moments are those of the components, however much they
    overlap, because E r_j(x) f(x) = pi_j E_j f(x). If r is that of the nearest centre, they are the moments of the
    cells. An empty mode has mean 0 and covariance 0. A mode of one point has covariance 0. Source: our choice of the
    usual weighted moments.
    """
    total = jnp.sum(responsibilities, axis=0)
    occupied = jnp.where(total > 0, total, 1)
    mean = jnp.matmul(responsibilities.T, x, precision=jax.lax.Precision.HIGHEST) / occupied[:, None]

    def scatter(weights, centre):
        centred = x - centre[None, :]
        return jnp.matmul(centred.T * weights[None, :], centred, precision=jax.lax.Precision.HIGHEST)

    freedom = total - jnp.sum(jnp.square(responsibilities), axis=0) / occupied
    # For a mode of one point freedom and scatter are 0 up to rounding, and must not be divided.
    resolved = freedom > 1e-6 * occupied
    scatters = jax.lax.map(lambda args: scatter(*args), (responsibilities.T, mean))
    covariance = jnp.where(resolved[:, None, None], scatters / jnp.where(resolved, freedom, 1)[:, None, None], 0)
    return ModeMoments(total / x.shape[0], mean, covariance)


def variance_ratio(covariance: Array, true_covariance: Array) -> Array:
    """Returns tr S_j / tr S*_j [J] for covariances S, S* [J, d, d]; below 1 guidance has narrowed a mode."""
    return jnp.trace(covariance, axis1=-2, axis2=-1) / jnp.trace(true_covariance, axis1=-2, axis2=-1)


def negative_log_likelihood(log_density: Callable[[Array], Array], x: Array) -> Estimate:
    """Returns -1/n sum_i log p*(x_i), in nats, with its standard error, for x [n, ...].

    log_density: [n, ...] -> [n], the log of the true density p*. If the x_i have the density q, the expectation is the
    cross-entropy H(q) + KL(q || p*), which is the entropy of p* for q = p*. Lower is not better: a sample that has
    collapsed on the highest mode scores below the entropy of p*. Compare with the value of true samples. Raises
    ValueError if `log_density` does not return [n] or if n < 2.
    """
    return mean_estimate(-log_density(x))

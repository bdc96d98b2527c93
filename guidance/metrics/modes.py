"""Which modes a sample covers, how much of it falls on each, how wide they are; and its likelihood under the truth.

A mode is one component of a known mixture. Membership is a matrix of `responsibilities` [n, J]: posterior component
probabilities where the mixture gives them, or the one-hot nearest centre.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance.metrics.distances import squared_distances
from guidance.metrics.estimate import Estimate, mean_estimate
from guidance.types import Array


class ModeMoments(NamedTuple):
    """First moments of a sample mode by mode."""

    share: Array  # [J]
    mean: Array  # [J, d]
    covariance: Array  # [J, d, d]


def nearest_mode(x: Array, centres: Array, radius: float = float("inf")) -> Array:
    """One-hot responsibilities [n, J] of the nearest of `centres` [J, d] for rows x [n, d].

    A row farther than `radius` from every centre belongs to none: its row is zero and its share is lost, so shares
    then sum to less than 1.
    """
    squared = squared_distances(x, centres)
    inside = jnp.min(squared, axis=1) <= radius**2
    one_hot = jax.nn.one_hot(jnp.argmin(squared, axis=1), centres.shape[0], dtype=x.dtype)
    return jnp.where(inside[:, None], one_hot, 0)


def mode_shares(responsibilities: Array) -> Array:
    """pi_j = 1/n sum_i r_ij as [J] from responsibilities [n, J]."""
    return jnp.mean(responsibilities, axis=0)


def share_error(shares: Array, true_shares: Array) -> Array:
    """Total variation 1/2 (sum_j |pi_j - pi*_j| + |lost - lost*|), in [0, 1]; shares [J].

    lost = 1 - sum_j pi_j counts as one more mode, so that a sample that reaches no mode at all scores 1, not 1/2.
    """
    lost = jnp.abs(jnp.sum(shares) - jnp.sum(true_shares))
    return 0.5 * (jnp.sum(jnp.abs(shares - true_shares)) + lost)


def mode_moments(x: Array, responsibilities: Array) -> ModeMoments:
    """Share, mean and covariance of each mode of rows x [n, d] weighted by responsibilities r [n, J].

    mu_j = sum_i r_ij x_i / R_j, S_j = sum_i r_ij (x_i - mu_j)(x_i - mu_j)^T / (R_j - sum_i r_ij^2 / R_j) with
    R_j = sum_i r_ij: the reliability-weighted covariance, which for one-hot r is the unbiased one.
    With posterior r and x of the mixture's own law they estimate the components' moments however much these overlap,
    for E r_j(x) f(x) = pi_j E_j f(x); nearest-centre r estimate those of the truncated cells. An empty mode has mean 0
    and covariance 0, a mode of one point covariance 0. Source: our choice of the usual weighted moments.
    """
    total = jnp.sum(responsibilities, axis=0)
    occupied = jnp.where(total > 0, total, 1)
    mean = jnp.matmul(responsibilities.T, x, precision=jax.lax.Precision.HIGHEST) / occupied[:, None]

    def scatter(weights, centre):
        centred = x - centre[None, :]
        return jnp.matmul(centred.T * weights[None, :], centred, precision=jax.lax.Precision.HIGHEST)

    freedom = total - jnp.sum(jnp.square(responsibilities), axis=0) / occupied
    # One point leaves freedom 0 up to rounding; its scatter is 0 as well and must not be divided by that rounding.
    resolved = freedom > 1e-6 * occupied
    scatters = jax.lax.map(lambda args: scatter(*args), (responsibilities.T, mean))
    covariance = jnp.where(resolved[:, None, None], scatters / jnp.where(resolved, freedom, 1)[:, None, None], 0)
    return ModeMoments(total / x.shape[0], mean, covariance)


def variance_ratio(covariance: Array, true_covariance: Array) -> Array:
    """tr S_j / tr S*_j as [J] for covariances [J, d, d]: below 1 where guidance has narrowed a mode."""
    return jnp.trace(covariance, axis1=-2, axis2=-1) / jnp.trace(true_covariance, axis1=-2, axis2=-1)


def negative_log_likelihood(log_density: Callable[[Array], Array], x: Array) -> Estimate:
    """-1/n sum_i log p*(x_i) in nats with its standard error, for x [n, ...] and `log_density` [n, ...] -> [n].

    Its expectation is the cross-entropy: the entropy of p* plus KL only if the sample has the law p*; a sample
    collapsed on the highest mode scores *below* the entropy. Compare with the value of true samples; lower is not
    better. Raises ValueError if `log_density` does not return [n] or n < 2.
    """
    return mean_estimate(-log_density(x))

"""The flow map of a one-dimensional mixture: the probability-flow ODE solved exactly, by matching quantiles.

In one dimension the ODE preserves order, so it carries x at t to the y at s with F_s(y) = F_t(x), where F is the
distribution function. Computed plainly, F loses all digits in the upper tail and in the gap between two modes. We
therefore split the modes into those whose mean lies left of x and those right of it:

    F = W_left - sum_left w_j (1 - F_j) + sum_right w_j F_j

W_left, the weight of the modes on the left, does not depend on time and cancels. What is left are small tails, all of
them positive, and the two sides of this equation are compared in logarithms:

    sum_right w_j F_j,s(y) + sum_left w_j (1 - F_j,t(x)) = sum_right w_j F_j,t(x) + sum_left w_j (1 - F_j,s(y))
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr

from guidance.truth.mixtures import Law, Mixture, marginal
from guidance.types import Array, Schedule


class _Match(NamedTuple):
    """The equation F_target(y) = F_source(x) for y, one for each sample; x [n], the other arrays [n, J]."""

    x: Array
    log_weights: Array
    source_mean: Array
    source_std: Array
    target_mean: Array
    target_std: Array


def _imbalance(y: Array, match: _Match) -> Array:
    """Returns log(left side) - log(right side) of the module's last equation at y, [n]; it increases with y."""
    at_x = (match.x[:, None] - match.source_mean) / match.source_std
    at_y = (y[:, None] - match.target_mean) / match.target_std
    right = match.source_mean >= match.x[:, None]
    grows = jnp.where(right, log_ndtr(at_y), log_ndtr(-at_x))
    shrinks = jnp.where(right, log_ndtr(at_x), log_ndtr(-at_y))
    return jax.nn.logsumexp(match.log_weights + grows, -1) - jax.nn.logsumexp(match.log_weights + shrinks, -1)


def _bracket(match: _Match) -> tuple[Array, Array]:
    """Returns bounds (low, high) on y, [n] each: y has a z-score between the smallest and the largest z-score of x."""
    z = (match.x[:, None] - match.source_mean) / match.source_std
    used = match.log_weights > -jnp.inf
    z_low = jnp.min(jnp.where(used, z, jnp.inf), -1, keepdims=True)
    z_high = jnp.max(jnp.where(used, z, -jnp.inf), -1, keepdims=True)
    low = jnp.min(jnp.where(used, match.target_mean + z_low * match.target_std, jnp.inf), -1)
    high = jnp.max(jnp.where(used, match.target_mean + z_high * match.target_std, -jnp.inf), -1)
    return low, high


@jax.custom_jvp
def _solve(match: _Match) -> Array:
    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        above = _imbalance(middle, match) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    # Our choice: a round gains one bit; 12 rounds beyond the mantissa's bits resolve a narrow mode in a wide bracket.
    rounds = jnp.finfo(match.x.dtype).nmant + 12
    low, high = jax.lax.fori_loop(0, rounds, halve, _bracket(match))
    return 0.5 * (low + high)


@_solve.defjvp
def _solve_jvp(primals, tangents):
    """Differentiates the solution by the implicit function theorem, because bisection has no useful derivative."""
    (match,), (direction,) = primals, tangents
    y = _solve(match)
    slope = jax.jvp(lambda y: _imbalance(y, match), (y,), (jnp.ones_like(y),))[1]
    change = jax.jvp(lambda match: _imbalance(y, match), (match,), (direction,))[1]
    return y, -change / slope


def _means_and_stds(law: Law) -> tuple[Array, Array]:
    return law.means[..., 0], jnp.sqrt(law.variances[..., 0])


def flow_map(mixture: Mixture, schedule: Schedule, x: Array, *, t: Array, s: Array, cond: Array) -> Array:
    """Solves the probability-flow ODE of p(. | cond) from x [n, 1] at t [n] to s [n]; returns F_s^-1(F_t(x)) [n, 1].

    s may lie before or after t. The result can be differentiated to any order in x, t, s and the mixture. Raises
    ValueError if the mixture is not one-dimensional.
    """
    if mixture.means.shape[-1] != 1:
        raise ValueError(f"flow_map needs a mixture of dimension 1, got dimension {mixture.means.shape[-1]}")
    source, target = (marginal(mixture, schedule, time, cond) for time in (t, s))
    return _solve(_Match(x[:, 0], source.log_weights, *_means_and_stds(source), *_means_and_stds(target)))[:, None]

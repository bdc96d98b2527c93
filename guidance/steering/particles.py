"""Weighted particles, the core that all particle samplers share.

Each of n particles has a log weight, to which every move adds. When the effective sample size falls too low, the
particles are resampled, and each gets the mean weight. At any time

    estimate of E f   = sum_i w_i f(x_i) / sum_i w_i
    estimate of log Z = log (1/n) sum_i w_i,        unbiased in Z for any n, and unchanged by resampling

One call handles one population. Use `vmap` for populations of several conditions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.sampling.sample import step_inputs
from guidance.types import Array


class Population(NamedTuple):
    """Particles x, leaves [n, ...], their log weights [n], and the effective sample size after each move, [steps]."""

    x: Any
    log_weights: Array
    ess: Array


def ess(log_weights: Array) -> Array:
    """Returns the effective sample size (sum w)^2 / sum w^2 of log weights [n]: n if they are equal."""
    w = jnp.exp(log_weights - jnp.max(log_weights))
    return jnp.sum(w) ** 2 / jnp.sum(w**2)


def log_mean_weight(log_weights: Array) -> Array:
    """Returns log (1/n) sum_i w_i, the estimate of log Z, for log_weights [n]; a scalar."""
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])


def systematic(key: Array, log_weights: Array) -> Array:
    """Draws the indices [n], sorted, of the particles that systematic resampling keeps, from one uniform number.

    Particle i is kept n w_i / sum w times on average, and always that number rounded down or up. It is never kept if
    its weight is zero.
    Source: Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, 1996.
    """
    return _spread(jax.random.uniform(key, dtype=log_weights.dtype), log_weights)


def resample(key: Array, x: Any, log_weights: Array) -> tuple[Any, Array]:
    """Resamples particles x, leaves [n, ...], systematically; returns (x, log weights), each the log mean weight."""
    return _resample(jax.random.uniform(key, dtype=log_weights.dtype), x, log_weights)


def resample_below(key: Array, fraction, x: Any, log_weights: Array) -> tuple[Any, Array]:
    """Resamples if the effective sample size is below fraction * n: never for 0, always above 1.

    Returns (x, log weights).
    """
    low = ess(log_weights) < fraction * log_weights.shape[0]
    # drawn outside the cond, which would use the key twice under vmap
    offset = jax.random.uniform(key, dtype=log_weights.dtype)
    return jax.lax.cond(low, _resample, lambda offset, x, log_weights: (x, log_weights), offset, x, log_weights)


def evolve(key: Array, move: Callable, grid: Array, x: Any, fraction=0.5, log_weights: Array | None = None):
    """Runs weighted moves and resampling over a grid of times [steps + 1]; returns a `Population`.

    move: (key, x, *, t, s) -> (x at s, increments of the log weights [n]), with scalars t and s. fraction: that of
    `resample_below`, which follows every move but the last, after which it would only lose particles. log_weights: the
    initial ones, by default 0.
    """
    checks.one_key(key)
    checks.is_grid(grid)
    n = jax.tree.leaves(x)[0].shape[0]
    weights = jnp.zeros(n, grid.dtype) if log_weights is None else log_weights
    last = grid.shape[0] - 2

    def body(carry, inputs):
        x, weights = carry
        i, t, s = inputs
        move_key, resample_key = jax.random.split(jax.random.fold_in(key, i))
        x, increment = move(move_key, x, t=t, s=s)
        weights = weights + increment.astype(weights.dtype)
        size = ess(weights)
        return resample_below(resample_key, jnp.where(i == last, 0, fraction), x, weights), size

    (x, weights), sizes = jax.lax.scan(body, (x, weights), step_inputs(grid))
    return Population(x, weights, sizes)


def _spread(offset: Array, log_weights: Array) -> Array:
    """Returns the particles on whose share of [0, 1) the points (i + offset)/n, i = 0 .. n - 1, fall."""
    n = log_weights.shape[0]
    total = jnp.cumsum(jnp.exp(log_weights - jnp.max(log_weights)))
    below_one = 1 - jnp.finfo(total.dtype).epsneg  # a point rounded to 1 would fall behind the last particle
    at = jnp.minimum((jnp.arange(n) + offset) / n, below_one)
    return jnp.searchsorted(total / total[-1], at, side="right")


def _resample(offset: Array, x: Any, log_weights: Array) -> tuple[Any, Array]:
    kept = _spread(offset, log_weights)
    return jax.tree.map(lambda leaf: leaf[kept], x), jnp.full_like(log_weights, log_mean_weight(log_weights))

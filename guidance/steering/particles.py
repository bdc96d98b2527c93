"""Weighted particles: the core that every particle sampler shares.

n particles carry log weights. Moves add to the log weights; when the effective sample size falls, the particles are
resampled and each is given the mean weight. Weights are carried, never dropped: at any time

    estimate of E f   = sum_i w_i f(x_i) / sum_i w_i
    estimate of log Z = log (1/n) sum_i w_i,        unbiased in Z for any n, and unchanged by resampling

One call is one population; populations for several conditions are a `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.sampling.sample import step_inputs
from guidance.types import Array


class Population(NamedTuple):
    """Particles, a pytree of leaves [n, ...], their log weights [n], and the ESS before each resampling, [steps]."""

    x: Any
    log_weights: Array
    ess: Array


def ess(log_weights: Array) -> Array:
    """The effective sample size (sum w)^2 / sum w^2 of log weights [n]: n for equal weights, 1 for a single one."""
    w = jnp.exp(log_weights - jnp.max(log_weights))
    return jnp.sum(w) ** 2 / jnp.sum(w**2)


def log_mean_weight(log_weights: Array) -> Array:
    """log (1/n) sum_i w_i: the estimate of log Z once all weights are carried; log_weights [n] -> scalar."""
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])


def systematic(key: Array, log_weights: Array) -> Array:
    """Indices [n] of the particles that systematic resampling keeps, sorted; one uniform number decides them all.

    Particle i is kept floor or ceil of n w_i / sum w times, n w_i / sum w in the mean; never if its weight is zero.
    Source: Kitagawa, Monte Carlo filter and smoother for non-Gaussian nonlinear state space models, 1996.
    """
    return _spread(jax.random.uniform(key, dtype=log_weights.dtype), log_weights)


def resample(key: Array, x: Any, log_weights: Array) -> tuple[Any, Array]:
    """Systematic resampling of the leaves of x [n, ...], each survivor with the mean weight: -> (x, log weights)."""
    return _resample(jax.random.uniform(key, dtype=log_weights.dtype), x, log_weights)


def resample_below(key: Array, fraction, x: Any, log_weights: Array) -> tuple[Any, Array]:
    """`resample` if the effective sample size is below fraction * n: 0 never, above 1 always. -> (x, log weights)."""
    low = ess(log_weights) < fraction * log_weights.shape[0]
    offset = jax.random.uniform(key, dtype=log_weights.dtype)  # out here: under vmap a cond would use the key twice
    return jax.lax.cond(low, _resample, lambda offset, x, log_weights: (x, log_weights), offset, x, log_weights)


def evolve(key: Array, move: Callable, grid: Array, x: Any, fraction=0.5, log_weights: Array | None = None):
    """A scan of weighted moves and resampling over a grid of times [steps + 1]; returns a `Population`.

    move: (key, x, *, t, s) -> (x at s, what to add to the log weights [n]); t and s are scalars. It resamples after a
    move, and not after the last one: fewer distinct particles would gain nothing. log_weights: those of the start,
    default 0.
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
    """The particles that n equally spaced points of [0, 1), the first at offset/n, fall on."""
    n = log_weights.shape[0]
    total = jnp.cumsum(jnp.exp(log_weights - jnp.max(log_weights)))
    below_one = 1 - jnp.finfo(total.dtype).epsneg  # rounding must not point behind the last weight
    at = jnp.minimum((jnp.arange(n) + offset) / n, below_one)
    return jnp.searchsorted(total / total[-1], at, side="right")


def _resample(offset: Array, x: Any, log_weights: Array) -> tuple[Any, Array]:
    kept = _spread(offset, log_weights)
    return jax.tree.map(lambda leaf: leaf[kept], x), jnp.full_like(log_weights, log_mean_weight(log_weights))

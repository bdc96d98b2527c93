"""What guidance does on the way: measures along the trajectories of an ensemble.

A `path` is a trajectory [times, batch, ...] as `sampling.sample(..., trajectory=True)` returns it, on a grid [times]
that falls from noise to data. Two paths that are compared start from the same noise, so that differences are paired:
their noise is far smaller than that of either path. Measures keep the batch axis wherever a mean over it would hide
the standard error; none draws random numbers and none calls a network more than the caller asks for.

Norm growth (arXiv 2506.11039): `norm_ratio`, `projection`, `score_cosine`.
The three stages (arXiv 2509.22007): direction shift `shift_gain`, `mean_multiple`, `coherence`; mode separation
`decidedness`, `stage_times`; concentration `pair_contraction`, `mode_spread`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.metrics.modes import mode_moments
from guidance.predictions import eps_from_x0
from guidance.shapes import row_dot, safe_sqrt
from guidance.types import Array, Schedule


def along(function: Callable[[Array, Array], Array], path: Array, grid: Array) -> Array:
    """function(x [batch, ...], t [batch]) at every time of the path [times, batch, ...], one time after the other.

    The results are stacked on a first axis [times]. Costs what `function` costs, once for each time.
    """

    def at_one_time(pair):
        x, t = pair
        return function(x, jnp.full(x.shape[:1], t))

    return jax.lax.map(at_one_time, (path, grid))


# ---- norm growth and anomalous diffusion


def norm_ratio(guided: Array, unguided: Array) -> Array:
    """E|x_t guided| / E|x_t unguided| at every time; paths [times, batch, ...] -> [times].

    Above 1 guidance amplifies the norm. For Gaussian branches of equal covariance v I the guided flow (rho = sigma /
    alpha, omega constant) is the unguided one plus omega alpha (mu_c - mu_u) (1 - sqrt((v + rho_t^2)/(v + rho_T^2))):
    growth linear in omega.
    Source: Angle Domain Guidance, arXiv 2506.11039, norm amplification (the ratio: our choice of measure).
    """
    return jnp.mean(_norms(guided), axis=1) / jnp.mean(_norms(unguided), axis=1)


def projection(path: Array, normal: Array) -> Array:
    """<x_t, n> / |n| for every sample at every time; path [times, batch, ...], normal [...] -> [times, batch].

    Theorem 3.2 of the source speaks of this projection, not of the norm: for a class that a hyperplane with outward
    normal n separates from the means of all others, guidance moves samples outward along n.
    Source: Angle Domain Guidance, arXiv 2506.11039, theorem 3.2 (exact statement not found; this reading is tested).
    """
    flat = normal.reshape(-1)
    return jnp.einsum("tnd,d->tn", _flat(path), flat / _safe_norm(flat), precision="highest")


def score_cosine(schedule: Schedule, x: Array, t: Array, guided: Array, positive: Array) -> Array:
    """cos of the angle between the guided and the conditional score at (x_t, t), [batch]; 0 where one of them is 0.

    guided, positive: x0-predictions [batch, ...]; score = (alpha x0 - x) / sigma^2. Where it is negative, diffusion is
    "anomalous": guidance drives samples against the score of the distribution that they are meant to follow. For
    Gaussian branches of equal covariance that region is the ball over the diameter from alpha mu_c to
    alpha (mu_c + omega (mu_c - mu_u)), for the angle over a diameter is a right one.
    Source: Angle Domain Guidance, arXiv 2506.11039, theorem 3.3 (a non-positive inner product of these two scores).
    """
    # the score is -eps/sigma: at one (x, t) the angle of the scores is that of the noises
    first, second = eps_from_x0(schedule, x, guided, t), eps_from_x0(schedule, x, positive, t)
    lengths = _norms(first[None])[0] * _norms(second[None])[0]
    return jnp.where(lengths > 0, row_dot(first, second) / jnp.where(lengths > 0, lengths, 1), 0)


# ---- stage 1: direction shift


def shift_gain(guided: Array, unguided: Array, point: Array) -> Array:
    """|x_t unguided - p|^2 - |x_t guided - p|^2 for paired samples; paths [times, batch, ...] -> [times, batch].

    With p = (1 + omega) mu, mu the mean of the conditional data law, its mean over the batch is positive from t = 1
    down to some t_e < 1: guidance first hurries everything towards the scaled mean.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, theorem 3.2.
    """
    point = point.reshape(1, 1, -1)
    return jnp.sum((_flat(unguided) - point) ** 2 - (_flat(guided) - point) ** 2, axis=-1)


def mean_multiple(path: Array, mean: Array) -> Array:
    """k_t = <E x_t, mu> / |mu|^2: which multiple of the conditional mean the ensemble has reached, [times].

    Proposition 3.4 of the source: a point near k mu falls to the strong mode from a radius that grows with k, and k
    grows with omega.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, proposition 3.4 (k; as a measure of an
    ensemble: our choice).
    """
    flat = mean.reshape(-1)
    centre = jnp.mean(_flat(path), axis=1)
    return jnp.einsum("td,d->t", centre, flat, precision="highest") / jnp.sum(flat**2)


def coherence(gap: Array) -> Array:
    """|E d|^2 / E|d|^2 in [0, 1] over the batch of gaps d = D_c - D_u [times, batch, ...]; [times], 0 for no gap.

    1: guidance pulls all samples the same way, as in the direction shift; it falls as they are pulled to different
    modes. Unlike the distance of theorem 3.2 it needs no target, so it can be measured on a network. Our choice.
    """
    flat = _flat(gap)
    mean_square = jnp.mean(jnp.sum(flat**2, axis=-1), axis=1)
    square_mean = jnp.sum(jnp.mean(flat, axis=1) ** 2, axis=-1)
    return jnp.where(mean_square > 0, square_mean / jnp.where(mean_square > 0, mean_square, 1), 0)


# ---- stage 2: mode separation


def decidedness(responsibilities: Array, prior: Array) -> Array:
    """1 - H(r)/H(prior): 0 where a state says nothing of its mode, 1 where its mode is certain.

    responsibilities r [..., modes]: p(mode | x_t); prior [modes]: their value at t = 1, with at least two modes > 0.
    H is the entropy. May be below 0 for a state less certain than the prior. Its mean over an unguided ensemble is the
    share of the information about the mode that x_t has. Our choice of a clock for the second stage.
    """
    return 1 - _entropy(responsibilities) / _entropy(prior)


def stage_times(decided: Array, grid: Array, low=0.05, high=0.95) -> tuple[Array, Array]:
    """Times (t_12, t_23) at which the mean decidedness [times] of an ensemble first reaches `low` and `high`.

    Direction shift is t > t_12, mode separation t_12 >= t > t_23, concentration t <= t_23. Linear between the times of
    the grid; the last time where the level is never reached. Our choice: the source proves that such times exist and
    does not say how to find them.
    """
    return _first_crossing(decided, grid, low), _first_crossing(decided, grid, high)


def _first_crossing(values: Array, grid: Array, level) -> Array:
    reached = values >= level
    i = jnp.clip(jnp.argmax(reached), 1, grid.shape[0] - 1)
    before, after = values[i - 1], values[i]
    rise = jnp.where(after > before, after - before, 1)
    share = jnp.clip((level - before) / rise, 0, 1)
    crossing = grid[i - 1] + share * (grid[i] - grid[i - 1])
    return jnp.where(reached[0], grid[0], jnp.where(jnp.any(reached), crossing, grid[-1]))


# ---- stage 3: concentration


def pair_contraction(first: Array, second: Array) -> Array:
    """|x_t - z_t| / |x_T - z_T| for pairs of paths [times, batch, ...] that start close together; [times, batch].

    Within one mode N(mu_k, v I), for the unconditional law N(m, u I), x = alpha y and rho = sigma/alpha, it is

        (alpha_t / alpha_T) ((v + rho_t^2)/(v + rho_T^2))^((1+omega)/2) ((u + rho_T^2)/(u + rho_t^2))^(omega/2)

    at constant omega: the smaller, the stronger the guidance, if v < u. 0 for pairs that start equal.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, theorem 3.5 (guided pairs stay closer
    than unguided ones); the closed form: derived here.
    """
    distance = _norms(first - second)
    start = distance[:1]
    return jnp.where(start > 0, distance / jnp.where(start > 0, start, 1), 0)


def mode_spread(path: Array, final: Array) -> Array:
    """Standard deviation per dimension of the samples that end in each mode, [times, modes]; a mode of none has 0.

    path [times, batch, d]; final [batch, modes]: responsibilities of the samples' last states (`nearest_mode` of
    guidance.metrics). At data it compares with the mode's own standard deviation: below it, guidance has concentrated.
    """

    def at_one_time(x):
        covariance = mode_moments(x, final).covariance
        variance = jnp.trace(covariance, axis1=-2, axis2=-1) / x.shape[-1]
        return safe_sqrt(variance)

    return jax.lax.map(at_one_time, path)


# ---- helpers


def _flat(path: Array) -> Array:
    return path.reshape(*path.shape[:2], -1)


def _safe_norm(vectors: Array) -> Array:
    """Euclidean norms over the last axis, with a zero gradient at the zero vector."""
    return safe_sqrt(jnp.sum(vectors**2, axis=-1))


def _norms(path: Array) -> Array:
    return _safe_norm(_flat(path))


def _entropy(probabilities: Array) -> Array:
    positive = probabilities > 0
    return -jnp.sum(jnp.where(positive, probabilities * jnp.log(jnp.where(positive, probabilities, 1)), 0), axis=-1)

"""Measures along trajectories: what guidance does on the way from noise to data.

A `path` is a trajectory [times, batch, ...] as `sampling.sample(..., trajectory=True)` returns it, on a grid [times]
that falls from noise to data. Two paths that are compared should start from the same noise: the differences are then
paired, and vary far less than either path. Measures keep the batch axis where a mean over it would hide the standard
error. They draw no random numbers and call no network.

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
    """Calls function(x [batch, ...], t [batch]) at every time of the path; stacks the results on a first axis [times].

    The times are evaluated one after the other, to save memory.
    """

    def at_one_time(pair):
        x, t = pair
        return function(x, jnp.full(x.shape[:1], t))

    return jax.lax.map(at_one_time, (path, grid))


# ---- norm growth and anomalous diffusion


def norm_ratio(guided: Array, unguided: Array) -> Array:
    """Returns E|x_t guided| / E|x_t unguided| at every time [times] of two paths [times, batch, ...].

    Above 1 guidance amplifies the norm. For Gaussian branches of equal covariance v I and constant omega the guided
    flow is the unguided one plus omega alpha (mu_c - mu_u) (1 - sqrt((v + rho_t^2)/(v + rho_T^2))), rho = sigma/alpha,
    which is linear in omega.
    Source: Angle Domain Guidance, arXiv 2506.11039, norm amplification (the ratio: our choice of measure).
    """
    return jnp.mean(_norms(guided), axis=1) / jnp.mean(_norms(unguided), axis=1)


def projection(path: Array, normal: Array) -> Array:
    """Returns the projection <x_t, n> / |n| [times, batch] of a path [times, batch, ...] on a normal n [...].

    Theorem 3.2 of the source is about this projection, not about the norm: if a hyperplane with outward normal n
    separates a class from the means of all others, guidance moves samples outward along n.
    Source: Angle Domain Guidance, arXiv 2506.11039, theorem 3.2 (exact statement not found; this reading is tested).
    """
    flat = normal.reshape(-1)
    return jnp.einsum("tnd,d->tn", _flat(path), flat / _safe_norm(flat), precision="highest")


def score_cosine(schedule: Schedule, x: Array, t: Array, guided: Array, positive: Array) -> Array:
    """Returns the cosine [batch] of the angle between guided and conditional score at (x_t, t); 0 if one of them is 0.

    guided, positive: x0-predictions [batch, ...]; score = (alpha x0 - x) / sigma^2. Where the cosine is negative the
    paper calls diffusion anomalous: guidance drives samples against the score that they should follow. For Gaussian
    branches of equal covariance this happens in the ball whose diameter runs from alpha mu_c to
    alpha (mu_c + omega (mu_c - mu_u)).
    Source: Angle Domain Guidance, arXiv 2506.11039, theorem 3.3 (a non-positive inner product of these two scores).
    """
    # the score is -eps/sigma, so that the angle between two scores at one (x, t) is that between their noises
    first, second = eps_from_x0(schedule, x, guided, t), eps_from_x0(schedule, x, positive, t)
    lengths = _norms(first[None])[0] * _norms(second[None])[0]
    return jnp.where(lengths > 0, row_dot(first, second) / jnp.where(lengths > 0, lengths, 1), 0)


# ---- stage 1: direction shift


def shift_gain(guided: Array, unguided: Array, point: Array) -> Array:
    """Returns |x_t unguided - p|^2 - |x_t guided - p|^2 [times, batch] for paired paths and a point p [...].

    Let p = (1 + omega) mu, where mu is the mean of the conditional data. The mean of the gain over the batch is then
    positive from t = 1 down to some t_e < 1: guidance first moves all samples towards the scaled mean.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, theorem 3.2.
    """
    point = point.reshape(1, 1, -1)
    return jnp.sum((_flat(unguided) - point) ** 2 - (_flat(guided) - point) ** 2, axis=-1)


def mean_multiple(path: Array, mean: Array) -> Array:
    """Returns k_t = <E x_t, mu> / |mu|^2 [times], the multiple of the conditional mean mu that is reached.

    Proposition 3.4 of the source: the radius around k mu from which points fall to the strong mode grows with k, and k
    grows with omega.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, proposition 3.4 (k; as a measure of an
    ensemble: our choice).
    """
    flat = mean.reshape(-1)
    centre = jnp.mean(_flat(path), axis=1)
    return jnp.einsum("td,d->t", centre, flat, precision="highest") / jnp.sum(flat**2)


def coherence(gap: Array) -> Array:
    """Returns |E d|^2 / E|d|^2 [times], in [0, 1], over the batch of gaps d = D_c - D_u [times, batch, ...].

    It is 1 where guidance pulls all samples the same way, as in the direction shift, and falls as samples are pulled
    to different modes. It is 0 where there is no gap. Unlike `shift_gain` it needs no target point, so that it can be
    measured on a network. Source: our choice.
    """
    flat = _flat(gap)
    mean_square = jnp.mean(jnp.sum(flat**2, axis=-1), axis=1)
    square_mean = jnp.sum(jnp.mean(flat, axis=1) ** 2, axis=-1)
    return jnp.where(mean_square > 0, square_mean / jnp.where(mean_square > 0, mean_square, 1), 0)


# ---- stage 2: mode separation


def decidedness(responsibilities: Array, prior: Array) -> Array:
    """Returns 1 - H(r)/H(prior) [...]: 0 where a state says nothing about its mode, 1 where its mode is certain.

    responsibilities r [..., modes]: p(mode | x_t). prior [modes]: p(mode), with at least two modes above 0. H is the
    entropy. The value is negative for a state that is less certain than the prior. Its mean over an unguided ensemble
    is the mutual information between x_t and the mode, relative to H(prior). Source: our choice.
    """
    return 1 - _entropy(responsibilities) / _entropy(prior)


def stage_times(decided: Array, grid: Array, low=0.05, high=0.95) -> tuple[Array, Array]:
    """Returns the times (t_12, t_23) at which an ensemble's mean decidedness [times] first reaches `low` and `high`.

    Direction shift is t > t_12, mode separation is t_12 >= t > t_23, and concentration is t <= t_23. Times between
    those of the grid are interpolated linearly. A level that is never reached gives the last time. Source: our choice;
    arXiv 2509.22007 proves that such times exist and does not say how to find them.
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
    """Returns |x_t - z_t| / |x_T - z_T| [times, batch] for pairs of paths that start close together.

    For a conditional mode N(mu_k, v I), an unconditional N(m, u I) and constant omega it is, with rho = sigma/alpha,

        (alpha_t / alpha_T) ((v + rho_t^2)/(v + rho_T^2))^((1+omega)/2) ((u + rho_T^2)/(u + rho_t^2))^(omega/2)

    If v < u it gets smaller as omega grows. It is 0 for pairs that start equal.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, theorem 3.5 (guided pairs stay closer
    than unguided ones); the closed form: derived here.
    """
    distance = _norms(first - second)
    start = distance[:1]
    return jnp.where(start > 0, distance / jnp.where(start > 0, start, 1), 0)


def mode_spread(path: Array, final: Array) -> Array:
    """Returns the standard deviation per dimension of the samples that end in each mode, [times, modes].

    path [times, batch, d]. final [batch, modes]: the responsibilities of the last states, as from `nearest_mode`. A
    mode without samples has 0. Where the last value is below the true standard deviation of the mode, guidance has
    concentrated the samples.
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
    """Returns Euclidean norms over the last axis, with a zero gradient at the zero vector."""
    return safe_sqrt(jnp.sum(vectors**2, axis=-1))


def _norms(path: Array) -> Array:
    return _safe_norm(_flat(path))


def _entropy(probabilities: Array) -> Array:
    positive = probabilities > 0
    return -jnp.sum(jnp.where(positive, probabilities * jnp.log(jnp.where(positive, probabilities, 1)), 0), axis=-1)

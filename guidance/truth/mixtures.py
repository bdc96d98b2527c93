"""Gaussian mixtures in closed form: the ground truth of the whole project.

A `Mixture` has C classes and the null condition. They share J modes and weigh them differently. A schedule diffuses a
mixture into a mixture, so that density, score, denoiser, posterior and reverse kernel are all known exactly:

    x_t | j ~ N(alpha m_j, S_j),  S_j = alpha^2 Sigma_j + sigma^2 I
    x_0 | x_t, j ~ N(m_j + G_j (x_t - alpha m_j), (sigma^2 / alpha) G_j),  G_j = alpha Sigma_j S_j^-1

A `Law` has one mixture for each sample of a batch, such as the posterior given the sample's x_t. Covariances are
isotropic, diagonal or full; all share one code path, since a full covariance is kept as variances along eigenvectors.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from guidance.shapes import normal_like, row_keys, safe_sqrt
from guidance.types import Array, Denoise, Schedule


class Mixture(NamedTuple):
    """p(x0 | c) = sum_j exp(log_weights[c, j]) N(means[j], Sigma_j) for labels c < C; row C is the null condition."""

    log_weights: Array  # [C + 1, J]: log p(j | c), then log p(j); -inf where class c has no mode j
    log_prior: Array  # [C]: log p(c)
    means: Array  # [J, d]
    variances: Array  # [J, 1] isotropic, [J, d] diagonal, or [J, d] along the columns of basis
    basis: Array | None = None  # [J, d, d]: eigenvectors of full covariances, one a column

    @property
    def null(self) -> int:
        """Returns the label of the null condition, which is the number of classes C."""
        return self.log_prior.shape[-1]


class Law(NamedTuple):
    """One Gaussian mixture for each sample of a batch."""

    log_weights: Array  # [n, J]
    means: Array  # [n, J, d]
    variances: Array  # [n, J, 1] or [n, J, d]
    basis: Array | None = None  # [J, d, d], shared by the batch


# ---- construction


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _probabilities(name: str, values, count: int) -> np.ndarray:
    values = np.ones(count) if values is None else np.asarray(values, np.float64)
    _require(values.shape == (count,), f"{name}: expected {count} numbers, got shape {values.shape}")
    _require(bool(np.all(values >= 0)), f"{name}: must be non-negative")
    _require(0 < values.sum() < np.inf, f"{name}: the sum must be positive and finite")
    return values / values.sum()


def _eigen(covariances: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns variances and eigenvectors (None unless full) of covariances [J], diagonal [J, d] or full [J, d, d]."""
    basis = None
    if covariances.ndim == 3:
        gap = np.abs(covariances - covariances.swapaxes(1, 2)).max()
        _require(gap <= 1e-6 * np.abs(covariances).max(), "covariances: full matrices must be symmetric")
        variances, basis = np.linalg.eigh(covariances)
    else:
        variances = covariances.reshape(len(covariances), -1)
    _require(bool(np.all(variances > 0)), "covariances: must be positive (definite)")
    return variances, basis


def from_classes(
    means: Sequence,
    covariances: float | Sequence,
    weights: Sequence | None = None,
    class_prior: Sequence | None = None,
) -> Mixture:
    """Builds a mixture from concrete numbers, listed class by class.

    means: for each class an array [J_c, d]. covariances: one variance for all modes, or for each class a variance, or
    [J_c] (isotropic), [J_c, d] (diagonal) or [J_c, d, d] (full), in the same form for every class. weights: for each
    class relative weights [J_c]; default: equal. class_prior: relative weights [C] of the classes; default: equal.

    The null condition is the average of the classes under class_prior. To give p_c and p_u separately, list them as
    two classes with class_prior (0, 1): the null condition is then the second one. Raises ValueError, naming the
    argument that does not fit.
    """
    means = [np.asarray(m, np.float64) for m in means]
    _require(len(means) > 0, "means: at least one class is needed")
    _require(all(m.ndim == 2 and m.size > 0 for m in means), "means: each class needs an array [modes, d]")
    dim, counts = means[0].shape[1], [len(m) for m in means]
    _require(all(m.shape[1] == dim for m in means), "means: all classes must have the same dimension")
    _require(all(np.isfinite(m).all() for m in means), "means: must be finite")

    forms: Any = [covariances] * len(means) if np.isscalar(covariances) else covariances
    _require(len(forms) == len(means), f"covariances: expected {len(means)} classes, got {len(forms)}")
    per_class = [np.asarray(v, np.float64) for v in forms]
    per_class = [np.full(k, v) if v.ndim == 0 else v for k, v in zip(counts, per_class, strict=True)]
    _require(len({v.ndim for v in per_class}) == 1, "covariances: all classes must have the same form")
    fits = all(v.shape in ((k,), (k, dim), (k, dim, dim)) for k, v in zip(counts, per_class, strict=True))
    _require(fits, f"covariances: each class needs [modes], [modes, {dim}] or [modes, {dim}, {dim}]")
    variances, basis = _eigen(np.concatenate(per_class))

    _require(weights is None or len(weights) == len(means), f"weights: expected {len(means)} classes")
    given = [None] * len(means) if weights is None else weights
    rows = np.zeros((len(means), sum(counts)))
    ends = np.cumsum(counts)
    for c, end in enumerate(ends):
        rows[c, end - counts[c] : end] = _probabilities(f"weights of class {c}", given[c], counts[c])
    prior = _probabilities("class_prior", class_prior, len(means))
    with np.errstate(divide="ignore"):  # log 0 = -inf is meant
        log_weights, log_prior = np.log(np.concatenate([rows, prior[None] @ rows])), np.log(prior)
    leaves = log_weights, log_prior, np.concatenate(means), variances, basis
    return Mixture(*jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(float)), leaves))


def reweighted(mixture: Mixture, log_factor: Array) -> tuple[Mixture, Array]:
    """Multiplies p(c, j) by f_j = exp(log_factor [J]); returns the normalised mixture and log Z [C + 1].

    p'(j | c) = p(j | c) f_j / Z_c,  p'(c) = p(c) Z_c / Z,  p'(j) = p(j) f_j / Z.  log Z has a log Z_c for each class
    and last the log Z of the null condition. Our choice: the joint distribution is tilted, so that a class gains or
    loses prior probability with its Z_c and the null condition remains the average of the classes.
    """
    unnormalised = mixture.log_weights + log_factor[None]
    log_z = jax.nn.logsumexp(unnormalised, axis=-1)
    log_prior = mixture.log_prior + log_z[:-1] - log_z[-1]
    return mixture._replace(log_weights=unnormalised - log_z[:, None], log_prior=log_prior), log_z


# ---- laws


def _into(basis: Array | None, vectors: Array) -> Array:
    """Returns the coordinates of vectors [n, J, d] along each mode's eigenvectors."""
    return vectors if basis is None else jnp.einsum("njd,jde->nje", vectors, basis, precision="highest")


def _back(basis: Array | None, coordinates: Array) -> Array:
    return coordinates if basis is None else jnp.einsum("nje,jde->njd", coordinates, basis, precision="highest")


def _rows(mixture: Mixture, cond: Array) -> Array:
    # A label above C gives NaN instead of quietly becoming another label.
    return mixture.log_weights.at[cond].get(mode="fill", fill_value=jnp.nan)


def _log_components(law: Law, x: Array) -> Array:
    """Returns log (w_j N(x; m_j, Sigma_j)) [n, J] for x [n, d]."""
    dim = x.shape[-1]
    offset = _into(law.basis, x[:, None] - law.means)
    log_det = jnp.sum(jnp.log(law.variances), -1) * (dim // law.variances.shape[-1])
    quadratic = jnp.sum(offset**2 / law.variances, -1)
    return law.log_weights - 0.5 * (quadratic + log_det + dim * math.log(2 * math.pi))


def law_log_density(law: Law, x: Array) -> Array:
    """Returns the log density [n] of each row of x [n, d] under its own mixture."""
    return jax.nn.logsumexp(_log_components(law, x), axis=-1)


def law_mean(law: Law) -> Array:
    """Returns the mean of each mixture, sum_j w_j m_j, [n, d]."""
    return jnp.einsum("nj,njd->nd", jnp.exp(law.log_weights), law.means, precision="highest")


def law_moments(law: Law) -> tuple[Array, Array]:
    """Returns the mean [n, d] and the covariance [n, d, d] of each mixture."""
    weights, mean = jnp.exp(law.log_weights), law_mean(law)
    dim, offset = mean.shape[-1], law.means - mean[:, None]
    between = jnp.einsum("nj,njd,nje->nde", weights, offset, offset, precision="highest")
    basis = jnp.eye(dim, dtype=mean.dtype)[None] if law.basis is None else law.basis
    basis = jnp.broadcast_to(basis, (law.means.shape[1], dim, dim))
    spread = jnp.broadcast_to(weights[..., None] * law.variances, offset.shape)
    return mean, between + jnp.einsum("nje,jde,jfe->ndf", spread, basis, basis, precision="highest")


def _keys(key: Array, n: int) -> Array:
    """Returns one key per sample: the given ones if `key` is [n], otherwise `key` folded with the row number."""
    return key if key.ndim == 1 else row_keys(key, jnp.arange(n))


def _choose(keys: Array, log_weights: Array) -> tuple[Array, Array]:
    """Draws a mode for each sample; returns the modes [n] and fresh keys [n] for the noise."""
    pairs = jax.vmap(jax.random.split)(keys)
    return jax.vmap(jax.random.categorical)(pairs[:, 0], log_weights), pairs[:, 1]


def _draw_gaussian(keys: Array, mean: Array, variance: Array, basis: Array | None) -> Array:
    """Draws from N(mean [n, d], variance [n, 1 or d] along the columns of basis [n, d, d])."""
    noise = safe_sqrt(variance) * normal_like(keys, mean)
    return mean + (noise if basis is None else jnp.einsum("ne,nde->nd", noise, basis, precision="highest"))


def law_sample(key: Array, law: Law) -> Array:
    """Draws one exact sample from each mixture, [n, d]. key: one key, or one per sample [n]."""
    mode, keys = _choose(_keys(key, law.means.shape[0]), law.log_weights)
    mean, variance = (jnp.take_along_axis(a, mode[:, None, None], axis=1)[:, 0] for a in (law.means, law.variances))
    return _draw_gaussian(keys, mean, variance, None if law.basis is None else law.basis[mode])


# ---- the data


def sample(key: Array, mixture: Mixture, cond: Array) -> Array:
    """Draws exact samples x0 ~ p(x0 | cond), [n, d], for labels cond [n]. key: one key, or one per sample [n]."""
    mode, keys = _choose(_keys(key, cond.shape[0]), _rows(mixture, cond))
    basis = None if mixture.basis is None else mixture.basis[mode]
    return _draw_gaussian(keys, mixture.means[mode], mixture.variances[mode], basis)


def sample_joint(key: Array, mixture: Mixture, n: int) -> tuple[Array, Array]:
    """Draws n exact pairs (x0 [n, d], cond [n]) from the joint distribution p(c) p(x0 | c)."""
    cond, keys = _choose(_keys(key, n), jnp.broadcast_to(mixture.log_prior, (n, mixture.null)))
    return sample(keys, mixture, cond), cond


def moments(mixture: Mixture, cond: Array) -> tuple[Array, Array]:
    """Returns the mean [n, d] and the covariance [n, d, d] of p(x0 | cond) for labels cond [n]."""
    shape = (cond.shape[0], *mixture.means.shape)
    variances = jnp.broadcast_to(mixture.variances, (*shape[:2], mixture.variances.shape[-1]))
    return law_moments(Law(_rows(mixture, cond), jnp.broadcast_to(mixture.means, shape), variances, mixture.basis))


# ---- the diffused data


def _per_mode(coefficient: Array) -> Array:
    """Reshapes a coefficient [n] (or a scalar) to [n, 1, 1]."""
    return jnp.reshape(coefficient, (-1, 1, 1))


def _weighted_at(mixture: Mixture, schedule: Schedule, t: Array, log_weights: Array) -> Law:
    alpha, sigma = _per_mode(schedule.alpha(t)), _per_mode(schedule.sigma(t))
    return Law(log_weights, alpha * mixture.means[None], alpha**2 * mixture.variances[None] + sigma**2, mixture.basis)


def marginal(mixture: Mixture, schedule: Schedule, t: Array, cond: Array) -> Law:
    """Returns p(x_t | cond) for times t [n] and labels cond [n]: modes N(alpha m_j, alpha^2 Sigma_j + sigma^2 I)."""
    return _weighted_at(mixture, schedule, t, _rows(mixture, cond))


def log_density(mixture: Mixture, schedule: Schedule, x: Array, t: Array, cond: Array) -> Array:
    """Returns log p(x_t | cond) [n] at x [n, d], t [n]; at t = 0 this is the density of the data."""
    return law_log_density(marginal(mixture, schedule, t, cond), x)


def responsibilities(mixture: Mixture, schedule: Schedule, x: Array, t: Array, cond: Array) -> Array:
    """Returns the probability p(j | x_t, cond) of each mode, [n, J], for x [n, d], t [n], cond [n]."""
    return jax.nn.softmax(_log_components(marginal(mixture, schedule, t, cond), x), axis=-1)


def class_log_posterior(mixture: Mixture, schedule: Schedule, x: Array, t: Array) -> Array:
    """Returns log p(c | x_t) for every class, [n, C]: the exact classifier of noisy x [n, d] at t [n]."""
    law = _weighted_at(mixture, schedule, t, jnp.zeros_like(mixture.log_weights[:1]))
    joint = (mixture.log_prior[:, None] + mixture.log_weights[:-1])[None] + _log_components(law, x)[:, None]
    return jax.nn.log_softmax(jax.nn.logsumexp(joint, axis=-1), axis=-1)


def score(mixture: Mixture, schedule: Schedule, x: Array, t: Array, cond: Array) -> Array:
    """Returns the score grad_x log p(x_t | cond) = -sum_j p(j | x_t, cond) S_j^-1 (x_t - alpha m_j), [n, d].

    It is finite at t = 0, where it is the score of the data.
    """
    law = marginal(mixture, schedule, t, cond)
    pull = _back(law.basis, _into(law.basis, x[:, None] - law.means) / law.variances)
    weights = jax.nn.softmax(_log_components(law, x), axis=-1)
    return -jnp.sum(weights[..., None] * pull, axis=1)


def posterior(mixture: Mixture, schedule: Schedule, x: Array, t: Array, cond: Array) -> Law:
    """Returns the posterior p(x_0 | x_t, cond) of each sample, for x [n, d], t [n], cond [n].

    Its modes are N(m_j + G_j (x_t - alpha m_j), Sigma_j sigma^2 S_j^-1) with G_j = alpha Sigma_j S_j^-1. It is a point
    at x_t for t = 0, and p(x_0 | cond) where alpha = 0.
    """
    law = marginal(mixture, schedule, t, cond)
    alpha, sigma = _per_mode(schedule.alpha(t)), _per_mode(schedule.sigma(t))
    shrink = mixture.variances[None] / law.variances
    moved = _back(law.basis, alpha * shrink * _into(law.basis, x[:, None] - law.means))
    log_weights = jax.nn.log_softmax(_log_components(law, x), axis=-1)
    return Law(log_weights, mixture.means[None] + moved, sigma**2 * shrink, mixture.basis)


def _denoise(mixture: Mixture, schedule: Schedule, x: Array, t: Array, cond: Array) -> Array:
    return law_mean(posterior(mixture, schedule, x, t, cond))


def denoise(mixture: Mixture, schedule: Schedule) -> Denoise:
    """Returns the exact denoiser D(x, t, cond) = E[x_0 | x_t, cond]; the label C gives D_u.

    The denoiser is a pytree if `schedule` is one; the mixture's arrays are among its leaves.
    """
    return Partial(_denoise, mixture, schedule)


# ---- the reverse kernel


def _ratio(numerator: Array, denominator: Array) -> Array:
    """Returns numerator / denominator, and 1 where the denominator is 0 (both ends of the bridge are then equal)."""
    positive = denominator > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), 1)


def bridge(schedule: Schedule, *, t: Array, s: Array) -> tuple[Array, Array, Array]:
    """Returns (A, B, V) of p(x_s | x_t, x_0) = N(A x_t + B x_0, V I) for s <= t, elementwise.

        q = alpha_t sigma_s / (alpha_s sigma_t)
        A = q sigma_s / sigma_t,  B = alpha_s (1 - q^2),  V = sigma_s^2 (1 - q^2)

    The values are exact at s = 0, at s = t and where alpha_t = 0 too. They equal `sampling.transition` at churn 1, but
    are derived here a second time, so that the ground truth shares no code with the samplers it tests.
    Source: Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 6-7, for any schedule.
    """
    alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
    sigma_ratio = _ratio(sigma_s, schedule.sigma(t))
    q = sigma_ratio * _ratio(schedule.alpha(t), alpha_s)
    lost = jnp.maximum((1 - q) * (1 + q), 0)
    return q * sigma_ratio, alpha_s * lost, sigma_s**2 * lost


def reverse_kernel(mixture: Mixture, schedule: Schedule, x: Array, *, t: Array, s: Array, cond: Array) -> Law:
    """Returns the reverse kernel p(x_s | x_t, cond) of each sample, s <= t; it is exact for steps of any size.

    It is E[p(x_s | x_t, x_0) | x_t, cond]: a mode N(mu, T) of the posterior becomes N(A x_t + B mu, B^2 T + V I), with
    (A, B, V) from `bridge`. x [n, d]; t, s, cond [n].
    """
    a, b, v = (_per_mode(coefficient) for coefficient in bridge(schedule, t=t, s=s))
    law = posterior(mixture, schedule, x, t, cond)
    return law._replace(means=a * x[:, None] + b * law.means, variances=b**2 * law.variances + v)


def reverse_sample(
    key: Array, mixture: Mixture, schedule: Schedule, x: Array, *, t: Array, s: Array, cond: Array
) -> Array:
    """Draws exact samples x_s ~ p(x_s | x_t, cond), [n, d]. key: one key, or one per sample [n]."""
    return law_sample(key, reverse_kernel(mixture, schedule, x, t=t, s=s, cond=cond))

"""Denoisers that are wrong in a known way, to see which errors guidance repairs and which it cannot.

Guidance with weight omega is exactly right for `attenuated` (and learned weights should find that omega); `smoothed`
and `perturbed` are errors that no single omega removes.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.shapes import like, null_like
from guidance.truth.mixtures import Mixture, reweighted
from guidance.types import Array, Cond, Denoise, Schedule


def _attenuated(denoise: Denoise, r: Array, null: Cond, x: Array, t: Array, cond: Cond) -> Array:
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x, t, cond), (x, t, null_like(cond, null)))
    conditional, unconditional = jnp.split(denoise(*both), 2)
    return (1 - r) * conditional + r * unconditional


def attenuated(denoise: Denoise, r: float | Array, null: Cond) -> Denoise:
    """D_c <- (1 - r) D_c + r D_u, while D_u stays: a network that under-uses its condition.

    CFG with omega = r / (1 - r) repairs it exactly, r in [0, 1). `null` is the null condition (for labels the int C).
    One call of `denoise` on a doubled batch. A pytree with the knob r if `denoise` is one.
    Source: our choice; the guided predictions sweep the same line, so every optimal omega of an objective becomes
    (1 + omega) / (1 - r) - 1.
    """
    return Partial(_attenuated, denoise, r, null)


def _smoothed(denoise: Denoise, schedule: Schedule, h: Array, x: Array, t: Array, cond: Cond) -> Array:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    total = sigma**2 + (alpha * h) ** 2
    # Where alpha = 0 the extra blur is lost in the noise: the later time is t itself.
    has_signal, blurred = alpha > 0, total > 0
    safe_alpha, safe_total = jnp.where(has_signal, alpha, 1), jnp.where(blurred, total, 1)
    later = schedule.time(2 * jnp.log(safe_alpha) - jnp.log(safe_total))
    later = jnp.where(has_signal & blurred, later, t)
    scale = jnp.where(has_signal, schedule.alpha(later) / safe_alpha, 1)
    kept = jnp.where(blurred, sigma**2 / safe_total, 1)
    moved = jnp.where(blurred, alpha * h**2 / safe_total, 0)
    return like(moved, x) * x + like(kept, x) * denoise(like(scale, x) * x, later, cond)


def smoothed(denoise: Denoise, schedule: Schedule, h: float | Array) -> Denoise:
    """The denoiser of the data blurred by N(0, h^2 I): a network that cannot resolve detail finer than h.

    At the EDM state y = x/alpha and noise level rho = sigma/alpha the blurred data have the score of the sharp data at
    noise level rho' = sqrt(rho^2 + h^2), hence

        D_h(y, rho) = y + (rho / rho')^2 (D(y, rho') - y).

    Acts on D_c and D_u alike; h >= 0, in units of x0. A pytree with the knob h if `denoise` and `schedule` are.
    Source: derived here from Tweedie's formula (Efron 2011); our choice of error.
    """
    return Partial(_smoothed, denoise, schedule, h)


def perturbed(
    key: Array, mixture: Mixture, mean_scale: float | Array = 0.0, log_weight_scale: float | Array = 0.0
) -> Mixture:
    """Mixture with means m_j + mean_scale N(0, I) and p(j) multiplied by exp(log_weight_scale N(0, 1)), normalised.

    A model that learned the wrong modes: p(j | c) and p(c) follow the perturbed joint law, so that the null condition
    stays the average of the classes. Variances stay. Source: our choice of error.
    """
    mean_key, weight_key = jax.random.split(key)
    noise = jax.random.normal(mean_key, mixture.means.shape, mixture.means.dtype)
    log_factor = jax.random.normal(weight_key, mixture.means.shape[:1], mixture.means.dtype)
    mixture, _ = reweighted(mixture, log_weight_scale * log_factor)
    return mixture._replace(means=mixture.means + mean_scale * noise)

"""Denoisers with known errors, which show what guidance can repair and what it cannot.

One weight omega repairs `attenuated` exactly, and a learned weight should find it. No single omega repairs `smoothed`
or `perturbed`.
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
    """Replaces D_c by (1 - r) D_c + r D_u and keeps D_u, as of a network that uses too little of its condition.

    r in [0, 1). CFG with omega = r / (1 - r) repairs the error exactly. More generally, the guided predictions still
    lie on the same line, so an objective whose optimum is omega has it at (1 + omega) / (1 - r) - 1 instead. null: the
    null condition, such as the label C. Costs 2 evaluations, in one call of `denoise` on a doubled batch. The result
    is a pytree with the leaf r if `denoise` is one. Source: our choice of error.
    """
    return Partial(_attenuated, denoise, r, null)


def _smoothed(denoise: Denoise, schedule: Schedule, h: Array, x: Array, t: Array, cond: Cond) -> Array:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    total = sigma**2 + (alpha * h) ** 2
    # Where alpha = 0 there is no signal to blur: the later time is t itself.
    has_signal, blurred = alpha > 0, total > 0
    safe_alpha, safe_total = jnp.where(has_signal, alpha, 1), jnp.where(blurred, total, 1)
    later = schedule.time(2 * jnp.log(safe_alpha) - jnp.log(safe_total))
    later = jnp.where(has_signal & blurred, later, t)
    scale = jnp.where(has_signal, schedule.alpha(later) / safe_alpha, 1)
    kept = jnp.where(blurred, sigma**2 / safe_total, 1)
    moved = jnp.where(blurred, alpha * h**2 / safe_total, 0)
    return like(moved, x) * x + like(kept, x) * denoise(like(scale, x) * x, later, cond)


def smoothed(denoise: Denoise, schedule: Schedule, h: float | Array) -> Denoise:
    """Returns the denoiser of data blurred by N(0, h^2 I), as of a network that cannot resolve detail finer than h.

    Let y = x/alpha be the EDM state and rho = sigma/alpha its noise level. The blurred data have at rho the score that
    the sharp data have at rho' = sqrt(rho^2 + h^2), hence

        D_h(y, rho) = y + (rho / rho')^2 (D(y, rho') - y).

    The error is in D_c and D_u alike. h >= 0, in the units of x0. Costs 1 evaluation. The result is a pytree with the
    leaf h if `denoise` and `schedule` are pytrees. Source: derived here from Tweedie's formula (Efron 2011); our
    choice of error.
    """
    return Partial(_smoothed, denoise, schedule, h)


def perturbed(
    key: Array, mixture: Mixture, mean_scale: float | Array = 0.0, log_weight_scale: float | Array = 0.0
) -> Mixture:
    """Returns the mixture with random errors in its means and weights, as of a model that learned the wrong modes.

    Means become m_j + mean_scale N(0, I). The joint p(c, j) is multiplied by exp(log_weight_scale N(0, 1)), one number
    per mode, and normalised, so that the null condition is still the average of the classes. Variances stay. Source:
    our choice of error.
    """
    mean_key, weight_key = jax.random.split(key)
    noise = jax.random.normal(mean_key, mixture.means.shape, mixture.means.dtype)
    log_factor = jax.random.normal(weight_key, mixture.means.shape[:1], mixture.means.dtype)
    mixture, _ = reweighted(mixture, log_weight_scale * log_factor)
    return mixture._replace(means=mixture.means + mean_scale * noise)

"""Steps: one update x_t -> x_s given the guide's opinion. They know no rule, and no network."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.shapes import like, normal_like
from guidance.types import Array, Guided, Schedule, Step


def transition(schedule: Schedule, s: Array, t: Array, churn) -> tuple[Array, Array, Array]:
    """Coefficients (A, B, V) of the churned DDIM transition x_s = A x_t + B x_0 + sqrt(V) z.

        r_ij = (alpha_t/alpha_s)^i (sigma_s/sigma_t)^j
        A = e^2 r_12 + (1 - e^2) r_01
        B = alpha_s (1 - e^2 r_22 - (1 - e^2) r_11)
        V = sigma_s^2 (1 - (e^2 r_11 + 1 - e^2)^2)

    `churn` e in [0, 1]: 0 is deterministic DDIM, 1 the exact DDPM posterior. For every e the marginals are kept:
    A alpha_t + B = alpha_s and A^2 sigma_t^2 + V = sigma_s^2. s < t, elementwise; finite at s = 0 and t = 1.

    Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815, eq. 23, with the exponent j on sigma_s/sigma_t (as
    printed there and in arXiv 2502.02483, eq. 4, the ratio is squared: the second identity then fails by up to 0.13).
    """
    alpha_s, alpha_t = schedule.alpha(s), schedule.alpha(t)
    sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
    tiny = float(jnp.finfo(jnp.result_type(sigma_t)).tiny) ** 0.5
    ratio_alpha = alpha_t / jnp.maximum(alpha_s, tiny)
    ratio_sigma = sigma_s / jnp.maximum(sigma_t, tiny)
    r11 = ratio_alpha * ratio_sigma
    e2 = jnp.asarray(churn) ** 2
    a = ratio_sigma * (e2 * r11 + (1 - e2))
    b = alpha_s * (1 - r11 * (e2 * r11 + (1 - e2)))
    # 1 - (1 - e2 (1 - r11))^2 written without cancellation
    shrink = e2 * (1 - r11)
    return a, b, sigma_s**2 * shrink * (2 - shrink)


def ddim() -> Step:
    """Deterministic DDIM: x_s = alpha_s x_0 + sigma_s eps; for rectified flow this is the Euler step.

    It uses both members of `Guided`, so rules that keep another noise than the one implied by x_0 work (CFG++).
    Source: Denoising Diffusion Implicit Models, arXiv 2010.02502, eq. 12 with zero variance.
    """
    return Partial(_ddim)


def _ddim(keys: Array, x: Array, guided: Guided, t: Array, s: Array, schedule: Schedule) -> Array:
    del keys, t
    return like(schedule.alpha(s), x) * guided.x0 + like(schedule.sigma(s), x) * guided.eps


def churned_ddim(churn) -> Step:
    """Churned DDIM with e = `churn` in [0, 1]; see `transition`. The knob is a leaf of the returned pytree.

    Written through eps, x_s = alpha_s x_0 + sigma_s ((1 - e^2 (1 - r_11)) eps + sqrt(1 - (..)^2) z), which equals
    A x_t + B x_0 + sqrt(V) z when eps is the noise implied by x_0.
    Source: arXiv 2510.00815, eq. 23.
    """
    return Partial(_churned_ddim, churn)


def _churned_ddim(churn, keys, x, guided, t, s, schedule):
    _, _, variance = transition(schedule, s, t, churn)
    sigma_s = schedule.sigma(s)
    kept = jnp.sqrt(jnp.maximum(sigma_s**2 - variance, 0))
    mean = like(schedule.alpha(s), x) * guided.x0 + like(kept, x) * guided.eps
    return mean + like(jnp.sqrt(variance), x) * normal_like(keys, x)

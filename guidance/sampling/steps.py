"""Steps: updates x_t -> x_s from one guided prediction. They know no rule and no network."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.ranges import Share, ranged
from guidance.shapes import like, normal_like, safe_sqrt
from guidance.types import Array, Guided, Schedule, Step


def _ratios(schedule: Schedule, *, t: Array, s: Array) -> tuple[Array, Array]:
    """Returns alpha_t/alpha_s and sigma_s/sigma_t; both are finite where the divisor is 0."""
    tiny = float(jnp.finfo(jnp.result_type(t)).tiny) ** 0.5
    ratio_alpha = schedule.alpha(t) / jnp.maximum(schedule.alpha(s), tiny)
    return ratio_alpha, schedule.sigma(s) / jnp.maximum(schedule.sigma(t), tiny)


def decay(schedule: Schedule, *, t: Array, s: Array) -> Array:
    """Returns e^-h = alpha_t sigma_s / (alpha_s sigma_t), elementwise, where h = lambda_s - lambda_t.

    lambda = log(alpha/sigma) is half the log-SNR. The result is exactly 0 for a step from alpha_t = 0 or to sigma_s =
    0, where h is infinite. s < t.
    """
    ratio_alpha, ratio_sigma = _ratios(schedule, t=t, s=s)
    return ratio_alpha * ratio_sigma


def transition(schedule: Schedule, *, t: Array, s: Array, churn) -> tuple[Array, Array, Array]:
    """Returns the coefficients (A, B, V) of the churned DDIM transition x_s = A x_t + B x_0 + sqrt(V) z, elementwise.

        r_ij = (alpha_t/alpha_s)^i (sigma_s/sigma_t)^j
        A = e^2 r_12 + (1 - e^2) r_01
        B = alpha_s (1 - e^2 r_22 - (1 - e^2) r_11)
        V = sigma_s^2 (1 - (e^2 r_11 + 1 - e^2)^2)

    e = `churn` in [0, 1]: 0 is deterministic DDIM and 1 the exact DDPM posterior. Every e keeps the marginals, that is
    A alpha_t + B = alpha_s and A^2 sigma_t^2 + V = sigma_s^2. s < t; the values are finite at s = 0 and t = 1.
    Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815, eq. 23, corrected: printed there, and in arXiv
    2502.02483, eq. 4, sigma_s/sigma_t is squared, so that the second identity fails by up to 0.13.
    """
    ratio_alpha, ratio_sigma = _ratios(schedule, t=t, s=s)
    r11 = ratio_alpha * ratio_sigma
    e2 = jnp.asarray(churn) ** 2
    a = ratio_sigma * (e2 * r11 + (1 - e2))
    b = schedule.alpha(s) * (1 - r11 * (e2 * r11 + (1 - e2)))
    # 1 - (1 - e2 (1 - r11))^2 written without cancellation
    shrink = e2 * (1 - r11)
    return a, b, schedule.sigma(s) ** 2 * shrink * (2 - shrink)


def ddim() -> Step:
    """Builds the deterministic DDIM step, x_s = alpha_s x_0 + sigma_s eps. Order 1.

    For rectified flow this is the Euler step. For any schedule it is the Euler step of x/alpha in sigma/alpha, and the
    first-order step of DPM-Solver++ and UniPC. It uses x0 and eps of `Guided`, so that it works with rules that keep
    another noise than the one implied by x_0 (CFG++). Costs 1 evaluation per step.
    Source: Denoising Diffusion Implicit Models, arXiv 2010.02502, eq. 12 with zero variance.
    """
    return Partial(_ddim)


def _ddim(keys: Array, x: Array, guided: Guided, *, t: Array, s: Array, schedule: Schedule) -> Array:
    del keys, t
    checks.has_noise(guided.eps)
    return like(schedule.alpha(s), x) * guided.x0 + like(schedule.sigma(s), x) * guided.eps


@ranged
def churned_ddim(churn: Share) -> Step:
    """Builds the churned DDIM step: 0 is DDIM, 1 is DDPM. The knob e = `churn` in [0, 1] is a leaf.

        x_s = alpha_s x_0 + sigma_s (k eps + sqrt(1 - k^2) z),   k = 1 - e^2 (1 - r_11)

    If eps is the noise implied by x_0 this is A x_t + B x_0 + sqrt(V) z of `transition`. Costs 1 evaluation per step.
    Source: arXiv 2510.00815, eq. 23.
    """
    return Partial(_churned_ddim, churn)


def _churned_ddim(churn, keys, x, guided, *, t, s, schedule):
    checks.has_noise(guided.eps)
    return churned(schedule, guided.x0, guided.eps, normal_like(keys, x), t=t, s=s, churn=churn)


def churned(schedule: Schedule, x0: Array, eps: Array, z: Array, *, t: Array, s: Array, churn) -> Array:
    """Returns x_s of the churned DDIM step from x0, eps and the noise z, all [batch, ...]; see `churned_ddim`."""
    r11 = decay(schedule, t=t, s=s)
    # k and sqrt(1 - k^2), both without cancellation; the churn is a factor outside of the root, so that its derivative
    # at 0 is finite
    kept = (1 - churn) * (1 + churn) + churn**2 * r11
    added = churn * safe_sqrt((1 - r11) * (1 + kept))
    sigma = schedule.sigma(s)
    return like(schedule.alpha(s), x0) * x0 + like(sigma * kept, x0) * eps + like(sigma * added, x0) * z


def ddpm() -> Step:
    """Builds DDPM's ancestral step, which draws from p(x_s | x_t, x_0) at the predicted x_0.

        x_s = alpha_s x_0 + sigma_s (e^-h eps + sqrt(1 - e^-2h) z)

    The variance is that of the posterior, the smaller one of the paper's two. The same step is known as churned DDIM
    with e = 1, as DDIM with eta = 1, as the Euler ancestral step of variance-exploding samplers, and as the
    first-order step of SDE-DPM-Solver++. Costs 1 evaluation per step.
    Source: Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 6-7.
    """
    return churned_ddim(1.0)


def euler() -> Step:
    """Builds Euler's method in the time of the schedule, x_s = x_t + (s - t) (alpha'_t x_0 + sigma'_t eps). Order 1.

    It is computed as x_s = (alpha_t + (s - t) alpha'_t) x_0 + (sigma_t + (s - t) sigma'_t) eps, which is equal if eps
    is the noise implied by x_0. This is DDIM with the schedule replaced by its tangent at t; for rectified flow it is
    DDIM. A step to sigma_s = 0 is DDIM's, our choice: for linear_vp and edm the tangent would leave noise in the
    sample. Costs 1 evaluation per step.
    Source: Flow Straight and Fast (rectified flow), arXiv 2209.03003, algorithm 1, for any schedule.
    """
    return Partial(_euler)


def _euler(keys: Array, x: Array, guided: Guided, *, t: Array, s: Array, schedule: Schedule) -> Array:
    del keys
    checks.has_noise(guided.eps)
    alpha, sigma = schedule.alpha(s), schedule.sigma(s)
    inner = sigma > 0
    alpha = jnp.where(inner, schedule.alpha(t) + (s - t) * schedule.alpha_dot(t), alpha)
    sigma = jnp.where(inner, schedule.sigma(t) + (s - t) * schedule.sigma_dot(t), sigma)
    return like(alpha, x) * guided.x0 + like(sigma, x) * guided.eps

"""Noise schedules x_t = alpha(t) x_0 + sigma(t) eps for t in [0, 1], from data at t = 0 to noise at t = 1.

A schedule has alpha, sigma, their time derivatives, log_snr = log(alpha^2/sigma^2) and the inverse `time` of log_snr.
log_snr is clipped to [-LOG_SNR_MAX, LOG_SNR_MAX], so that it is finite at both ends. For rectified flow the clip moves
a time by less than the rounding of float64. All functions are elementwise and keep the dtype of their argument.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.shapes import like, safe_sqrt
from guidance.types import Array, Schedule

LOG_SNR_MAX = 80.0


def _schedule(**functions) -> Schedule:
    """Builds a Schedule of pytrees. Its constructors are cached, so that equal schedules are equal pytrees."""
    return Schedule(**{name: Partial(function) for name, function in functions.items()})


def _clip(log_snr: Array) -> Array:
    return jnp.clip(log_snr, -LOG_SNR_MAX, LOG_SNR_MAX)


def _safe_log(x: Array, power: int = 1) -> Array:
    """Returns log(x) for x = a^power, with a floored at exp(-LOG_SNR_MAX/2), below which the log-SNR is clipped."""
    floor = math.exp(-power * LOG_SNR_MAX / 2)
    return jnp.log(jnp.maximum(x, floor))


@functools.cache
def rectified_flow() -> Schedule:
    """Returns the schedule alpha = 1 - t, sigma = t, with log_snr = 2 log((1-t)/t) and t = sigmoid(-log_snr/2).

    Source: Flow Straight and Fast (rectified flow), arXiv 2209.03003.
    """
    return _schedule(
        alpha=lambda t: 1 - t,
        sigma=lambda t: t * 1,
        log_snr=lambda t: _clip(2 * (_safe_log(1 - t) - _safe_log(t))),
        time=lambda log_snr: jax.nn.sigmoid(-log_snr / 2),
        alpha_dot=lambda t: -jnp.ones_like(t),
        sigma_dot=lambda t: jnp.ones_like(t),
    )


@functools.cache
def cosine() -> Schedule:
    """Returns the schedule alpha = cos(pi t/2), sigma = sin(pi t/2), with log_snr = -2 log tan(pi t/2).

    alpha is computed as sin(pi (1-t)/2), which is exactly 0 at t = 1.
    Source: Improved DDPM, arXiv 2102.09672 (without its offset); Progressive Distillation, arXiv 2202.00512.
    """
    half_pi = math.pi / 2

    def alpha(t):
        return jnp.sin(half_pi * (1 - t))

    def sigma(t):
        return jnp.sin(half_pi * t)

    return _schedule(
        alpha=alpha,
        sigma=sigma,
        log_snr=lambda t: _clip(2 * (_safe_log(alpha(t)) - _safe_log(sigma(t)))),
        time=lambda log_snr: jnp.arctan2(jnp.exp(-log_snr / 4), jnp.exp(log_snr / 4)) / half_pi,
        alpha_dot=lambda t: -half_pi * jnp.sin(half_pi * t),
        sigma_dot=lambda t: half_pi * jnp.sin(half_pi * (1 - t)),
    )


@functools.cache
def linear_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Returns the schedule alpha = exp(-B/2), sigma = sqrt(1 - exp(-B)), B = beta_min t + (beta_max - beta_min) t^2/2.

    log_snr = -log(exp(B) - 1), and its inverse solves the quadratic B(t) = softplus(-log_snr). At t = 1 a little
    signal is left: alpha = exp(-5.025) = 0.0066 with the defaults.
    Source: Score-Based Generative Modeling through SDEs, arXiv 2011.13456, eq. 32-33.
    """
    slope = beta_max - beta_min

    def big_b(t):
        return t * (beta_min + 0.5 * slope * t)

    def sigma_dot(t):
        # sigma sigma_dot = beta exp(-B) / 2. At t = 0 sigma_dot is infinite (sigma ~ sqrt(beta_min t)); the floor
        # keeps it finite there.
        floor = math.exp(-LOG_SNR_MAX / 2)
        sigma = jnp.maximum(safe_sqrt(-jnp.expm1(-big_b(t))), floor)
        return 0.5 * (beta_min + slope * t) * jnp.exp(-big_b(t)) / sigma

    def log_snr(t):
        b = big_b(t)
        return _clip(-b - _safe_log(-jnp.expm1(-b), power=2))

    def time(log_snr):
        b = jax.nn.softplus(-log_snr)
        return 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * slope * b))

    return _schedule(
        alpha=lambda t: jnp.exp(-0.5 * big_b(t)),
        # the gradient at t = 0, which is infinite, is set to 0
        sigma=lambda t: safe_sqrt(-jnp.expm1(-big_b(t))),
        log_snr=log_snr,
        time=time,
        alpha_dot=lambda t: -0.5 * (beta_min + slope * t) * jnp.exp(-0.5 * big_b(t)),
        sigma_dot=sigma_dot,
    )


@functools.cache
def edm(sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Returns the variance-exploding schedule of EDM, alpha = 1 and sigma = sigma_max t^rho.

    Uniform times give EDM's noise levels with sigma_min = 0. At t = 1 a signal of relative size (standard deviation of
    the data) / sigma_max is left.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 5.
    """
    return _schedule(
        alpha=jnp.ones_like,
        sigma=lambda t: sigma_max * t**rho,
        log_snr=lambda t: _clip(-2 * (math.log(sigma_max) + rho * _safe_log(t))),
        time=lambda log_snr: jnp.exp((-log_snr / 2 - math.log(sigma_max)) / rho),
        alpha_dot=jnp.zeros_like,
        sigma_dot=lambda t: sigma_max * rho * t ** (rho - 1),
    )


SCHEDULES = {"rectified_flow": rectified_flow, "cosine": cosine, "linear_vp": linear_vp, "edm": edm}


def by_name(name: str) -> Schedule:
    """Returns the schedule of that name with its default knobs. Raises ValueError, which lists the known names."""
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}")
    return SCHEDULES[name]()


def diffuse(schedule: Schedule, x0: Array, eps: Array, t: Array) -> Array:
    """Returns x_t = alpha(t) x_0 + sigma(t) eps for x0, eps [batch, ...] and t [batch]."""
    return like(schedule.alpha(t), x0) * x0 + like(schedule.sigma(t), x0) * eps


def noise_level(schedule: Schedule, t: Array) -> Array:
    """Returns the EDM noise level sigma/alpha = exp(-log_snr/2), elementwise."""
    return jnp.exp(-schedule.log_snr(t) / 2)


def times_of_noise_level(schedule: Schedule, levels: Array) -> Array:
    """Returns the times at which sigma/alpha equals `levels`, elementwise: 0 for level 0, finite for infinity."""
    levels = jnp.asarray(levels)
    positive = levels > 0
    log_snr = -2 * jnp.log(jnp.where(positive, levels, 1))
    return times_of_log_snr(schedule, jnp.where(positive, log_snr, jnp.inf))


def times_of_log_snr(schedule: Schedule, log_snr: Array) -> Array:
    """Returns the times at which log(alpha^2/sigma^2) equals `log_snr`, elementwise: 0 for infinity.

    A log-SNR below -LOG_SNR_MAX counts as -LOG_SNR_MAX, since schedules clip it there.
    """
    return schedule.time(jnp.maximum(jnp.asarray(log_snr), -LOG_SNR_MAX))

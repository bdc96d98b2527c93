"""Grids: the decreasing arrays of times [steps + 1] that a sampler visits, from t_max down to data.

Spacings that are defined by noise levels sigma/alpha are mapped to times by the schedule's inverse log-SNR, so each
serves every schedule. Noise levels above that of t = 1 become t = 1.
"""

import math

import jax.numpy as jnp
import numpy as np

from guidance.types import Array, Schedule


def uniform_grid(steps: int, t_max: float = 1.0, t_min: float = 0.0) -> Array:
    """Uniform in t: t_i = t_max + (t_min - t_max) i/steps, i = 0..steps. Raises ValueError on bad arguments."""
    _check(steps, t_max, t_min)
    return jnp.linspace(t_max, t_min, steps + 1)


def log_snr_grid(schedule: Schedule, steps: int, t_max: float = 0.999, t_min: float = 0.001) -> Array:
    """Uniform in log-SNR from t_max to t_min in steps - 1 steps, then one step to t = 0 (data)."""
    _check(steps, t_max, t_min)
    ends = schedule.log_snr(jnp.asarray([t_max, t_min]))
    times = schedule.time(jnp.linspace(ends[0], ends[1], steps))
    return jnp.concatenate([times, jnp.zeros(1, times.dtype)])


def edm_grid(
    schedule: Schedule, steps: int, noise_max: float = 80.0, noise_min: float = 0.002, rho: float = 7.0
) -> Array:
    """EDM's (Karras) noise levels, mapped to times: sigma_i^(1/rho) linear from noise_max to noise_min, then 0.

    Noise level means sigma/alpha. noise_max is lowered to the level of t = 1 where the schedule ends below it.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 5.
    """
    if not noise_max > noise_min > 0:
        raise ValueError(f"edm_grid needs noise_max > noise_min > 0, got {noise_max} and {noise_min}")
    _check(steps, 1.0, 0.0)
    highest = jnp.exp(-schedule.log_snr(jnp.ones(())) / 2)
    first = jnp.minimum(noise_max, highest) ** (1 / rho)
    levels = jnp.linspace(first, noise_min ** (1 / rho), steps) ** rho
    return jnp.concatenate([_times(schedule, levels), jnp.zeros(1, levels.dtype)])


def cosine_grid(schedule: Schedule, steps: int, t_max: float = 1.0, t_min: float = 0.0) -> Array:
    """Uniform in the angle atan(sigma/alpha): the noise levels that uniform times of the cosine schedule visit.

    sigma/alpha = tan(theta_i), theta_i linear between the angles of t_max and t_min; `uniform_grid` for the cosine
    schedule itself.
    Source: Improved DDPM, arXiv 2102.09672 (without its offset); as a spacing for other schedules it is our choice.
    """
    _check(steps, t_max, t_min)
    ends = jnp.asarray([t_max, t_min])
    angles = jnp.arctan2(schedule.sigma(ends), schedule.alpha(ends))
    inner = _times(schedule, jnp.tan(jnp.linspace(angles[0], angles[1], steps + 1)[1:-1]))
    return jnp.concatenate([ends[:1], inner.astype(ends.dtype), ends[1:]])


def shifted(schedule: Schedule, grid: Array, shift: float) -> Array:
    """`grid` with all noise levels sigma/alpha multiplied by `shift`; for rectified flow t -> m t/(1 + (m - 1) t).

    More than 1 spends more steps on high noise. The ends of [0, 1] stay. Raises ValueError for shift <= 0.
    Source: Scaling Rectified Flow Transformers (SD3), arXiv 2403.03206, eq. 23. (FLUX's mu is log(shift).)
    """
    if not shift > 0:
        raise ValueError(f"a grid is shifted by a positive factor, got {shift}")
    moved = jnp.clip(schedule.time(schedule.log_snr(grid) - 2 * math.log(shift)), 0, 1).astype(grid.dtype)
    return jnp.where((grid <= 0) | (grid >= 1), grid, moved)


def resolution_shift(size: int, base: int) -> float:
    """sqrt(m/n) for samples of `size` m values where the unshifted grid was made for `base` n values.

    The uncertainty about a constant image of n noisy pixels is sigma/(alpha sqrt(n)); multiplying the noise levels by
    this shift keeps it at every step. Count pixels, latent positions or tokens, the same in both.
    Source: Scaling Rectified Flow Transformers (SD3), arXiv 2403.03206, eq. 23.
    """
    if size < 1 or base < 1:
        raise ValueError(f"sizes must be at least 1, got {size} and {base}")
    return math.sqrt(size / base)


def as_grid(times) -> Array:
    """Your own times as a grid. Raises ValueError unless they are at least two, decreasing, within [0, 1]."""
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"a grid needs at least two times in one dimension, got shape {times.shape}")
    if not (np.all(np.diff(times) < 0) and times[0] <= 1 and times[-1] >= 0):
        raise ValueError(f"the times of a grid must decrease within [0, 1], got {times}")
    return jnp.asarray(times, jnp.result_type(float))


def noise_level_grid(schedule: Schedule, levels) -> Array:
    """Your own noise levels sigma/alpha as a grid; a last level of 0 is t = 0.

    Raises ValueError unless they are at least two, decreasing and non-negative.
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (np.all(np.diff(levels) < 0) and levels[-1] >= 0):
        raise ValueError(f"noise levels must be at least two, decreasing and non-negative, got {levels}")
    times = _times(schedule, jnp.asarray(np.maximum(levels, np.finfo(np.float32).tiny), jnp.result_type(float)))
    return jnp.where(jnp.asarray(levels == 0), 0, times)


def _times(schedule: Schedule, levels: Array) -> Array:
    return jnp.clip(schedule.time(-2 * jnp.log(levels)), 0, 1)


def _check(steps: int, t_max: float, t_min: float) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {steps}")
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"a grid needs 0 <= t_min < t_max <= 1, got t_min {t_min} and t_max {t_max}")

"""Grids: the decreasing arrays of times [steps + 1] that a sampler visits, from t_max down to data."""

import jax.numpy as jnp

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
    """EDM's noise levels, mapped to times: sigma_i^(1/rho) linear from noise_max to noise_min, then 0.

    Noise level means sigma/alpha, so the grid serves every schedule through its inverse log-SNR.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 5.
    """
    if not noise_max > noise_min > 0:
        raise ValueError(f"edm_grid needs noise_max > noise_min > 0, got {noise_max} and {noise_min}")
    _check(steps, 1.0, 0.0)
    levels = jnp.linspace(noise_max ** (1 / rho), noise_min ** (1 / rho), steps) ** rho
    times = schedule.time(-2 * jnp.log(levels))
    return jnp.concatenate([times, jnp.zeros(1, times.dtype)])


def _check(steps: int, t_max: float, t_min: float) -> None:
    if steps < 1:
        raise ValueError(f"a grid needs at least 1 step, got {steps}")
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"a grid needs 0 <= t_min < t_max <= 1, got t_min {t_min} and t_max {t_max}")

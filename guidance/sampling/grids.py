"""Grids: decreasing arrays of times [steps + 1] that a sampler visits.

Some grids are defined by noise levels sigma/alpha. The inverse log-SNR of the schedule turns these into times, so that
such a grid works with every schedule. A noise level above that of t = 1 becomes t = 1. Every constructor raises
ValueError if its times, in their dtype, do not decrease strictly within [0, 1].
"""

import math
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from guidance import checks
from guidance.ranges import Above, Count, Positive, Time, ranged
from guidance.schedules import noise_level, times_of_noise_level
from guidance.types import Array, Schedule

Start = Annotated[Time, Above("t_min")]


def checked(times: Array, change: str) -> Array:
    """Returns the times unchanged if they are a grid: [steps + 1], steps >= 1, decreasing, within [0, 1].

    Raises ValueError otherwise. The message names the first two times that repeat or rise and ends with `change`, the
    advice to the user. Traced times, such as all times made under jit, pass unchecked.
    """
    checks.is_grid(times, change)
    return times


@ranged
def uniform_grid(steps: Count, t_max: Start = 1.0, t_min: Time = 0.0) -> Array:
    """Returns times that are uniform in t: t_i = t_max + (t_min - t_max) i/steps for i = 0 .. steps.

    Raises ValueError for arguments outside their ranges.
    """
    return checked(jnp.linspace(t_max, t_min, steps + 1), "take fewer steps, or t_max and t_min further apart")


@ranged
def log_snr_grid(schedule: Schedule, steps: Count, t_max: Start = 0.999, t_min: Time = 0.001) -> Array:
    """Returns times that are uniform in log-SNR from t_max to t_min, steps of them, and then t = 0."""
    ends = schedule.log_snr(jnp.asarray([t_max, t_min]))
    times = schedule.time(jnp.linspace(ends[0], ends[1], steps))
    return checked(jnp.append(times, 0), "lower t_max, raise t_min or take fewer steps")


@ranged
def edm_grid(
    schedule: Schedule,
    steps: Count,
    noise_max: Annotated[Positive, Above("noise_min")] = 80.0,
    noise_min: Positive = 0.002,
    rho: Positive = 7.0,
) -> Array:
    """Returns the times of EDM's (Karras') noise levels: level^(1/rho) is linear from noise_max to noise_min; then 0.

    Noise levels are sigma/alpha. If the level of t = 1 is below noise_max, the grid starts at t = 1.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 5.
    """
    highest = noise_level(schedule, jnp.ones(()))
    first = jnp.minimum(noise_max, highest) ** (1 / rho)
    levels = jnp.linspace(first, noise_min ** (1 / rho), steps) ** rho
    times = jnp.append(_times(schedule, levels), 0)
    return checked(times, "lower noise_max, change noise_min or take fewer steps")


@ranged
def cosine_grid(schedule: Schedule, steps: Count, t_max: Start = 1.0, t_min: Time = 0.0) -> Array:
    """Returns times that are uniform in the angle theta = atan(sigma/alpha), from t_max to t_min.

    Their noise levels are those of uniform times of the cosine schedule. For that schedule itself this is
    `uniform_grid`.
    Source: Improved DDPM, arXiv 2102.09672 (without its offset); as a spacing for other schedules it is our choice.
    """
    ends = jnp.asarray([t_max, t_min])
    angles = jnp.arctan2(schedule.sigma(ends), schedule.alpha(ends))
    inner = _times(schedule, jnp.tan(jnp.linspace(angles[0], angles[1], steps + 1)[1:-1]))
    times = jnp.concatenate([ends[:1], inner.astype(ends.dtype), ends[1:]])
    return checked(times, "take fewer steps, or t_max and t_min further apart")


@ranged
def shifted(schedule: Schedule, grid: Array, shift: Positive) -> Array:
    """Returns the grid with its noise levels rho = sigma/alpha multiplied by m = `shift`.

    m > 1 puts more steps at high noise. Precisely,

        1/rho' - 1/rho_1 = (1/rho - 1/rho_1)/m,   rho_1 the level of t = 1

    Where t = 1 is pure noise, rho_1 is infinite and rho' = m rho. For rectified flow this is t -> m t/(1 + (m - 1) t),
    as in SD3. A schedule that ends at a finite level (linear_vp at 152, edm at 80) has no time for levels above it.
    There rho' = m rho/(1 + (m - 1) rho/rho_1), our choice: it is m rho at low levels and rho_1 at rho_1, times do not
    merge, and a shift by m and one by n together are one by m n. Raises ValueError for shift <= 0, and if times
    coincide in the dtype of the grid.
    Source: Scaling Rectified Flow Transformers (SD3), arXiv 2403.03206, eq. 23. (FLUX's mu is log(shift).)
    """
    one = jnp.ones((), grid.dtype)
    log_snr = schedule.log_snr(grid)
    share = schedule.alpha(one) / schedule.sigma(one) * jnp.exp(-log_snr / 2)  # rho/rho_1
    moved = schedule.time(log_snr - 2 * math.log(shift) + 2 * jnp.log1p((shift - 1) * share))
    times = jnp.where((grid <= 0) | (grid >= 1), grid, jnp.clip(moved, 0, 1).astype(grid.dtype))
    return checked(times, "take a shift nearer to 1 or fewer steps")


def resolution_shift(size: int, base: int) -> float:
    """Returns the shift sqrt(size/base) for samples of `size` pixels, for a grid that was made for `base` pixels.

    From n noisy pixels a constant image is known up to sigma/(alpha sqrt(n)). With this shift every step has the same
    uncertainty at both sizes. Count pixels, latent positions or tokens, but the same in both. Raises ValueError for
    sizes below 1.
    Source: Scaling Rectified Flow Transformers (SD3), arXiv 2403.03206, eq. 23.
    """
    if size < 1 or base < 1:
        raise ValueError(f"sizes must be at least 1, got {size} and {base}")
    return math.sqrt(size / base)


def as_grid(times) -> Array:
    """Returns your own times as a grid. Raises ValueError unless they are at least two, decreasing, within [0, 1]."""
    return checked(jnp.asarray(times, float), "give times that differ in that precision, the noisiest first")


def noise_level_grid(schedule: Schedule, levels) -> Array:
    """Returns the times of your own noise levels sigma/alpha; level 0 is t = 0.

    Raises ValueError unless the levels are at least two, decreasing and non-negative, and their times differ: only the
    first may be at or above the level of t = 1.
    """
    levels = np.asarray(levels, np.float64)
    if levels.ndim != 1 or len(levels) < 2 or not (np.all(np.diff(levels) < 0) and levels[-1] >= 0):
        raise ValueError(f"noise levels must be at least two, decreasing and non-negative, got {levels}")
    times = _times(schedule, jnp.asarray(levels, float))
    return checked(times, "give levels further apart, at most one of them at or above the schedule's at t = 1")


def _times(schedule: Schedule, levels: Array) -> Array:
    return jnp.clip(times_of_noise_level(schedule, levels), 0, 1)

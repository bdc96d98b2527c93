"""Fixed weights: constant, limited interval, clamp-linear, and a table over the steps of a grid.

Knobs are leaves of the returned pytree, so a sweep over them compiles once.
"""

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.types import Array, Schedule, Weight


def constant(omega) -> Weight:
    """omega(s, t, c) = omega: plain classifier-free guidance."""
    return Partial(_constant, omega)


def _constant(omega, s, t, cond):
    del s, cond
    return jnp.broadcast_to(jnp.asarray(omega, t.dtype), t.shape)


def interval(omega, lo, hi) -> Weight:
    """omega where lo < t <= hi, else 0; t is the time at which the step starts.

    Bounds in time; `times_of_noise_level` and `times_of_log_snr` convert bounds given in sigma/alpha or log-SNR.
    Source: Applying Guidance in a Limited Interval, arXiv 2404.07724, eq. 6 (half-open in the noise level, as there).
    """
    return Partial(_interval, omega, lo, hi)


def _interval(omega, lo, hi, s, t, cond):
    del s, cond
    return jnp.where((t > lo) & (t <= hi), jnp.asarray(omega, t.dtype), jnp.zeros_like(t))


def clamp_linear(omega, floor) -> Weight:
    """scale = max(floor, 2 (1 + omega) (1 - t)), omega(t) = scale - 1: the clamped linear ramp.

    The unclamped ramp has mean scale 1 + omega over t in [0, 1] and rises towards the data; `floor` is a scale (c_0 of
    the paper, where 1 means that early steps are at least unguided).
    Source: Analysis of Classifier-Free Guidance Weight Schedulers, arXiv 2404.13040, section on parametrised ramps.
    """
    return Partial(_clamp_linear, omega, floor)


def _clamp_linear(omega, floor, s, t, cond):
    del s, cond
    return jnp.maximum(floor, 2 * (1 + omega) * (1 - t)) - 1


def table(grid: Array, omegas: Array) -> Weight:
    """A free omega for each step of a grid and each class: omega(s, t, c) = omegas[i, c] for the step starting at t.

    grid [steps + 1] decreasing; omegas [steps] or [steps, classes] (then cond is the int label). Other times get the
    omega of the nearest start of a step. The most flexible weight that sees neither x nor the sample.
    """
    return Partial(_table, grid, omegas)


def _table(grid, omegas, s, t, cond):
    del s
    # the step that starts nearest to t: robust to the rounding of t
    i = jnp.argmin(jnp.abs(t[:, None] - grid[None, :-1]), axis=-1)
    return omegas[i] if omegas.ndim == 1 else omegas[i, cond]


def times_of_noise_level(schedule: Schedule, levels: Array) -> Array:
    """Times at which sigma/alpha equals `levels`; increasing in the level."""
    return schedule.time(-2 * jnp.log(jnp.asarray(levels)))


def times_of_log_snr(schedule: Schedule, log_snr: Array) -> Array:
    """Times at which log(alpha^2/sigma^2) equals `log_snr`; decreasing in the log-SNR."""
    return schedule.time(jnp.asarray(log_snr))

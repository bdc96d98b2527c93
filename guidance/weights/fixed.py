"""Fixed weights: constant, limited interval in every unit, and a table over the steps of a grid.

Knobs are leaves of the returned pytree, so a sweep over them compiles once. Papers mostly print the scale 1 + omega;
every function here takes omega, which is 0 where nothing is guided.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.conditions import places, size
from guidance.ranges import Above, Cap, Extended, Finite, Index, NonNegative, Time, ranged
from guidance.schedules import times_of_log_snr, times_of_noise_level
from guidance.times import within
from guidance.types import Array, Cond, Schedule, Weight


@ranged
def constant(omega: Finite) -> Weight:
    """omega(s, t, c) = omega: plain classifier-free guidance."""
    return Partial(_constant, omega)


def _constant(omega, *, t, s, cond):
    del s, cond
    omega = jnp.asarray(omega, t.dtype)
    if omega.ndim > 0:
        checks.is_omega(omega, t)
    return jnp.broadcast_to(omega, t.shape)


# ---- limited interval


@ranged
def interval(omega: Finite, lo: Time, hi: Annotated[Time, Above("lo")]) -> Weight:
    """omega where lo < t <= hi, else 0; t is the time at which the step starts.

    A time within 1e-6 of a bound counts as equal to it (see `guidance.times.within`), so that rounding moves no step.
    Bounds in time; `interval_of_noise_levels`, `interval_of_log_snr` and `interval_of_steps` take other units. To move
    bounds to the nearest boundaries of steps: `interval(omega, *snap(grid, [lo, hi]))`.
    Source: Applying Guidance in a Limited Interval, arXiv 2404.07724, eq. 6 (half-open in the noise level, as there;
    its scale is 1 outside, which is omega = 0).
    """
    return Partial(_interval, omega, lo, hi)


def _interval(omega, lo, hi, *, t, s, cond):
    del s, cond
    return jnp.where(within(t, lo, hi), jnp.asarray(omega, t.dtype), jnp.zeros_like(t))


@ranged
def interval_of_noise_levels(
    schedule: Schedule, omega: Finite, lo: NonNegative, hi: Annotated[Cap, Above("lo")], grid: Array | None = None
) -> Weight:
    """omega where lo < sigma/alpha <= hi, else 0; 0 <= lo < hi <= inf.

    With a `grid` the bounds are snapped to the nearest boundaries of its steps (see `snap`): published bounds are
    rounded, and a bound that misses its grid time by rounding would move the interval by a whole step.
    Source: Applying Guidance in a Limited Interval, arXiv 2404.07724, eq. 6.
    """
    return _between(times_of_noise_level(schedule, jnp.stack([jnp.asarray(lo), jnp.asarray(hi)])), omega, grid)


@ranged
def interval_of_log_snr(
    schedule: Schedule, omega: Finite, lo: Extended, hi: Annotated[Extended, Above("lo")], grid: Array | None = None
) -> Weight:
    """omega where lo <= log(alpha^2/sigma^2) < hi, else 0: half-open as in time; `grid` snaps the bounds.

    Source: as `interval_of_noise_levels`, with log-SNR = -2 log(sigma/alpha).
    """
    return _between(times_of_log_snr(schedule, jnp.stack([jnp.asarray(hi), jnp.asarray(lo)])), omega, grid)


@ranged
def interval_of_steps(
    grid: Array, omega: Finite, first: Index, last: Annotated[Index, Above("first", equal=True)]
) -> Weight:
    """omega on the steps first..last (both included, 0 is the step that starts at grid[0]), else 0.

    As the official code of the paper counts: [17, 22] of its 32 steps are the noise levels (0.19, 1.61].
    Source: Applying Guidance in a Limited Interval, arXiv 2404.07724, official code.
    """
    checks.is_grid(grid)
    if last > grid.shape[0] - 2:
        raise ValueError(
            f"interval_of_steps: last = {last}: allowed: up to {grid.shape[0] - 2}, the last step of the grid"
        )
    return interval(omega, grid[last + 1], grid[first])


def _between(bounds: Array, omega, grid: Array | None) -> Weight:
    bounds = bounds if grid is None else snap(grid, bounds)
    return interval(omega, bounds[0], bounds[1])


def snap(grid: Array, times: Array) -> Array:
    """The times [k] moved to the nearest boundaries of the steps of `grid` [steps + 1]; exact entries of the grid."""
    times = jnp.asarray(times)
    return grid[jnp.argmin(jnp.abs(times[:, None] - grid[None, :]), axis=-1)]


# ---- tables


def table(grid: Array, omegas: Array, conditions: Cond = None) -> Weight:
    """A free omega for each step of a grid and each condition: omega(s, t, c) = omegas[i, c] for the step from t.

    grid [steps + 1] decreasing; omegas [steps] or [steps, G], for the labels 0 .. G - 1 or for `conditions`, leaves
    [G, ...]: then a condition gets the column of the one that equals it. Other times get the omega of the nearest
    start of a step. The most flexible weight that sees neither x nor the sample. A condition without a column is
    refused where it is known, and has NaN inside jit. Raises ValueError for another number of rows.
    """
    omegas = jnp.asarray(omegas)
    checks.is_table(grid, omegas)
    return Partial(_table, grid, omegas, conditions)


def _table(grid, omegas, conditions, *, t, s, cond):
    del s
    # the step that starts nearest to t: robust to the rounding of t
    i = jnp.argmin(jnp.abs(t[:, None] - grid[None, :-1]), axis=-1)
    omegas = omegas.astype(t.dtype)
    if omegas.ndim == 1:
        return omegas[i]
    if conditions is None:
        checks.is_label(cond, omegas.shape[1])
        return omegas.at[i, cond].get(mode="fill", fill_value=jnp.nan)
    column, found = places(cond, conditions)
    checks.all_found(found)
    return jnp.where(found, omegas[i, column], jnp.nan)


def tabulated(weight: Weight, grid: Array, conditions: Cond) -> Array:
    """The values omega[i, c] that `weight` takes on the steps of a grid for G conditions, [steps, G].

    A weight sees neither x nor the sample, so on a grid it is this table: `table(grid, tabulated(w, grid,
    arange(G)))` is w on that grid for the labels 0 .. G - 1, and `table(grid, tabulated(w, grid, c), c)` for any
    conditions c, leaves [G, ...]. A learned weight costs steps * G rows of its network this way, instead of
    steps * batch; gradients are the same.
    """
    groups = size(conditions)

    def row(*, t, s):
        return weight(t=jnp.full(groups, t), s=jnp.full(groups, s), cond=conditions)

    return jax.vmap(row)(t=grid[:-1], s=grid[1:])

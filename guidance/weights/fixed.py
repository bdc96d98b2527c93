"""Fixed weights: a constant, an interval in several units, and a table over the steps of a grid.

Knobs are leaves of the returned pytree, so that a sweep over them compiles once. Every function here takes omega,
where 0 is unguided; papers mostly print the scale 1 + omega.
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
    """Builds the weight that is omega on every step, as in plain classifier-free guidance."""
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
    """Builds the weight that is omega on steps that start at a time t with lo < t <= hi, and 0 on the others.

    A time within 1e-6 of a bound counts as equal to it (see `guidance.times.within`), so that rounding moves no step.
    `interval_of_noise_levels`, `interval_of_log_snr` and `interval_of_steps` take bounds in other units. To move
    bounds to the nearest step boundaries of a grid, use `interval(omega, *snap(grid, [lo, hi]))`.
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
    """Builds the weight that is omega on steps that start at a noise level lo < sigma/alpha <= hi, and 0 on others.

    0 <= lo < hi <= inf. Published bounds are rounded, which can move an interval by a whole step. With a `grid` the
    bounds are therefore moved to the nearest step boundaries (see `snap`).
    Source: Applying Guidance in a Limited Interval, arXiv 2404.07724, eq. 6.
    """
    return _between(times_of_noise_level(schedule, jnp.stack([jnp.asarray(lo), jnp.asarray(hi)])), omega, grid)


@ranged
def interval_of_log_snr(
    schedule: Schedule, omega: Finite, lo: Extended, hi: Annotated[Extended, Above("lo")], grid: Array | None = None
) -> Weight:
    """Builds the weight that is omega on steps that start at lo <= log(alpha^2/sigma^2) < hi, and 0 on the others.

    With a `grid` the bounds are moved to the nearest step boundaries (see `snap`). Source: as
    `interval_of_noise_levels`, with log-SNR = -2 log(sigma/alpha).
    """
    return _between(times_of_log_snr(schedule, jnp.stack([jnp.asarray(hi), jnp.asarray(lo)])), omega, grid)


@ranged
def interval_of_steps(
    grid: Array, omega: Finite, first: Index, last: Annotated[Index, Above("first", equal=True)]
) -> Weight:
    """Builds the weight that is omega on the steps first .. last, both included, and 0 on the others.

    Step 0 starts at grid[0], as in the official code of the paper: its [17, 22] of 32 steps are the noise levels
    (0.19, 1.61]. Raises ValueError if the grid has no step `last`.
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
    """Returns for each time [k] the nearest entry of `grid` [steps + 1]."""
    times = jnp.asarray(times)
    return grid[jnp.argmin(jnp.abs(times[:, None] - grid[None, :]), axis=-1)]


# ---- tables


def table(grid: Array, omegas: Array, conditions: Cond = None) -> Weight:
    """Builds the weight with a free omega for each step of a grid and, if wanted, each condition.

    grid [steps + 1]; omegas [steps], or [steps, G] with one column for each of the labels 0 .. G - 1. If `conditions`,
    leaves [G, ...], are given, column i is for conditions equal to the i-th of them. A step from t gets the row of the
    step of the grid that starts nearest to t. A condition without a column raises ValueError if its value is known,
    and gets NaN inside jit. Raises ValueError unless there is one row per step.
    """
    omegas = jnp.asarray(omegas)
    checks.is_table(grid, omegas)
    return Partial(_table, grid, omegas, conditions)


def _table(grid, omegas, conditions, *, t, s, cond):
    del s
    # the nearest start of a step, since t may be rounded
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
    """Returns the values [steps, G] of `weight` on the steps of a grid for a list of G conditions, leaves [G, ...].

    A weight does not depend on x, so that on this grid it equals the table of its values: `table(grid, tabulated(w,
    grid, arange(G)))` for the labels 0 .. G - 1, and `table(grid, tabulated(w, grid, c), c)` for any conditions c. A
    learned weight then evaluates its network on steps * G rows instead of steps * batch. Gradients are the same.
    """
    groups = size(conditions)

    def row(*, t, s):
        return weight(t=jnp.full(groups, t), s=jnp.full(groups, s), cond=conditions)

    return jax.vmap(row)(t=grid[:-1], s=grid[1:])

"""Weights defined by the index of a step, on any grid: the triangle of TV-CFG and the two-level schedules beside it.

Each is a `table` over the steps of its grid; omega may be traced, so that a sweep compiles once.
"""

import jax.numpy as jnp

from guidance import checks
from guidance.ranges import Finite, NonNegative, Share, ranged
from guidance.times import EDGE
from guidance.types import Array, Weight
from guidance.weights.fixed import table


def time_mean(grid: Array, values: Array) -> Array:
    """sum_n v_n (t_n - t_{n+1}) / (t_0 - t_N): the time average of one value a step. grid [steps + 1], values [steps].

    On an interval weight it gives the constant of equal strength, so interval(omega / time_mean(grid, inside), lo, hi)
    with inside [steps] = 1 within the interval has the time average omega (the interval of TV-CFG's code).
    """
    return jnp.sum(values * (grid[:-1] - grid[1:])) / (grid[0] - grid[-1])


@ranged
def triangle(grid: Array, omega: Finite, peak: Share = 0.5) -> Weight:
    """The stage-wise schedule: weak at both ends, strong in the middle, with the time average of the constant omega.

        P = floor(N peak),  r_n = n/P for n < P,  (N-1-n)/(N-1-P) for n >= P
        w_n = 1 + 2 omega r_n,  then  omega_n = w_n (1 + omega) / mean(w) - 1

    mean is the time average over the N steps of the grid (`time_mean`), so the mean is exact on any grid, for odd and
    even N. The scale, not omega, is rescaled: its ends are near, not at, 1. `peak` in [0, 1] is the share of the steps
    before the peak; the paper calls 0.4 to 0.6 equally good.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, official code ("symmetric", peak 0.5;
    other peaks after the paper's text). The text's own triangle ends one step later; it is `ramp("lambda", omega,
    of="omega")`.
    """
    checks.is_grid(grid)
    steps = grid.shape[0] - 1
    n = jnp.arange(steps, dtype=grid.dtype)
    # EDGE: 100 * 0.29 rounds to 28.999996, but is 29
    top = jnp.clip(jnp.floor(steps * (peak + EDGE)), 0, steps - 1)
    up, down = n / jnp.maximum(top, 1), (steps - 1 - n) / jnp.maximum(steps - 1 - top, 1)
    profile = jnp.where(n < top, up, jnp.where(n > top, down, 1))
    scale = 1 + 2 * omega * profile
    return table(grid, scale * ((1 + omega) / time_mean(grid, scale)) - 1)


@ranged
def step_up(grid: Array, omega: Finite, switch: Share = 0.25, share: NonNegative = 1 / 3) -> Weight:
    """Scale share (1 + omega) on the steps n < switch (N - 1), then 1 + omega: guidance that starts late.

    Not normalised. A share of the *scale*: below omega = 1/share - 1 the early weight is negative, towards the
    unconditional prediction.
    Source: official code of Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007 (its w is our scale).
    """
    early, scale = _early(grid, switch), 1 + omega
    return table(grid, jnp.where(early, share * scale, scale) - 1)


@ranged
def step_down(grid: Array, omega: Finite, switch: Share = 0.25, share: NonNegative = 1 / 3) -> Weight:
    """Scale 1 + omega on the steps n < switch (N - 1), then share (1 + omega): the mirror image of `step_up`."""
    early, scale = _early(grid, switch), 1 + omega
    return table(grid, jnp.where(early, scale, share * scale) - 1)


def _early(grid: Array, switch) -> Array:
    checks.is_grid(grid)
    steps = grid.shape[0] - 1
    # EDGE: 0.07 * 100 rounds to 7.000000000000001, but is 7
    return jnp.arange(steps, dtype=grid.dtype) < (switch - EDGE) * max(steps - 1, 1)

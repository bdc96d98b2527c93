"""Weights defined by the number of a step, on any grid: the triangle of TV-CFG and schedules of two levels.

Each is a `table` over the steps of its grid. omega may be traced, so that a sweep compiles once.
"""

import jax.numpy as jnp

from guidance import checks
from guidance.ranges import Finite, NonNegative, Share, ranged
from guidance.times import EDGE
from guidance.types import Array, Weight
from guidance.weights.fixed import table


def time_mean(grid: Array, values: Array) -> Array:
    """Returns the time average sum_n v_n (t_n - t_{n+1}) / (t_0 - t_N) of values v [steps] on a grid [steps + 1].

    For example, let inside [steps] be 1 on the steps within an interval and 0 on the others. Then
    interval(omega / time_mean(grid, inside), lo, hi) has the time average omega, as the interval of TV-CFG's code.
    """
    return jnp.sum(values * (grid[:-1] - grid[1:])) / (grid[0] - grid[-1])


@ranged
def triangle(grid: Array, omega: Finite, peak: Share = 0.5) -> Weight:
    """Builds the stage-wise schedule: weak at both ends and strong in the middle, with the time average omega.

        P = floor(N peak),  r_n = n/P for n < P,  (N-1-n)/(N-1-P) for n >= P
        w_n = 1 + 2 omega r_n,  then  omega_n = w_n (1 + omega) / mean(w) - 1

    mean is the time average over the N steps of the grid (`time_mean`), so that the average is exact on any grid.
    Since the scale w is rescaled, it is near 1 at the ends but not exactly 1. peak in [0, 1] is the share of the steps
    before the peak; the paper calls 0.4 to 0.6 equally good.
    Source: Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007, official code ("symmetric", peak 0.5;
    other peaks after the paper's text). The text's own triangle ends one step later; it is `ramp("lambda", omega,
    of="omega")`.
    """
    checks.is_grid(grid)
    steps = grid.shape[0] - 1
    n = jnp.arange(steps, dtype=grid.dtype)
    # EDGE, because 100 * 0.29 is 29 and rounds to 28.999996
    top = jnp.clip(jnp.floor(steps * (peak + EDGE)), 0, steps - 1)
    up, down = n / jnp.maximum(top, 1), (steps - 1 - n) / jnp.maximum(steps - 1 - top, 1)
    profile = jnp.where(n < top, up, jnp.where(n > top, down, 1))
    scale = 1 + 2 * omega * profile
    return table(grid, scale * ((1 + omega) / time_mean(grid, scale)) - 1)


@ranged
def step_up(grid: Array, omega: Finite, switch: Share = 0.25, share: NonNegative = 1 / 3) -> Weight:
    """Builds the weight with the scale share (1 + omega) on the steps n < switch (N - 1) of N, then 1 + omega.

    It is not normalised. For omega < 1/share - 1 the early weight is negative: it moves towards the reference.
    Source: official code of Stage-wise Dynamics of Classifier-Free Guidance, arXiv 2509.22007 (its w is our scale).
    """
    early, scale = _early(grid, switch), 1 + omega
    return table(grid, jnp.where(early, share * scale, scale) - 1)


@ranged
def step_down(grid: Array, omega: Finite, switch: Share = 0.25, share: NonNegative = 1 / 3) -> Weight:
    """Builds `step_up` with the levels exchanged: scale 1 + omega on the first steps, then share (1 + omega)."""
    early, scale = _early(grid, switch), 1 + omega
    return table(grid, jnp.where(early, scale, share * scale) - 1)


def _early(grid: Array, switch) -> Array:
    checks.is_grid(grid)
    steps = grid.shape[0] - 1
    # EDGE, because 0.07 * 100 is 7 and rounds to 7.000000000000001
    return jnp.arange(steps, dtype=grid.dtype) < (switch - EDGE) * max(steps - 1, 1)

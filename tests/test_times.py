"""The rule of interval edges: computed times against typed bounds give what exact arithmetic gives."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.problems.chain_fields import _starts_within
from guidance import schedules, weights
from guidance.sampling import log_snr_grid, noise_level_grid, uniform_grid
from guidance.sampling.solvers import _raised
from guidance.times import EDGE, within

ROUNDING = 2e-7  # of float32 times, with room
_omega = jax.jit(lambda weight, t: weight(t=t, s=t, cond=jnp.zeros(t.shape, int)))


def exactly(steps, lo, hi):
    """Which steps are guided, by rational arithmetic on the bounds as they are typed."""
    lo, hi = Fraction(str(lo)), Fraction(str(hi))
    return [lo < Fraction(i, steps) <= hi for i in range(steps, 0, -1)]


def guided(weight, grid):
    return (np.asarray(_omega(weight, grid[:-1])) != 0).tolist()


ISSUE = [
    (50, 0.0, 0.2, 10), (25, 0.2, 0.8, 15), (50, 0.2, 0.8, 30), (100, 0.2, 0.8, 60), (20, 0.05, 0.15, 2),
    (25, 0.4, 0.7, 7), (100, 0.4, 1.0, 60), (3, 0.3, 0.34, 1), (7, 0.14, 0.15, 1), (1000, 0.1, 0.9, 800),
]  # fmt: skip


@pytest.mark.parametrize("steps, lo, hi, count", ISSUE)
def test_an_interval_guides_the_steps_of_exact_arithmetic(steps, lo, hi, count):
    expected = exactly(steps, lo, hi)
    assert sum(expected) == count, "worked by hand"
    for x64 in (False, True):
        with jax.enable_x64(x64):
            assert guided(weights.interval(1.0, lo, hi), uniform_grid(steps)) == expected


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_every_bound_of_two_decimals_on_every_uniform_grid(x64):
    """i/n against k/100 for n = 2..1000, computed a little wrong: 100 i > k n in integers is exact arithmetic."""
    i = np.concatenate([np.arange(1, n + 1) for n in range(2, 1001)])
    n = np.concatenate([np.full(n, n) for n in range(2, 1001)])
    with jax.enable_x64(x64):
        compare = jax.jit(lambda t, bound: (within(t, bound, 2.0), within(t, -1.0, bound)))
        for off in (-ROUNDING, ROUNDING):
            t = jnp.asarray(i / n + off, float)
            for k in range(101):
                above, up_to = compare(t, k / 100)
                np.testing.assert_array_equal(above, 100 * i > k * n)
                np.testing.assert_array_equal(up_to, 100 * i <= k * n)


def test_uniform_grids_round_no_more_than_that():
    for steps in (3, 7, 13, 29, 50, 100, 250, 999, 1000):
        exact = [float(Fraction(i, steps)) for i in range(steps, -1, -1)]
        np.testing.assert_allclose(np.asarray(uniform_grid(steps), np.float64), exact, rtol=0, atol=ROUNDING)


def test_nothing_above_zero_counts_as_zero():
    """A grid's last start may lie below the tolerance; (0, hi] guides it, and (EDGE, hi] does not."""
    grid = log_snr_grid(schedules.rectified_flow(), 5, t_min=1e-7)
    assert float(grid[-2]) < EDGE / 5
    assert guided(weights.interval(1.0, 0.0, 0.5), grid)[-1]
    assert not guided(weights.interval(1.0, EDGE, 0.5), grid)[-1]


def test_learned_and_typed_intervals_guide_the_same_steps():
    """The comparison of the tables: the same bounds, the same steps; a bound that no step meets moves nothing."""
    net = weights.GuidanceNet(condition="none", width=4, depth=2, time_width=4)
    params = net.init(jax.random.key(0), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=None)
    for steps, lo, hi in [(50, 0.0, 0.2), (25, 0.2, 0.8), (20, 0.05, 0.15), (10, 0.25, 0.61)]:
        learned = weights.learned(net, params, schedules.cosine(), interval=(lo, hi))
        grid = uniform_grid(steps)
        assert guided(learned, grid) == guided(weights.interval(1.0, lo, hi), grid) == exactly(steps, lo, hi)


def test_configs_know_without_arrays_whether_a_step_starts_within():
    for steps in (1, 2, 3, 5, 10, 25, 50, 1000):
        for lo, hi in [(0.0, 0.001), (0.2, 0.3), (0.5, 0.55), (0.28, 0.32), (0.3, 0.301), (0.99, 1.0), (0.0, 1.0)]:
            assert _starts_within(steps, lo, hi) == any(exactly(steps, lo, hi)), (steps, lo, hi)


def test_shares_of_the_steps_are_exact_too(x64):
    """0.07 of 100 and 0.58 of 50 steps: in float64 7.000000000000001 and 28.999999999999996, in truth 7 and 29."""
    low = np.asarray(weights.tabulated(weights.step_up(uniform_grid(101), 2.0, 0.07), uniform_grid(101), jnp.zeros(1)))
    assert np.sum(low < 1) == 7
    rising = np.asarray(
        weights.tabulated(weights.triangle(uniform_grid(50), 2.0, 0.58), uniform_grid(50), jnp.zeros(1))
    )
    assert np.argmax(rising) == 29


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_noise_levels_at_the_bounds_of_churn_are_raised(name):
    """EDM's [noise_min, noise_max] includes its ends: a time computed from such a level is one of them."""
    schedule = schedules.SCHEDULES[name]()
    for level in (0.05, 0.3, 1.7, 50.0):
        t = noise_level_grid(schedule, [level, 0.0])[:1]
        x, keys = jnp.zeros((1, 2)), jax.random.split(jax.random.key(0), 1)
        for lowest, highest, raised in [(level, 60, True), (0, level, True), (level * 1.01, 60, False)]:
            later = _raised(0.3, 1.0, lowest, highest, keys.copy(), x, t, schedule)[1]
            assert bool(later[0] > t[0]) == raised, (level, lowest, highest)

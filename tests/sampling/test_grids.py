"""Grids beyond uniform ones: cosine, shifted, resolution-dependent, and arbitrary arrays."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import guides, schedules
from guidance.sampling import (
    as_grid,
    cosine_grid,
    edm_grid,
    log_snr_grid,
    noise_level_grid,
    resolution_shift,
    sample,
    shifted,
    uniform_grid,
    unipc,
)
from guidance.schedules import SCHEDULES, noise_level

RF = schedules.rectified_flow()
every_schedule = pytest.mark.parametrize("name", sorted(SCHEDULES))


@every_schedule
def test_cosine_grid_is_uniform_in_the_angle(name, x64):
    """theta = atan(sigma/alpha) has equal gaps; the ends are those asked for."""
    schedule = SCHEDULES[name]()
    grid = cosine_grid(schedule, 7, 0.97, 0.02)
    assert float(grid[0]) == 0.97 and float(grid[-1]) == 0.02
    gaps = jnp.diff(jnp.arctan(noise_level(schedule, grid)))
    chex.assert_trees_all_close(gaps, jnp.full(7, gaps[0]), rtol=1e-9)
    whole = cosine_grid(schedule, 7)
    assert float(whole[0]) == 1.0 and float(whole[-1]) == 0.0 and bool(jnp.all(jnp.diff(whole) < 0))


def test_cosine_grid_of_the_cosine_schedule_is_uniform(x64):
    chex.assert_trees_all_close(cosine_grid(schedules.cosine(), 9), uniform_grid(9), atol=1e-12)


def test_shift_of_rectified_flow(x64):
    """t -> m t/(1 + (m - 1) t), ends kept (SD3, eq. 23); m = 3 takes 1/2 to 3/4."""
    grid = uniform_grid(8)
    got = shifted(RF, grid, 3.0)
    chex.assert_trees_all_close(got, 3 * grid / (1 + 2 * grid), atol=1e-12)
    assert float(got[0]) == 1.0 and float(got[-1]) == 0.0 and float(got[4]) == pytest.approx(0.75)
    chex.assert_trees_all_close(shifted(RF, shifted(RF, grid, 3.0), 1 / 3), grid, atol=1e-12)


# sigma/alpha at t = 1, by hand: B(1) = (0.1 + 20)/2 = 10.05 for linear_vp
HIGHEST = {"rectified_flow": np.inf, "cosine": np.inf, "linear_vp": np.sqrt(np.expm1(10.05)), "edm": 80.0}


@every_schedule
def test_shift_multiplies_noise_levels(name, x64):
    """1/rho' - 1/rho_1 = (1/rho - 1/rho_1)/m: rho' = m rho for an infinite rho_1, and well below a finite one."""
    schedule, highest = SCHEDULES[name](), HIGHEST[name]
    grid = jnp.asarray([0.7, 0.4, 0.2, 0.0])
    got = shifted(schedule, grid, 1.7)
    before, after = (np.asarray(noise_level(schedule, times[:-1])) for times in (grid, got))
    np.testing.assert_allclose(1 / after - 1 / highest, (1 / before - 1 / highest) / 1.7, rtol=1e-9)
    np.testing.assert_allclose(after[-1], 1.7 * before[-1], rtol=0.01)
    assert float(got[-1]) == 0.0


@every_schedule
def test_shifts_keep_the_ends_and_follow_one_another(name, x64):
    schedule, grid = SCHEDULES[name](), uniform_grid(10)
    once = shifted(schedule, grid, 6.0)
    assert float(once[0]) == 1.0 and float(once[-1]) == 0.0
    chex.assert_trees_all_close(shifted(schedule, shifted(schedule, grid, 2.0), 3.0), once, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(shifted(schedule, once, 1 / 6), grid, rtol=1e-9, atol=1e-12)
    assert bool(jnp.all(once[1:-1] > grid[1:-1])), "more steps on high noise"


@every_schedule
def test_no_step_of_a_shifted_grid_has_length_zero(name):
    """Levels beyond that of t = 1 used to be cut there: 5 of 50 steps of linear_vp, 7 of edm, for a shift of 3."""
    for shift in (3.0, 10.0, 0.2):
        grid = np.asarray(shifted(SCHEDULES[name](), uniform_grid(50), shift))
        assert grid[0] == 1 and grid[-1] == 0 and np.all(np.diff(grid) < -1e-6)


def test_a_shifted_schedule_with_a_finite_end_is_sampled(x64):
    """UniPC of order 3 met two steps of no length, 0/0. The data are one point, which every solver finds."""
    schedule = schedules.linear_vp()
    grid, x0 = shifted(schedule, uniform_grid(50), 3.0), jnp.asarray([[0.3, -0.7]])
    start = schedule.sigma(grid[0]) * jnp.asarray([[1.0, 2.0]])
    guide = guides.unguided()
    out = sample(jax.random.key(0), lambda x, t, cond: x0, guide, unipc(3), schedule, grid, start, jnp.zeros(1, int))
    chex.assert_trees_all_close(out.x0, x0, atol=1e-9)


GRIDS = {
    "uniform": lambda schedule, steps: uniform_grid(steps),
    "cosine": cosine_grid,
    "edm": edm_grid,
    "log_snr": log_snr_grid,
    "shifted": lambda schedule, steps: shifted(schedule, uniform_grid(steps), 3.0),
    "noise_level": lambda schedule, steps: noise_level_grid(schedule, [*np.geomspace(50, 0.01, steps), 0]),
}


@every_schedule
@pytest.mark.parametrize("kind", GRIDS)
def test_every_grid_decreases(kind, name):
    for steps in (1, 2, 1000):
        grid = np.asarray(GRIDS[kind](SCHEDULES[name](), steps))
        assert grid.shape == (steps + 1,) and grid.dtype == np.float32
        assert np.all(np.diff(grid) < 0) and grid[0] <= 1 and grid[-1] == 0


def test_resolution_shift_keeps_the_uncertainty_about_a_constant_image(x64):
    """sigma/(alpha sqrt(m)) at m values on the shifted grid = sigma/(alpha sqrt(n)) at n on the original (SD3)."""
    n, m = 64 * 64, 128 * 128
    assert resolution_shift(m, n) == pytest.approx(2.0)
    grid = jnp.asarray([0.8, 0.5, 0.1])
    moved = shifted(RF, grid, resolution_shift(m, n))
    chex.assert_trees_all_close(noise_level(RF, moved) / m**0.5, noise_level(RF, grid) / n**0.5, rtol=1e-9)


def test_your_own_grids(x64):
    times = [0.9, 0.55, 0.5, 0.0]
    np.testing.assert_array_equal(as_grid(times), times)
    levels = [80.0, 1.0, 0.002, 0.0]
    for schedule in (RF, schedules.edm(), schedules.linear_vp()):
        grid = noise_level_grid(schedule, levels)
        chex.assert_trees_all_close(noise_level(schedule, grid[:-1]), jnp.asarray(levels[:-1]), rtol=1e-9)
        assert float(grid[-1]) == 0.0


def test_levels_above_the_schedule_are_cut(x64):
    """A schedule that ends at sigma/alpha = 10 begins its EDM grid there, spaced by the same rule."""
    low = schedules.edm(sigma_max=10.0)
    levels = noise_level(low, edm_grid(low, 5)[:-1])
    chex.assert_trees_all_close(levels ** (1 / 7), jnp.linspace(10 ** (1 / 7), 0.002 ** (1 / 7), 5), rtol=1e-9)
    assert float(noise_level_grid(low, [1e3, 1.0])[0]) == 1.0


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cosine_grid(RF, 0), "steps = 0: allowed: an integer of at least 1"),
        (lambda: shifted(RF, uniform_grid(2), 0.0), "shift = 0.0: allowed: a number above 0"),
        (lambda: resolution_shift(0, 4), "at least 1"),
        (lambda: as_grid([1.0]), "at least two times"),
        (lambda: as_grid([0.5, 0.5, 0.0]), "must decrease, but times 0 and 1 are 0.5 and 0.5"),
        (lambda: as_grid([0.0, 0.5, 1.0]), "must decrease, but times 0 and 1 are 0.0 and 0.5 in float32; give times"),
        (lambda: as_grid([1.1, 0.0]), "must lie within"),
        (lambda: as_grid([1.0, np.nan, 0.0]), "must decrease, but times 0 and 1 are 1.0 and nan"),
        (lambda: as_grid([1.0, 1 - 1e-9, 0.0]), "times 0 and 1 are 1.0 and 1.0 in float32"),  # they differ in float64
        (lambda: uniform_grid(10, 1.0, 1 - 1e-7), "take fewer steps, or t_max and t_min further apart"),
        (lambda: cosine_grid(RF, 10, 1.0, 1 - 1e-7), "take fewer steps, or t_max and t_min further apart"),
        (lambda: log_snr_grid(RF, 50, 1.0), "lower t_max"),
        (lambda: edm_grid(RF, 50, noise_max=1e9), "lower noise_max"),
        (lambda: edm_grid(schedules.edm(), 5, noise_max=1e3, noise_min=100.0), "change noise_min"),
        (lambda: shifted(RF, uniform_grid(50), 1e9), "take a shift nearer to 1"),
        (lambda: shifted(schedules.edm(), uniform_grid(50), 1e9), "take a shift nearer to 1"),
        (
            lambda: noise_level_grid(schedules.edm(), [200.0, 100.0, 1.0]),
            "at most one of them at or above the schedule's",
        ),
        (lambda: noise_level_grid(RF, [1.0, 1 - 1e-9, 0.0]), "give levels further apart"),
        (lambda: noise_level_grid(RF, [1.0, -0.1]), "decreasing and non-negative"),
        (lambda: noise_level_grid(RF, [1.0]), "at least two"),
    ],
)
def test_impossible_grids(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_grids_under_jit():
    """Traced times are not known, so that they cannot be checked; they are the same."""
    for make in GRIDS.values():
        chex.assert_trees_all_close(jax.jit(functools.partial(make, RF, 5))(), make(RF, 5), rtol=1e-5)

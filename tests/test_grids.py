"""Grids beyond uniform ones: cosine, shifted, resolution-dependent, and arbitrary arrays."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules
from guidance.sampling import (
    as_grid,
    cosine_grid,
    edm_grid,
    noise_level_grid,
    resolution_shift,
    shifted,
    uniform_grid,
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


@every_schedule
def test_shift_multiplies_noise_levels(name, x64):
    schedule = SCHEDULES[name]()
    grid = jnp.asarray([0.7, 0.4, 0.2, 0.0])
    got = shifted(schedule, grid, 1.7)
    chex.assert_trees_all_close(noise_level(schedule, got)[:-1], 1.7 * noise_level(schedule, grid)[:-1], rtol=1e-9)
    assert float(got[-1]) == 0.0
    assert bool(jnp.all(shifted(schedule, uniform_grid(4), 50.0) <= 1))


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
        (lambda: cosine_grid(RF, 0), "at least 1 step"),
        (lambda: shifted(RF, uniform_grid(2), 0.0), "positive factor"),
        (lambda: resolution_shift(0, 4), "at least 1"),
        (lambda: as_grid([1.0]), "at least two times"),
        (lambda: as_grid([0.5, 0.5, 0.0]), "must decrease within"),
        (lambda: as_grid([1.1, 0.0]), "must decrease within"),
        (lambda: as_grid([1.0, np.nan, 0.0]), "must decrease within"),
        (lambda: noise_level_grid(RF, [1.0, -0.1]), "decreasing and non-negative"),
        (lambda: noise_level_grid(RF, [1.0]), "at least two"),
    ],
)
def test_impossible_grids(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_grids_under_jit():
    for make in (lambda n: cosine_grid(RF, n), lambda n: shifted(RF, uniform_grid(n), 3.0)):
        chex.assert_trees_all_close(jax.jit(make, static_argnums=0)(5), make(5), rtol=1e-5)

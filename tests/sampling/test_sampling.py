"""Sampling: grids, convergence, laws, evaluations, and what a sample depends on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, schedules, weights
from guidance.sampling import (
    churned_ddim,
    ddim,
    edm_grid,
    initial_noise,
    log_snr_grid,
    sample,
    transition,
    uniform_grid,
)
from guidance.schedules import SCHEDULES
from guidance.truth import mixtures
from tests import oracles

RF = schedules.rectified_flow()
CHURNS = [0.0, 0.3, 0.7, 1.0]
every_schedule = pytest.mark.parametrize("name", sorted(SCHEDULES))

MEAN, VARIANCE = 1.3, 0.4  # the data of the Gaussian tests: N(MEAN, VARIANCE) in one dimension


def _gaussian(schedule, x, t, cond):
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    return MEAN + alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2) * (x - alpha * MEAN)


def _gaussian_denoise(schedule):
    """The exact denoiser of N(m, v): m + a v/(a^2 v + s^2) (x - a m)."""
    return Partial(_gaussian, schedule)


# knobs, denoisers and schedules are pytrees: one compilation serves every test that has the same shapes
_sample = jax.jit(sample, static_argnames="trajectory")


# ---- grids


def test_uniform_grid():
    chex.assert_trees_all_close(uniform_grid(4), jnp.asarray([1.0, 0.75, 0.5, 0.25, 0.0]))
    chex.assert_trees_all_close(uniform_grid(2, 0.9, 0.1), jnp.asarray([0.9, 0.5, 0.1]))


@every_schedule
def test_log_snr_grid(name, x64):
    schedule = SCHEDULES[name]()
    grid = log_snr_grid(schedule, 10, 0.95, 0.05)
    chex.assert_trees_all_close(grid[0], 0.95, rtol=1e-12)
    chex.assert_trees_all_close(grid[-2], 0.05, rtol=1e-12)
    assert grid.shape == (11,) and float(grid[-1]) == 0.0
    gaps = jnp.diff(schedule.log_snr(grid[:-1]))
    chex.assert_trees_all_close(gaps, jnp.full(9, gaps[0]), rtol=1e-9)


@pytest.mark.parametrize("name", ["edm", "rectified_flow", "cosine"])
def test_lig_1_edm_noise_levels(name, x64):
    """LIG-1: rho_i of the 32-step EDM grid, 80 -> 0.002, exponent 7; the last entry of ours is the data."""
    schedule = SCHEDULES[name]()
    grid = edm_grid(schedule, 32)
    assert grid.shape == (33,) and float(grid[-1]) == 0.0
    levels = schedules.noise_level(schedule, grid)
    expected = {13: 4.999, 15: 2.902, 17: 1.609, 19: 0.845, 20: 0.598, 21: 0.415, 22: 0.283, 23: 0.189}
    for i, level in expected.items():
        assert float(levels[i]) == pytest.approx(level, abs=0.001)
    chex.assert_trees_all_close(levels[jnp.asarray([0, 31])], jnp.asarray([80.0, 0.002]), rtol=1e-9)


@every_schedule
@pytest.mark.parametrize("grid", [uniform_grid, lambda steps: None], ids=["uniform", "log_snr"])
def test_grids_decrease_to_data(name, grid):
    times = grid(16)
    times = log_snr_grid(SCHEDULES[name](), 16) if times is None else times
    assert bool(jnp.all(jnp.diff(times) < 0)) and float(times[-1]) == 0.0 and times.shape == (17,)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: uniform_grid(0), "steps = 0: allowed: an integer of at least 1"),
        (lambda: uniform_grid(4, 0.3, 0.5), "t_max = 0.3: allowed: above t_min = 0.5"),
        (lambda: uniform_grid(4, 1.5), r"t_max = 1.5: allowed: a number in \[0, 1\]"),
        (lambda: log_snr_grid(RF, 0), "steps = 0: allowed: an integer of at least 1"),
        (lambda: edm_grid(RF, 4, 0.1, 0.2), "noise_max = 0.1: allowed: above noise_min = 0.2"),
    ],
)
def test_impossible_grids(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- convergence and laws


@pytest.mark.parametrize("name", ["rectified_flow", "cosine", "edm"])
def test_ddim_converges_to_the_gaussian_flow_with_order_1(name, x64):
    """The flow of N(m, v) maps x_t to m + (x_t - alpha_t m) sqrt(v / (alpha_t^2 v + sigma_t^2))."""
    schedule = SCHEDULES[name]()
    x = schedule.sigma(jnp.asarray(1.0)) * jnp.linspace(-2, 2, 9)[:, None]
    alpha, sigma = schedule.alpha(jnp.asarray(1.0)), schedule.sigma(jnp.asarray(1.0))
    exact = MEAN + (x - alpha * MEAN) * jnp.sqrt(VARIANCE / (alpha**2 * VARIANCE + sigma**2))
    cond = jnp.zeros(9)

    def error(steps):
        grid = uniform_grid(steps)
        out = _sample(
            jax.random.key(0), _gaussian_denoise(schedule), guides.unguided(), ddim(), schedule, grid, x, cond
        )
        return float(jnp.max(jnp.abs(out.x0 - exact)))

    errors = np.asarray([error(steps) for steps in (40, 80, 160, 320)])
    orders = np.log2(errors[:-1] / errors[1:])
    assert abs(orders[-1] - 1) < 0.05, orders
    assert errors[-1] < 0.02


def _moments_after(schedule, grid, churn, mean, variance, m, v):
    """The recursion of mean and variance under the kernel with D = m + k (x - alpha m): affine, so exact."""
    grid = jnp.asarray(grid)
    steps = (
        *transition(schedule, t=grid[:-1], s=grid[1:], churn=churn),
        schedule.alpha(grid[:-1]),
        schedule.sigma(grid[:-1]),
    )
    for a, b, noise, alpha, sigma in zip(*(np.asarray(column, np.float64) for column in steps), strict=True):
        k = alpha * v / (alpha**2 * v + sigma**2)
        mean = (a + b * k) * mean + b * (m - k * alpha * m)
        variance = (a + b * k) ** 2 * variance + noise
    return mean, variance


def _point_mass(x, t, cond):
    return jnp.full_like(x, MEAN)


@pytest.mark.parametrize("churn", CHURNS)
def test_churned_ddim_keeps_the_marginals_of_a_point_mass(churn):
    """With x0 known the kernel is exact for every churn and any step: x_s ~ N(alpha_s m, sigma_s^2)."""
    n, grid = 20_000, jnp.asarray([1.0, 0.6, 0.55, 0.2])
    start_key, key = jax.random.split(jax.random.key(7))
    x = initial_noise(start_key, RF, grid, (1,), jnp.arange(n))
    out = _sample(key, Partial(_point_mass), guides.unguided(), churned_ddim(churn), RF, grid, x, x, trajectory=True)
    path = np.asarray(out.trajectory[..., 0], np.float64)
    for x_s, s in zip(path, np.asarray(grid), strict=True):
        assert abs(x_s.mean() - (1 - s) * MEAN) < 5 * s / n**0.5
        assert abs(x_s.var() - s**2) < 5 * s**2 * (2 / n) ** 0.5


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_churned_ddim_follows_the_exact_gaussian_recursion(churn):
    """Samples of N(m, v) in 8 coarse steps have the mean and variance of the affine recursion, within 5 sigma."""
    n, grid = 20_000, uniform_grid(8)
    start_key, key = jax.random.split(jax.random.key(8))
    x = initial_noise(start_key, RF, grid, (1,), jnp.arange(n))
    out = _sample(key, _gaussian_denoise(RF), guides.unguided(), churned_ddim(churn), RF, grid, x, x)
    x0 = np.asarray(out.x0, np.float64)
    mean, variance = _moments_after(RF, grid, churn, 0.0, 1.0, MEAN, VARIANCE)
    assert abs(x0.mean() - mean) < 5 * (variance / n) ** 0.5
    assert abs(x0.var() - variance) < 5 * variance * (2 / n) ** 0.5


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
def test_churned_ddim_converges_to_the_data(churn, x64):
    """The variance error of that recursion is halved with the step: order 1 in law, for every churn."""
    grids = [np.linspace(1, 0, steps + 1) for steps in (50, 100)]
    errors = [abs(_moments_after(RF, grid, churn, 0.0, 1.0, MEAN, VARIANCE)[1] - VARIANCE) for grid in grids]
    assert 1.8 < errors[0] / errors[1] < 2.2


# ---- what a sample depends on


def _toy_run(batch, ids=None, x=None, omega=1.0, trajectory=False, guide=None):
    toy = oracles.toy2()
    grid = uniform_grid(6)
    ids = jnp.arange(batch) if ids is None else jnp.asarray(ids)
    x = initial_noise(jax.random.key(1), RF, grid, (2,), ids)
    guide = guides.cfg(weights.constant(omega), toy.null) if guide is None else guide
    denoise = mixtures.denoise(toy, RF)
    return _sample(
        jax.random.key(2), denoise, guide, churned_ddim(0.7), RF, grid, x, ids % 4, ids=ids, trajectory=trajectory
    )


def test_a_sample_depends_on_its_id_and_not_on_its_batch():
    batch = _toy_run(5).x0
    singles = jnp.concatenate([_toy_run(1, ids=[i]).x0 for i in range(5)])
    chex.assert_trees_all_close(batch, singles, atol=1e-6)
    chex.assert_trees_all_close(_toy_run(3, ids=[4, 0, 2]).x0, batch[jnp.asarray([4, 0, 2])], atol=1e-6)
    assert len(np.unique(np.asarray(batch)[:, 0])) == 5


def test_noise_of_a_sample_depends_on_key_and_id():
    grid = uniform_grid(2)
    noise = lambda seed, ids: initial_noise(jax.random.key(seed), RF, grid, (2,), jnp.asarray(ids))  # noqa: E731
    chex.assert_trees_all_equal(noise(0, [3, 5])[1], noise(0, [5])[0])
    assert bool(jnp.all(noise(0, [3]) != noise(1, [3])))


def test_initial_noise_has_the_scale_of_the_schedule():
    n = 20_000
    for name in ("edm", "rectified_flow"):
        schedule = SCHEDULES[name]()
        z = np.asarray(initial_noise(jax.random.key(0), schedule, uniform_grid(2), (1,), jnp.arange(n)), np.float64)
        sigma = float(schedule.sigma(jnp.asarray(1.0)))
        assert abs(z.mean()) < 5 * sigma / n**0.5
        assert abs(z.var() - sigma**2) < 5 * sigma**2 * (2 / n) ** 0.5


def test_trajectory():
    """From the start to the sample, [steps + 1, batch, ...]; asking for it changes nothing."""
    out = _toy_run(3, trajectory=True)
    assert out.trajectory.shape == (7, 3, 2)
    chex.assert_trees_all_equal(out.trajectory[-1], out.x0)
    start = initial_noise(jax.random.key(1), RF, uniform_grid(6), (2,), jnp.arange(3))
    chex.assert_trees_all_equal(out.trajectory[0], start)
    plain = _toy_run(3)
    assert plain.trajectory is None
    chex.assert_trees_all_close(plain.x0, out.x0, atol=1e-6)


def test_sampling_equals_a_plain_loop():
    """A reader's version of the sampler: DDIM of rectified flow, guided by hand."""
    toy, grid, cond = oracles.toy2(), uniform_grid(10), jnp.asarray([0, 1, 2])
    denoise = jax.jit(mixtures.denoise(toy, RF))
    start = initial_noise(jax.random.key(0), RF, grid, (2,), jnp.arange(3))
    guide = guides.cfg(weights.constant(1.5), toy.null)
    got = _sample(jax.random.key(1), mixtures.denoise(toy, RF), guide, ddim(), RF, grid, start, cond).x0
    x = start
    for t, s in zip(np.asarray(grid[:-1]), np.asarray(grid[1:]), strict=True):
        positive, reference = denoise(x, jnp.full(3, t), cond), denoise(x, jnp.full(3, t), jnp.full(3, toy.null))
        velocity = (x - (positive + 1.5 * (positive - reference))) / t
        x = x - (t - s) * velocity
    chex.assert_trees_all_close(got, x, atol=1e-4)


# ---- evaluations


@pytest.mark.parametrize(
    "weight, reference",
    [
        (weights.constant(2.0), 6),
        (weights.constant(0.0), 0),
        (weights.interval(2.0, 0.3, 0.7), 3),  # of the starts 1, 5/6, 4/6, 3/6, 2/6, 1/6: the middle three
    ],
    ids=["constant", "zero", "interval"],
)
def test_evaluations_are_counted(weight, reference):
    toy = oracles.toy2()
    out = _toy_run(3, guide=guides.cfg(weight, toy.null))
    assert {k: int(v) for k, v in out.nfe.items()} == {"positive": 6, "reference": reference}


def test_unguided_sampling_evaluates_once_a_step():
    assert {k: int(v) for k, v in _toy_run(2, guide=guides.unguided()).nfe.items()} == {"positive": 6}


@pytest.mark.parametrize(
    "weight",
    [weights.constant(2.0), weights.constant(0.0), weights.interval(2.0, 0.3, 0.7), weights.clamp_linear(1.0, 1.0)],
    ids=["constant", "zero", "interval", "ramp"],
)
def test_skipping_branches_changes_no_sample(weight):
    toy = oracles.toy2()
    skipped, full = (_toy_run(4, guide=guides.cfg(weight, toy.null, skip)).x0 for skip in (True, False))
    chex.assert_trees_all_close(skipped, full, atol=1e-6)


def test_a_sweep_over_omegas_compiles_once():
    toy, grid, traces = oracles.toy2(), uniform_grid(6), []
    exact = mixtures.denoise(toy, RF)

    def denoise(x, t, cond):
        traces.append(1)
        return exact(x, t, cond)

    @jax.jit
    def run(guide, churn, x):
        return sample(jax.random.key(0), denoise, guide, churned_ddim(churn), RF, grid, x, jnp.arange(2)).x0

    x = initial_noise(jax.random.key(1), RF, grid, (2,), jnp.arange(2))
    first = run(guides.cfg(weights.constant(0.5), toy.null), 0.1, x)
    count = len(traces)
    others = [
        run(guides.cfg(weights.constant(omega), toy.null), churn, x) for omega, churn in ((1.0, 0.2), (2.0, 0.9))
    ]
    assert len(traces) == count
    assert all(float(jnp.max(jnp.abs(first - other))) > 1e-3 for other in others)


def test_state_keeps_its_dtype_whatever_the_network_returns():
    grid = uniform_grid(3)
    x = initial_noise(jax.random.key(0), RF, grid, (2,), jnp.arange(2))
    half = lambda x, t, cond: (0.5 * x).astype(jnp.bfloat16)  # noqa: E731
    out = sample(jax.random.key(1), half, guides.unguided(), ddim(), RF, grid, x, jnp.arange(2))
    assert out.x0.dtype == jnp.float32

"""Convergence orders of every sampler against exact solutions, and the laws of the stochastic ones."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from guidance import guides, sampling, schedules
from guidance.schedules import SCHEDULES
from guidance.truth import mixtures
from guidance.truth.flow_1d import flow_map
from tests import oracles
from tests.samplers import DETERMINISTIC, SOLVERS, STOCHASTIC, driven

RF = schedules.rectified_flow()
PRIOR = oracles.tilt_prior()  # .6 N(-2, .3^2) + .4 N(1.5, .5^2)
MEAN, VARIANCE = 1.3, 0.4  # the Gaussian data
_sample = jax.jit(sampling.sample, static_argnames="trajectory")
_exact_flow = jax.jit(flow_map)


def _between(schedule, steps, noise_max=20.0, noise_min=0.1):
    """Uniform in log-SNR between two noise levels: away from the ends, where lambda is infinite."""
    return schedule.time(jnp.linspace(-2 * np.log(noise_max), -2 * np.log(noise_min), steps + 1))


# ---- deterministic solvers against the exact flow of a mixture


def _flow_error(solver, schedule, grid):
    """Mean distance of 13 samples from the exact probability flow, started over +-1.5 deviations."""
    z, cond = jnp.linspace(-1.5, 1.5, 13)[:, None], jnp.zeros(13, jnp.int32)
    x = z * jnp.sqrt(3 * schedule.alpha(grid[0]) ** 2 + schedule.sigma(grid[0]) ** 2)
    exact = _exact_flow(PRIOR, schedule, x, t=jnp.full(13, grid[0]), s=jnp.full(13, grid[-1]), cond=cond)
    denoise = mixtures.denoise(PRIOR, schedule)
    out = _sample(jax.random.key(0), denoise, guides.unguided(), sampling.as_solver(solver), schedule, grid, x, cond)
    return np.abs(np.asarray(out.x0 - exact))


def _order(solver, schedule, grids):
    coarse, fine = (_flow_error(solver, schedule, grid).mean() for grid in grids)
    return float(np.log2(coarse / fine))


# UniPC of order p has order p + 1 where every step but the last is corrected
ORDERS = {
    "euler": 1, "ddim": 1, "heun": 2, "edm": 2, "dpmpp_2m": 2, "dpmpp_2s": 2, "unipc": 3, "unipc_bh1": 3,
}  # fmt: skip
CLOCKS = [("euler", name) for name in SCHEDULES] + [("heun", name) for name in SCHEDULES]
CASES = CLOCKS + [(name, "rectified_flow") for name in ORDERS if name not in ("euler", "heun")]


@pytest.mark.parametrize("name, schedule", CASES)
def test_order_of_convergence(name, schedule, x64):
    """Between noise levels 20 and .1, halving the steps. Solvers in lambda or sigma/alpha do not see the clock."""
    schedule = SCHEDULES[schedule]()
    solver = sampling.unipc(variant="bh1") if name == "unipc_bh1" else DETERMINISTIC[name]
    order = _order(solver, schedule, [_between(schedule, steps) for steps in (80, 160)])
    assert abs(order - ORDERS[name]) < 0.15


def test_order_of_third_order_unipc(x64):
    """Nominally 4; at these numbers of steps it is still above, and its error below that of order 2."""
    assert _order(sampling.unipc(3), RF, [_between(RF, steps) for steps in (40, 80)]) > 3.5
    grid = _between(RF, 80)
    assert _flow_error(sampling.unipc(3), RF, grid).mean() < 0.3 * _flow_error(sampling.unipc(2), RF, grid).mean()


def test_order_on_the_grid_of_edm(x64):
    schedule = schedules.edm()
    grids = [sampling.edm_grid(schedule, steps) for steps in (80, 160)]
    assert abs(_order(sampling.edm(), schedule, grids) - 2) < 0.15


@pytest.mark.parametrize("name", ["heun", "edm", "dpmpp_2m", "dpmpp_2s", "unipc"])
def test_order_from_noise_to_data(name, x64):
    """t from 1 to 0 uniformly, first and last steps of lower order included: they cost no more than logarithms."""
    order = _order(DETERMINISTIC[name], RF, [sampling.uniform_grid(steps) for steps in (128, 256)])
    assert 1.7 < order < 2.3


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_adaptive_solver_is_the_truth(schedule, x64):
    """From t = 1 to 0 in one step of the grid: the error follows the tolerance; between modes it is amplified."""
    schedule = SCHEDULES[schedule]()
    grid = sampling.uniform_grid(1)
    loose, tight = (_flow_error(sampling.adaptive(tol, tol), schedule, grid).max() for tol in (1e-5, 1e-10))
    assert loose < 1e-2 and tight < 1e-6


def test_an_exhausted_adaptive_solver_says_so(x64):
    error = _flow_error(sampling.adaptive(1e-10, 1e-10, max_attempts=3), RF, sampling.uniform_grid(1))
    assert np.all(np.isnan(error))


# ---- laws: the update is affine in the state and the noise where the denoiser is affine, so moments are exact


def _gaussian(schedule, variance, x, t, cond):
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    return MEAN + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * MEAN)


def _data_law(schedule, grid, variance):
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    return alpha * MEAN, alpha**2 * variance + sigma**2


@jax.jit
def _law(solver, schedule, grid, variance, start):
    """Mean and variance at every time of the grid, exactly: the response to the start and to each unit of noise."""
    steps, draws = grid.shape[0] - 1, 2
    units = jnp.eye(steps * draws).reshape(steps, draws, -1, 1)
    noise = jnp.concatenate([jnp.zeros((steps, draws, 2, 1)), units], axis=2)
    x = jnp.zeros((steps * draws + 2, 1)).at[1].set(1.0)
    path = driven(solver, Partial(_gaussian, schedule, variance), guides.unguided(), schedule, grid, x, None, noise)
    base = path[:, :1, 0]
    gain = path[:, 1:, 0] - base
    mean, spread = start
    return base[:, 0] + gain[:, 0] * mean, gain[:, 0] ** 2 * spread + jnp.sum(gain[:, 1:] ** 2, axis=1)


EXACT = [name for name in {**DETERMINISTIC, **STOCHASTIC} if name not in ("euler", "heun")]
BOTH = [(name, schedule) for name in STOCHASTIC for schedule in SCHEDULES]
BOTH += [(name, schedule) for name in EXACT if name not in STOCHASTIC for schedule in ("cosine", "edm")]


@pytest.mark.parametrize("name, schedule", BOTH)
def test_the_marginals_of_a_point_mass_are_exact(name, schedule, x64):
    """x0 known: x_s ~ N(alpha_s m, sigma_s^2) after steps of any size, and the sample is m."""
    schedule = SCHEDULES[schedule]()
    grid = jnp.asarray([0.95, 0.7, 0.65, 0.3, 0.1, 0.0])
    exact = _data_law(schedule, grid, 0.0)
    got = _law(sampling.as_solver(SOLVERS[name]), schedule, grid, 0.0, (exact[0][0], exact[1][0]))
    chex.assert_trees_all_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_solvers_on_the_clock_end_at_a_point_mass(name, schedule, x64):
    schedule, grid = SCHEDULES[schedule](), sampling.uniform_grid(3)
    mean, variance = _law(sampling.as_solver(SOLVERS[name]), schedule, grid, 0.0, (0.0, 1.0))
    chex.assert_trees_all_close((mean[-1], variance[-1]), (jnp.asarray(MEAN), jnp.zeros(())), atol=1e-12)


@pytest.mark.parametrize(
    "name, order",
    [("churned_ddim", 1), ("ddpm", 1), ("edm_stochastic", 2), ("dpmpp_2m_sde", 2), ("dpmpp_2s_sde", 2)],
)
def test_the_marginals_of_a_gaussian_are_approached(name, order, x64):
    """Data N(m, v): the mean is exact, the error of the variance falls with the order, and none is left out."""

    def error(steps):
        solver = sampling.edm_stochastic(4 / steps) if name == "edm_stochastic" else SOLVERS[name]
        grid = _between(RF, steps)
        exact = _data_law(RF, grid, VARIANCE)
        mean, variance = _law(sampling.as_solver(solver), RF, grid, VARIANCE, (exact[0][0], exact[1][0]))
        chex.assert_trees_all_close(mean, exact[0], atol=1e-12)
        return abs(float(variance[-1] - exact[1][-1]))

    errors = error(40), error(80)
    assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2
    assert errors[1] < 0.03


@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "churned_ddim"])
def test_samples_follow_that_law(name, x64):
    """20 000 samples with their own keys in 6 coarse steps against the exact moments, within 5 sigma."""
    n, grid, solver = 20_000, sampling.uniform_grid(6, 0.95, 0.1), sampling.as_solver(STOCHASTIC[name])
    start = (grid[0] * 0, grid[0] ** 2)
    mean, variance = (np.asarray(a) for a in _law(solver, RF, grid, VARIANCE, start))
    start_key, key = jax.random.split(jax.random.key(5))
    x = sampling.initial_noise(start_key, RF, grid, (1,), jnp.arange(n))
    denoise = Partial(_gaussian, RF, VARIANCE)
    path = np.asarray(_sample(key, denoise, guides.unguided(), solver, RF, grid, x, x, trajectory=True).trajectory)
    for i in (1, 3, 6):
        assert abs(path[i].mean() - mean[i]) < 5 * (variance[i] / n) ** 0.5
        assert abs(path[i].var() - variance[i]) < 5 * variance[i] * (2 / n) ** 0.5


# ---- exact reverse kernels


def _distance(x0):
    """Kolmogorov's distance of samples to the prior mixture, in units of 1/sqrt(n)."""
    cdf = lambda y: 0.6 * stats.norm.cdf(y, -2, 0.3) + 0.4 * stats.norm.cdf(y, 1.5, 0.5)  # noqa: E731
    return stats.ks_1samp(np.asarray(x0)[:, 0], cdf).statistic * len(x0) ** 0.5


@functools.partial(jax.jit, static_argnums=0)
def _reversed(schedule_name, grid, stepper):
    """20 000 samples from the exact law at grid[0]."""
    schedule, cond = SCHEDULES[schedule_name](), jnp.zeros(20_000, jnp.int32)
    start_key, key = jax.random.split(jax.random.key(3))
    start = mixtures.law_sample(start_key, mixtures.marginal(PRIOR, schedule, jnp.full(cond.shape, grid[0]), cond))
    denoise = mixtures.denoise(PRIOR, schedule)
    return sampling.sample(key, denoise, guides.unguided(), stepper, schedule, grid, start, cond)


@pytest.mark.parametrize("schedule", ["rectified_flow", "edm"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_exact_reverse_kernels_need_no_small_steps(steps, schedule):
    """A distance of 2.2/sqrt(n) is exceeded once in 10 000 true samples; DDPM with as many steps is far off."""
    grid = jnp.asarray([0.9, 0.6, 0.2][:steps] + [0.0])
    exact = sampling.exact_reverse(PRIOR, jnp.zeros(20_000, jnp.int32))
    out = _reversed(schedule, grid, exact)
    assert _distance(out.x0) < 2.2
    assert int(out.nfe["positive"]) == 0
    assert _distance(_reversed(schedule, grid, sampling.as_solver(sampling.ddpm())).x0) > 5

"""Gibbs-like guidance on CFG1D: the missing term of CFG, the two-level guide, and the chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from guidance import guides, predictions, sampling, schedules, steering, weights
from guidance.truth import mixtures
from tests import oracles

EDM, RF = schedules.edm(), schedules.rectified_flow()
OMEGA = 2.0
LINE = np.linspace(-8.0, 10.0, 18001)


def _normal(x, m, v):
    return np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)


def _log_conditional(x):
    return np.log((_normal(x, 1.5, 0.1) + _normal(x, 2.5, 0.1)) / 2)


def _log_unconditional(x):
    return np.log((_normal(x, -2, 1) + _normal(x, 2, 1)) / 2)


@functools.cache
def _tilt():
    """p_c^3 p_u^-2 on LINE, normalised."""
    with np.errstate(divide="ignore", invalid="ignore"):
        log = (1 + OMEGA) * _log_conditional(LINE) - OMEGA * _log_unconditional(LINE)
    density = np.where(np.abs(LINE - 2) < 5, np.exp(log), 0)
    return density / np.trapezoid(density, LINE)


def _quantiles(density, u):
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(LINE))])
    keep = np.concatenate([[True], np.diff(cdf) > 0])
    return np.interp(u, cdf[keep] / cdf[-1], LINE[keep])


def _noised_quantiles(rho, u):
    """Of x + rho z for x from the tilt: its distribution function is a mean of normal ones."""
    wide, x, w = 2 + (2 + 6 * rho) * np.linspace(-1, 1, 4001), LINE[::20], _tilt()[::20]
    return np.interp(u, ndtr((wide[:, None] - x) / rho) @ (w / w.sum()), wide)


def _score(guide, x, rho, schedule=EDM):
    """The guide's score in the EDM state at noise level rho."""
    mixture = oracles.cfg_1d()
    t = jnp.full(x.shape, schedule.time(-2 * jnp.log(rho)))
    alpha = schedule.alpha(t)[:, None]
    labels = jnp.zeros(x.shape, int)
    at = alpha * x[:, None]
    x0 = guide.apply((), mixtures.denoise(mixture, schedule), schedule, at, t=t, s=t, cond=labels)[1].x0
    return np.asarray((alpha * predictions.x0_to("score", schedule, at, x0, t))[:, 0])


def _cfg(omega=OMEGA):
    return guides.cfg(weights.constant(omega), oracles.cfg_1d().null, skip=False)


def _true_score(x, rho):
    """grad log (tilt * N(0, rho^2)) = (E[x0 | x] - x)/rho^2, by quadrature."""
    w = _tilt()[None] * _normal(x[:, None], LINE[None], rho**2)
    return (np.sum(w * LINE, -1) / np.sum(w, -1) - x) / rho**2


# ---- the missing term -----------------------------------------------------------------------------------------------

GIB_1 = {-1.0: (2.442104, 7.508779), 0.5: (1.134503, 2.858447), 2.0: (0.002081, 0.071945), 4.0: (-1.549850, -2.470437)}


def test_gib_1_the_score_is_cfg_plus_the_gradient_of_the_renyi_term(x64):
    x = np.asarray(list(GIB_1))
    true, cfg = np.asarray(list(GIB_1.values())).T
    np.testing.assert_allclose(_true_score(x, 1.0), true, atol=1e-5)
    np.testing.assert_allclose(_score(_cfg(), jnp.asarray(x), 1.0), cfg, atol=1e-5)

    def renyi(x):
        """log int p(x0|x,c)^3 p(x0|x)^-2 dx0 with posteriors p(x0) N(x; x0, 1)/p(x)."""
        noise = _normal(x[:, None], LINE[None], 1.0)
        posterior = lambda log: (p := np.exp(np.maximum(log, -700))[None] * noise) / np.trapezoid(p, LINE)[:, None]  # noqa: E731
        near = np.abs(LINE - 2) < 5
        ratio = posterior(_log_conditional(LINE))[:, near] ** 3 / posterior(_log_unconditional(LINE))[:, near] ** 2
        return np.log(np.trapezoid(ratio, LINE[near]))

    missing = (renyi(x + 1e-4) - renyi(x - 1e-4)) / 2e-4
    np.testing.assert_allclose(missing, true - cfg, atol=1e-5)


def test_gib_2_the_renyi_term_of_gaussians(x64):
    got = steering.gaussian_renyi(jnp.asarray(0.3), jnp.asarray(1.2), jnp.asarray(-0.4), jnp.asarray(0.5), OMEGA)
    assert float(got) == pytest.approx(1.0542584086, abs=1e-8)
    x = np.linspace(-12, 12, 20001)
    integral = np.trapezoid(_normal(x, -0.4, 0.5) ** 3 / _normal(x, 0.3, 1.2) ** 2, x)
    assert float(got) == pytest.approx(np.log(integral), abs=1e-8)
    assert np.isnan(steering.gaussian_renyi(0.0, jnp.asarray(1.0), 0.0, jnp.asarray(1.5), OMEGA)), "no integral"
    assert float(steering.gaussian_renyi(0.3, jnp.asarray(1.2), -0.4, jnp.asarray(0.5), 0.0)) == pytest.approx(0)


# ---- two noise levels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [EDM, RF, schedules.linear_vp()])
def test_gib_3_the_levels_of_the_two_branches(schedule, x64):
    """(1+omega)/rho_c^2 - omega/rho_u^2 = 1/rho^2 = .5917159763 at rho 1.3, seen by a denoiser that reports rho."""
    seen = []

    def denoise(x, t, cond):
        seen.append((np.asarray(x), np.asarray(t)))
        return x

    t = schedule.time(jnp.full(2, -2 * np.log(1.3)))
    x, guide = jnp.asarray([[1.0], [-2.0]]), guides.delayed(weights.constant(OMEGA), 2, 0.1)
    guide.apply((), denoise, schedule, x, t=t, s=t, cond=jnp.zeros(2, int))
    at, times = seen[0]
    rho2 = np.exp(-np.asarray(schedule.log_snr(jnp.asarray(times))))
    np.testing.assert_allclose(rho2, 1.69 * np.asarray([3 / 1.1] * 2 + [2 / 0.1] * 2), rtol=1e-9)
    np.testing.assert_allclose((1 + OMEGA) / rho2[:2] - OMEGA / rho2[2:], 0.5917159763, rtol=1e-9)
    state = at[:, 0] / np.asarray(schedule.alpha(jnp.asarray(times)))
    np.testing.assert_allclose(state, np.tile(np.asarray(x[:, 0] / schedule.alpha(t)), 2), rtol=1e-9)


GIB_4 = {0.5: (7.069, 0.545), 1.0: (5.067, 0.406), 2.0: (2.548, 0.157)}


@pytest.mark.parametrize("rho", GIB_4)
@pytest.mark.parametrize("schedule", [EDM, RF])
def test_gib_4_two_levels_have_a_smaller_error(rho, schedule, x64):
    x = np.arange(-1.0, 6.0)
    error = lambda guide: rho * np.abs(_score(guide, jnp.asarray(x), rho, schedule) - _true_score(x, rho)).max()  # noqa: E731
    cfg, delayed = GIB_4[rho]
    assert error(_cfg()) == pytest.approx(cfg, abs=0.002)
    guide = guides.delayed(weights.constant(OMEGA), oracles.cfg_1d().null, 0.1)
    assert error(guide) == pytest.approx(delayed, abs=0.002)


@pytest.mark.parametrize("omega", [-1.0, 0.0, 0.05, 0.1])
def test_two_levels_with_a_weight_of_at_most_delta_are_cfg(omega):
    x = jnp.linspace(-2, 4, 7)
    guide = guides.delayed(weights.constant(omega), oracles.cfg_1d().null, 0.1)
    np.testing.assert_allclose(_score(guide, x, 1.0), _score(_cfg(omega), x, 1.0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_two_levels_are_finite_from_noise_to_data(name):
    schedule, mixture = schedules.by_name(name), oracles.cfg_1d()
    grid = sampling.uniform_grid(6)
    x = sampling.initial_noise(jax.random.key(0), schedule, grid, (1,), jnp.arange(5))

    def total(omega, x):
        guide = guides.delayed(weights.constant(omega), mixture.null)
        out = sampling.sample(
            jax.random.key(1), mixtures.denoise(mixture, schedule), guide, sampling.ddim(), schedule, grid, x,
            jnp.zeros(5, jnp.int32),
        )  # fmt: skip
        return jnp.sum(out.x0), out.nfe

    (value, nfe), slopes = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(2.0, x)
    assert np.isfinite(float(value)) and all(np.all(np.isfinite(s)) for s in slopes)
    assert {branch: int(n) for branch, n in nfe.items()} == {"positive": 6, "reference": 6}


# ---- the chain ------------------------------------------------------------------------------------------------------


def _heun(key, x, start, steps=60, omega=OMEGA):
    """A second-order sampler of the CFG flow from noise level `start` to 1e-3 in log steps: dx/drho = -rho score."""
    del key
    levels = start * (1e-3 / start) ** (jnp.arange(steps + 1) / steps)
    mixture = oracles.cfg_1d()
    guide, denoise, labels = _cfg(omega), mixtures.denoise(mixture, EDM), jnp.zeros(x.shape[0], jnp.int32)

    def slope(x, rho):
        t = jnp.full(x.shape[0], EDM.time(-2 * jnp.log(rho)), x.dtype)
        return guide.apply((), denoise, EDM, x, t=t, s=t, cond=labels)[1].eps

    def body(x, ends):
        rho, lower = ends
        here = slope(x, rho)
        there = slope(x + (lower - rho) * here, lower)
        return x + (lower - rho) / 2 * (here + there), None

    x, _ = jax.lax.scan(body, x, (levels[:-1], levels[1:]))
    return sampling.Sampled(x, {"positive": jnp.asarray(2 * steps), "reference": jnp.asarray(2 * steps)}, None)


U = (np.arange(2000) + 0.5) / 2000


@functools.partial(jax.jit, static_argnames="steps")
def _pushed(quantiles, rho, steps):
    """Quantiles sent down the CFG flow from rho, which is monotone on the line: the quantiles of its result."""
    return _heun(None, quantiles[:, None], rho, steps).x0[:, 0]


def _distance(a, b):
    return np.mean(np.abs(np.sort(a) - np.sort(b)))


GIB_5 = {0.1: 0.0015, 0.25: 0.0125, 0.5: 0.0344, 1.0: 0.0829, 2.0: 0.1900, 5.0: 0.4021}


def test_gib_5_one_round_from_the_exact_tilt_drifts_with_the_level(x64):
    target = _quantiles(_tilt(), U)
    values = []
    for rho, expected in GIB_5.items():
        wide = _noised_quantiles(rho, U)
        values.append(_distance(np.asarray(_pushed(jnp.asarray(wide), rho, 60)), target))
        assert values[-1] == pytest.approx(expected, abs=0.001)
    assert values == sorted(values)


def test_gib_6_the_full_chain_of_cfg_collapses(x64):
    """From rho = 80 by the quantiles of N(0, 80^2) around the mean: mean, variance and distance to the tilt."""
    start = 80 * jax.scipy.special.ndtri(jnp.asarray(U))
    x = np.asarray(_pushed(start, 80.0, 400))
    assert x.mean() == pytest.approx(2.4530, abs=0.002)
    assert x.var() == pytest.approx(0.0149, abs=0.002)
    assert _distance(x, _quantiles(_tilt(), U)) == pytest.approx(0.5038, abs=0.002)


def _start(samples, n=4000):
    x0 = jnp.asarray(samples[np.random.default_rng(0).permutation(n)], jnp.float32)[:, None]
    return sampling.Sampled(x0, {"positive": jnp.asarray(7, jnp.int32)}, None)


@functools.partial(jax.jit, static_argnames=("rounds", "steps"))
def _chain(key, first, rho, rounds, steps=60):
    t = EDM.time(-2 * jnp.log(rho))
    return steering.gibbs(key, first, functools.partial(_heun, start=rho, steps=steps), EDM, t, rounds)


@pytest.mark.parametrize("rho", [0.5, 1.0, 2.0])
def test_gib_5_the_sampler_of_one_round(rho):
    """The stratified exact tilt, noised and sampled down; the Monte Carlo floor of 4000 samples is below 0.015."""
    u = (np.arange(4000) + 0.5) / 4000
    target = _quantiles(_tilt(), u)
    out = _chain(jax.random.key(0), _start(target), rho, 1)
    assert _distance(np.asarray(out.x0[:, 0]), target) == pytest.approx(GIB_5[rho], abs=0.015)


GIB_7 = {1: 0.062, 2: 0.049, 4: 0.031, 8: 0.010}


@pytest.mark.slow
def test_gib_7_rounds_move_the_conditional_to_the_tilt():
    """rho = .1 from p_c, whose own distance to the tilt is .0746; 40 000 samples, each step by a factor of 0.8."""
    u = (np.arange(40_000) + 0.5) / 40_000
    target, own = _quantiles(_tilt(), u), _quantiles(np.exp(np.maximum(_log_conditional(LINE), -700)), u)
    assert _distance(own, target) == pytest.approx(0.0746, abs=0.0005)
    out, done = _start(own, 40_000), 0
    for rounds, expected in GIB_7.items():
        out, done = _chain(jax.random.key(rounds), out, 0.1, rounds - done, steps=20), rounds
        assert _distance(np.asarray(out.x0[:, 0]), target) == pytest.approx(expected, abs=0.008)


def test_no_round_is_conditional_sampling():
    mixture, labels = oracles.cfg_1d(), jnp.zeros(16, jnp.int32)
    grid = sampling.edm_grid(EDM, 8)
    x = sampling.initial_noise(jax.random.key(0), EDM, grid, (1,), jnp.arange(16))
    first = sampling.sample(
        jax.random.key(1), mixtures.denoise(mixture, EDM), guides.unguided(), sampling.ddim(), EDM, grid, x, labels
    )
    out = _chain(jax.random.key(2), first, 1.0, 0)
    np.testing.assert_array_equal(out.x0, first.x0)
    assert {branch: int(n) for branch, n in out.nfe.items()} == {"positive": 8}


def test_evaluations_add_up_and_samples_belong_to_their_ids():
    first = _start(np.linspace(1, 3, 6), 6)
    out = _chain(jax.random.key(0), first, 1.0, 3)
    assert {branch: int(n) for branch, n in out.nfe.items()} == {"positive": 7 + 3 * 120, "reference": 3 * 120}
    part, run = sampling.Sampled(first.x0[2:4], first.nfe, None), functools.partial(_heun, start=1.0)
    t = EDM.time(jnp.asarray(0.0))
    alone = steering.gibbs(jax.random.key(0), part, run, EDM, t, 3, ids=jnp.arange(2, 4))
    np.testing.assert_allclose(alone.x0, out.x0[2:4], rtol=1e-3, atol=1e-3)


def test_the_published_loop_is_made_of_sample():
    """Unguided from noise, then rounds of guided DDIM on a grid that starts at the level, in rectified flow."""
    mixture, labels = oracles.cfg_1d(), jnp.zeros(2000, jnp.int32)
    denoise, step = mixtures.denoise(mixture, RF), sampling.ddim()
    grid = sampling.uniform_grid(40)
    x = sampling.initial_noise(jax.random.key(0), RF, grid, (1,), jnp.arange(2000))

    @jax.jit
    def whole(x):
        first = sampling.sample(jax.random.key(1), denoise, guides.unguided(), step, RF, grid, x, labels)
        run = lambda key, x: sampling.sample(key, denoise, _cfg(), step, RF, grid[20:], x, labels)  # noqa: E731
        plain = sampling.sample(jax.random.key(1), denoise, _cfg(), step, RF, grid, x, labels)
        return steering.gibbs(jax.random.key(2), first, run, RF, grid[20], 2), plain

    out, plain = whole(x)
    target = _quantiles(_tilt(), (np.arange(2000) + 0.5) / 2000)
    assert _distance(np.asarray(out.x0[:, 0]), target) < 0.5 * _distance(np.asarray(plain.x0[:, 0]), target)
    assert {branch: int(n) for branch, n in out.nfe.items()} == {"positive": 40 + 40, "reference": 40}


def test_a_step_to_data_by_any_schedule_noises_to_the_same_level():
    """run that returns its argument shows x_t = alpha x_0 + sigma z, also in rectified flow at t = 1/2."""
    first = sampling.Sampled(jnp.full((20_000, 1), 3.0), {}, None)
    out = steering.gibbs(jax.random.key(0), first, lambda key, x: sampling.Sampled(x, {}, None), RF, 0.5, 1)
    assert float(out.x0.mean()) == pytest.approx(1.5, abs=5 * 0.5 / 20_000**0.5)
    assert float(out.x0.std()) == pytest.approx(0.5, abs=5 * 0.5 / 40_000**0.5)

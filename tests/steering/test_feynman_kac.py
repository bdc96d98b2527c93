"""Feynman-Kac corrected CFG on CFG1D: the tilted law that CFG alone misses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import sampling, schedules, steering
from guidance.truth import mixtures
from tests import oracles

EDM = schedules.edm()
N, FEW = 20_000, 4000

# FKC-1: targets p_c^(1+omega) p_u^(-omega) at noise level .1, and tolerances for one seed
TARGETS = {
    0.5: ((2.0010, 0.05), (0.3286, 0.02)),
    1.0: ((2.0016, 0.08), (0.3140, 0.03)),
    2.0: ((2.0026, 0.4), (0.3029, 0.1)),
}


@functools.partial(jax.jit, static_argnames="n")
def _run(key, omega, fraction, churn, n=FEW):
    """400 log-spaced steps from sigma/alpha = 60 to 0.1, from 2 + 60 z."""
    mixture = oracles.cfg_1d()
    start_key, key = jax.random.split(key)
    grid = EDM.time(-2 * jnp.log(jnp.geomspace(60.0, 0.1, 401)))
    x = 2 + 60 * jax.random.normal(start_key, (n, 1))
    step, labels = sampling.churned_ddim(churn), jnp.zeros(n, jnp.int32)
    denoise = mixtures.denoise(mixture, EDM)
    return steering.feynman_kac(key, denoise, omega, mixture.null, step, EDM, grid, x, labels, fraction=fraction)


def _moments(population):
    w = np.exp(np.asarray(population.log_weights, np.float64) - float(population.log_weights.max()))
    x = np.asarray(population.x[:, 0], np.float64)
    mean = np.average(x, weights=w)
    return mean, np.average((x - mean) ** 2, weights=w)


@pytest.mark.slow
@pytest.mark.parametrize("omega", TARGETS)
def test_fkc_1_weighted_particles_have_the_moments_of_the_tilt(omega):
    out = _run(jax.random.key(0), omega, 0.5, 1.0, N)
    mean, variance = _moments(out)
    (target_mean, mean_error), (target_variance, variance_error) = TARGETS[omega]
    assert mean == pytest.approx(target_mean, abs=mean_error)
    assert variance == pytest.approx(target_variance, abs=variance_error)
    assert float(out.ess.min()) < N / 2, "it has to resample"


def _log_integral(omega):
    """log of the integral of p_c^(1+omega) p_u^(-omega) at noise level 0.1, on a line."""
    x = np.linspace(-3.0, 6.0, 4001)
    normal = lambda m, v: np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)  # noqa: E731
    p_c = (normal(1.5, 0.11) + normal(2.5, 0.11)) / 2
    p_u = (normal(-2, 1.01) + normal(2, 1.01)) / 2
    return np.log(np.trapezoid(p_c ** (1 + omega) * p_u**-omega, x))


def test_the_mean_weight_is_the_integral_of_the_tilt():
    """Four populations; the spread between them gives the standard error. The step bias is below 0.01."""
    values = [float(steering.log_mean_weight(_run(jax.random.key(k), 0.5, 0.5, 1.0).log_weights)) for k in range(4)]
    error = oracles.standard_error(values)
    assert abs(np.mean(values) - _log_integral(0.5)) < 5 * error + 0.01
    assert abs(_log_integral(0.5)) > 10 * error, "zero weights would pass"


def test_fkc_2_without_weights_it_is_the_cfg_sde():
    out = _run(jax.random.key(0), 1.0, 0.0, 1.0, N)
    x = np.asarray(out.x[:, 0], np.float64)
    assert x.mean() == pytest.approx(2.079, abs=0.02)
    assert x.var() == pytest.approx(0.258, abs=0.01)
    mean, variance = _moments(out)  # and the weights, though few particles dominate them, know better
    assert abs(mean - 2.0016) < 0.079


def test_the_weights_do_not_depend_on_the_churn():
    """The same tilt with half the churn: smaller noise needs the same weight."""
    mean, variance = _moments(_run(jax.random.key(3), 0.5, 0.5, 0.7))
    assert mean == pytest.approx(2.0010, abs=0.05) and variance == pytest.approx(0.3286, abs=0.02)


def test_fkc_3_the_log_weight_in_both_forms(x64):
    """alpha, sigma from (.6, .8) to (.7, .71): scores against clean predictions, in all schedules at the same rho."""
    rng, omega = np.random.default_rng(0), 1.7
    gap = jnp.asarray(rng.normal(size=(4, 3)))
    rho_t, rho_s = 0.8 / 0.6, 0.71 / 0.7
    # VE scores: s_c - s_u = (D_c - D_u)/rho^2
    expected = 0.5 * omega * (1 + omega) * np.sum((np.asarray(gap) / rho_t**2) ** 2, -1) * (rho_t**2 - rho_s**2)
    for schedule in schedules.SCHEDULES.values():
        t, s = (jnp.full(4, schedule().time(-2 * jnp.log(rho))) for rho in (rho_t, rho_s))
        np.testing.assert_allclose(steering.cfg_log_weight(schedule(), gap, omega, t=t, s=s), expected, rtol=1e-9)


def test_the_log_weight_is_finite_at_both_ends():
    gap = jnp.ones((2, 3))
    for schedule in schedules.SCHEDULES.values():
        value = steering.cfg_log_weight(schedule(), gap, 2.0, t=jnp.asarray([1.0, 0.5]), s=jnp.asarray([0.9, 0.0]))
        assert np.all(np.isfinite(value)) and np.all(np.asarray(value) >= 0)


def test_omega_zero_is_conditional_sampling():
    out = _run(jax.random.key(1), 0.0, 0.5, 1.0)
    np.testing.assert_array_equal(out.log_weights, 0)
    mean, variance = _moments(out)
    assert mean == pytest.approx(2.0, abs=5 * np.sqrt(0.36 / FEW))
    assert variance == pytest.approx(0.36, abs=5 * 0.36 * np.sqrt(2 / FEW))

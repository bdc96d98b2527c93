"""Schedules: values at the ends, derivatives, and the exact inverse of the log-SNR, in float32 and float64."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guidance import schedules
from guidance.schedules import SCHEDULES
from tests.tracing import counted

NAMES = sorted(SCHEDULES)
# below these times the log-SNR is clipped at LOG_SNR_MAX (EDM: 80 t^7 = exp(-40) at t = 0.0018)
FIRST_TIME = {"rectified_flow": 1e-12, "cosine": 1e-12, "linear_vp": 1e-12, "edm": 0.002}
# (alpha, sigma) at t = 0 and at t = 1, by hand from the formulas
ENDS = {
    "rectified_flow": ((1.0, 0.0), (0.0, 1.0)),
    "cosine": ((1.0, 0.0), (0.0, 1.0)),
    "linear_vp": ((1.0, 0.0), (math.exp(-5.025), math.sqrt(1 - math.exp(-10.05)))),
    "edm": ((1.0, 0.0), (1.0, 80.0)),
}
PRECISIONS = [False, True]
every_schedule = pytest.mark.parametrize("name", NAMES)
both_precisions = pytest.mark.parametrize("x64", PRECISIONS, ids=["float32", "float64"])


def _dtype(x64):
    return jnp.float64 if x64 else jnp.float32


@every_schedule
@both_precisions
@settings(deadline=None, max_examples=25)
@given(u=st.floats(0, 1))
def test_time_inverts_log_snr(name, x64, u):
    with jax.enable_x64(x64):
        dtype = _dtype(x64)
        eps = float(jnp.finfo(dtype).eps)
        schedule = SCHEDULES[name]()
        # log-uniform towards both ends, at least one rounding away from t = 1, where alpha = 0 carries no information
        low = math.log(FIRST_TIME[name])
        t = jnp.asarray(
            math.exp(low * (1 - 2 * u)) if u < 0.5 else 1 - max(eps, 0.5 * math.exp(low * (2 * u - 1))), dtype
        )
        log_snr = schedule.log_snr(t)
        # rounding of log_snr, |log_snr| eps, times |d log t / d log_snr| <= 1, and a few operations
        tolerance = eps * (8 + 2 * abs(float(log_snr)))
        assert abs(float(schedule.time(log_snr)) - float(t)) <= tolerance * float(t)


@every_schedule
@both_precisions
@settings(deadline=None, max_examples=25)
@given(log_snr=st.floats(-8, 30))
def test_log_snr_inverts_time(name, x64, log_snr):
    with jax.enable_x64(x64):
        dtype = _dtype(x64)
        schedule = SCHEDULES[name]()
        t = schedule.time(jnp.asarray(log_snr, dtype))
        slope = abs(float(jax.grad(schedule.log_snr)(t)))
        tolerance = float(jnp.finfo(dtype).eps) * (8 + 2 * abs(log_snr) + 2 * slope * float(t))
        assert abs(float(schedule.log_snr(t)) - log_snr) <= tolerance


@every_schedule
@both_precisions
def test_derivatives_are_those_of_autodiff(name, x64):
    with jax.enable_x64(x64):
        schedule = SCHEDULES[name]()
        t = jnp.linspace(0.01, 0.99, 99, dtype=_dtype(x64))
        tolerance = 1e-11 if x64 else 2e-5
        for value, derivative in ((schedule.alpha, schedule.alpha_dot), (schedule.sigma, schedule.sigma_dot)):
            chex.assert_trees_all_close(derivative(t), jax.vmap(jax.grad(value))(t), rtol=tolerance, atol=tolerance)


@every_schedule
@both_precisions
def test_log_snr_is_log_of_alpha_squared_over_sigma_squared(name, x64):
    with jax.enable_x64(x64):
        schedule = SCHEDULES[name]()
        t = jnp.linspace(0.01, 0.99, 99, dtype=_dtype(x64))
        expected = 2 * (jnp.log(schedule.alpha(t)) - jnp.log(schedule.sigma(t)))
        # near t = 1 alpha itself is only known to eps / alpha
        chex.assert_trees_all_close(schedule.log_snr(t), expected, atol=1e-11 if x64 else 2e-4)
        levels = schedule.sigma(t) / schedule.alpha(t)
        chex.assert_trees_all_close(schedules.noise_level(schedule, t), levels, rtol=1e-11 if x64 else 1e-4)


@every_schedule
@both_precisions
def test_ends(name, x64):
    with jax.enable_x64(x64):
        schedule = SCHEDULES[name]()
        t = jnp.asarray([0.0, 1.0], _dtype(x64))
        for member in schedule:
            assert bool(jnp.all(jnp.isfinite(member(t)))), member
        alpha, sigma = (np.asarray(column) for column in zip(*ENDS[name], strict=True))
        chex.assert_trees_all_close(schedule.alpha(t), alpha, rtol=1e-6, atol=0)
        chex.assert_trees_all_close(schedule.sigma(t), sigma, rtol=1e-6, atol=0)
        log_snr = schedule.log_snr(t)
        assert float(log_snr[0]) == pytest.approx(schedules.LOG_SNR_MAX)
        assert float(jnp.abs(schedule.time(log_snr) - t)[1]) < 1e-6


@pytest.mark.parametrize("name", ["cosine", "linear_vp"])
@both_precisions
def test_variance_preserving(name, x64):
    with jax.enable_x64(x64):
        schedule = SCHEDULES[name]()
        t = jnp.linspace(0, 1, 201, dtype=_dtype(x64))
        ones = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
        chex.assert_trees_all_close(ones, jnp.ones_like(t), atol=8 * float(jnp.finfo(t.dtype).eps))


def test_rectified_flow_straight_line():
    schedule = schedules.rectified_flow()
    t = jnp.linspace(0, 1, 11)
    chex.assert_trees_all_equal(schedule.alpha(t) + schedule.sigma(t), jnp.ones_like(t))
    chex.assert_trees_all_equal(schedule.sigma(t), t)


def test_cosine_values():
    with jax.enable_x64(True):
        schedule = schedules.cosine()
        t = jnp.asarray([1 / 3, 1 / 2, 2 / 3])
        chex.assert_trees_all_close(schedule.sigma(t), jnp.asarray([0.5, 0.5**0.5, 0.75**0.5]), atol=1e-14)
        chex.assert_trees_all_close(schedule.log_snr(t), jnp.asarray([math.log(3), 0, -math.log(3)]), atol=1e-13)


@pytest.mark.parametrize("beta_min, beta_max", [(0.1, 20.0), (1.0, 5.0)])
def test_linear_vp_solves_its_ode(beta_min, beta_max):
    """alpha' = -beta alpha/2 with beta linear from beta_min to beta_max: the definition of the process."""
    with jax.enable_x64(True):
        schedule = schedules.linear_vp(beta_min, beta_max)
        t = jnp.linspace(0, 1, 101)
        beta = beta_min + t * (beta_max - beta_min)
        slope = jax.vmap(jax.grad(schedule.alpha))(t)
        chex.assert_trees_all_close(slope, -0.5 * beta * schedule.alpha(t), atol=1e-13)


def test_edm_warped_clock():
    """sigma^(1/rho) is linear in t, from 0 to sigma_max^(1/rho)."""
    with jax.enable_x64(True):
        schedule = schedules.edm(sigma_max=3.0, rho=5.0)
        t = jnp.linspace(0, 1, 11)
        chex.assert_trees_all_close(schedule.sigma(t) ** 0.2, t * 3.0**0.2, atol=1e-14)


@every_schedule
def test_monotone(name):
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        t = jnp.linspace(0, 1, 401)
        assert bool(jnp.all(jnp.diff(schedule.log_snr(t)) <= 0))
        assert bool(jnp.all(jnp.diff(schedule.log_snr(t[4:-4])) < 0))


@every_schedule
def test_keeps_float32_where_float64_is_on(name):
    with jax.enable_x64(True):
        for member in SCHEDULES[name]():
            assert member(jnp.asarray([0.3], jnp.float32)).dtype == jnp.float32


@every_schedule
def test_diffuse_by_hand(name):
    schedule = SCHEDULES[name]()
    rng = np.random.default_rng(0)
    x0, eps = (jnp.asarray(rng.normal(size=(3, 2, 4)), jnp.float32) for _ in range(2))
    t = jnp.asarray([0.2, 0.5, 0.9])
    x = schedules.diffuse(schedule, x0, eps, t)
    for i in range(3):
        expected = float(schedule.alpha(t[i])) * np.asarray(x0[i]) + float(schedule.sigma(t[i])) * np.asarray(eps[i])
        chex.assert_trees_all_close(x[i], expected, rtol=1e-5, atol=1e-5)


def test_by_name():
    for name in NAMES:
        assert schedules.by_name(name) is SCHEDULES[name]()
    with pytest.raises(ValueError, match="rectified_flow"):
        schedules.by_name("nonsense")


def test_equal_schedules_do_not_compile_twice():
    f, traces = counted(lambda schedule, t: schedule.log_snr(t))
    t = jnp.asarray([0.5])
    f(schedules.cosine(), t)
    f(schedules.by_name("cosine"), t)
    assert len(traces) == 1
    f(schedules.edm(), t)
    assert len(traces) == 2

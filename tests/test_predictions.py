"""Predictions: the converters against the definitions of the five predictions and against autodiff."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from guidance import predictions, schedules
from guidance.predictions import PREDICTIONS, as_denoise, convert, eps_from_x0, x0_from, x0_to
from guidance.rules import cfg
from guidance.schedules import SCHEDULES
from guidance.types import Schedule
from tests.tracing import counted

every_schedule = pytest.mark.parametrize("name", sorted(SCHEDULES))


def _pair(seed, shape=(5, 3)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))


def _by_definition(schedule, x0, eps, t):
    """All five predictions of a known pair (x0, eps), from their definitions."""
    t = t[:, None]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return {
        "x0": x0,
        "eps": eps,
        "v": alpha * eps - sigma * x0,
        "velocity": schedule.alpha_dot(t) * x0 + schedule.sigma_dot(t) * eps,
        "score": -eps / sigma,
    }


def _constant_schedule(alpha, sigma):
    """A schedule frozen at one (alpha, sigma), to test converters at values that no schedule of ours visits."""
    constant = lambda value: Partial(lambda t: jnp.full_like(t, value))  # noqa: E731
    return Schedule(constant(alpha), constant(sigma), *[constant(jnp.nan)] * 4)


@every_schedule
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_convert_equals_the_definition(name, source, target):
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        x0, eps = _pair(0)
        t = jnp.asarray([0.3, 0.4, 0.5, 0.7, 0.95])
        x = schedules.diffuse(schedule, x0, eps, t)
        known = _by_definition(schedule, x0, eps, t)
        got = convert(source, target, schedule, x, known[source], t)
        # x0 from eps divides by alpha, eps from x0 by sigma: both are above 0.006 and 0.01 at these times
        chex.assert_trees_all_close(got, known[target], rtol=1e-9, atol=1e-9)


@every_schedule
@settings(deadline=None, max_examples=20)
@given(t=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_round_trips_at_any_time(name, t, seed):
    """x0 -> kind -> x0 is the identity, for the four other kinds."""
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        x0, x = _pair(seed)
        t = jnp.full(5, t)
        sigma, alpha = float(schedule.sigma(t)[0]), float(schedule.alpha(t)[0])
        tolerance = (
            1e-13 * (1 / sigma + 1) * (1 / alpha + 1) * (1 + sigma) * (1 + abs(float(schedule.sigma_dot(t)[0])))
        )
        for kind in PREDICTIONS:
            back = x0_from(kind, schedule, x, x0_to(kind, schedule, x, x0, t), t)
            chex.assert_trees_all_close(back, x0, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("alpha, sigma", [(0.3**0.5, 0.7**0.5), (0.63, 0.37)])
def test_map_1_eps_and_score(alpha, sigma):
    """MAP-1: eps = (x - alpha D)/sigma and score = (alpha D - x)/sigma^2 are inverted exactly."""
    with jax.enable_x64(True):
        schedule = _constant_schedule(alpha, sigma)
        d, x = _pair(1)
        t = jnp.zeros(5)
        eps, score = (x - alpha * d) / sigma, (alpha * d - x) / sigma**2
        chex.assert_trees_all_close(x0_to("eps", schedule, x, d, t), eps, atol=1e-12)
        chex.assert_trees_all_close(x0_to("score", schedule, x, d, t), score, atol=1e-12)
        chex.assert_trees_all_close(x0_from("eps", schedule, x, eps, t), d, atol=1e-12)
        chex.assert_trees_all_close(x0_from("score", schedule, x, score, t), d, atol=1e-12)


def test_map_1_rectified_flow():
    """MAP-1: D = x - t v, score = -(x + (1-t) v)/t, v = -(x + t score)/(1-t)."""
    with jax.enable_x64(True):
        schedule = schedules.rectified_flow()
        v, x = _pair(2)
        t = jnp.asarray([0.1, 0.3, 0.5, 0.8, 0.9])
        tt = t[:, None]
        score = -(x + (1 - tt) * v) / tt
        chex.assert_trees_all_close(x0_from("velocity", schedule, x, v, t), x - tt * v, atol=1e-12)
        chex.assert_trees_all_close(convert("velocity", "score", schedule, x, v, t), score, rtol=1e-12, atol=1e-12)
        back = convert("score", "velocity", schedule, x, score, t)
        chex.assert_trees_all_close(back, -(x + tt * score) / (1 - tt), atol=1e-11)


def test_map_2_variance_preserving():
    """MAP-2: v = alpha eps - sigma x0 and D = alpha x - sigma v."""
    with jax.enable_x64(True):
        schedule = schedules.cosine()
        v, x = _pair(3)
        t = jnp.asarray([0.1, 0.3, 0.5, 0.8, 0.9])
        expected = schedule.alpha(t)[:, None] * x - schedule.sigma(t)[:, None] * v
        chex.assert_trees_all_close(x0_from("v", schedule, x, v, t), expected, atol=1e-12)
        chex.assert_trees_all_close(convert("v", "v", schedule, x, v, t), v, atol=1e-12)


@every_schedule
def test_velocity_is_the_time_derivative_of_the_path(name):
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        x0, eps = _pair(4)
        t = jnp.asarray([0.3, 0.4, 0.5, 0.7, 0.95])
        x, velocity = jax.jvp(lambda t: schedules.diffuse(schedule, x0, eps, t), (t,), (jnp.ones_like(t),))
        chex.assert_trees_all_close(x0_to("velocity", schedule, x, x0, t), velocity, rtol=1e-9, atol=1e-9)


@every_schedule
def test_score_is_the_gradient_of_the_log_density(name):
    """Data 0.3 N(-1, 0.2) + 0.7 N(2, 0.5): D is the posterior mean; its score is that of p_t (Tweedie)."""
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        weights, means, variances = jnp.asarray([0.3, 0.7]), jnp.asarray([-1.0, 2.0]), jnp.asarray([0.2, 0.5])

        def parts(x, t):
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            var = alpha**2 * variances + sigma**2
            return alpha, var, jnp.log(weights) - (x - alpha * means) ** 2 / (2 * var) - jnp.log(var) / 2

        def log_density(x, t):
            return jax.nn.logsumexp(parts(x, t)[2])

        def posterior_mean(x, t):
            alpha, var, logits = parts(x, t)
            return jnp.sum(jax.nn.softmax(logits) * (means + alpha * variances / var * (x - alpha * means)))

        x, t = jnp.linspace(-3, 4, 8), jnp.asarray([0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
        d = jax.jit(jax.vmap(posterior_mean))(x, t)
        score = x0_to("score", schedule, x[:, None], d[:, None], t)[:, 0]
        chex.assert_trees_all_close(score, jax.jit(jax.vmap(jax.grad(log_density)))(x, t), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", PREDICTIONS)
@every_schedule
def test_conv_2_guidance_is_the_same_in_every_space(name, kind):
    """CONV-2: the rule is affine, so it commutes with the conversion to eps, v, velocity and score."""
    with jax.enable_x64(True):
        schedule = SCHEDULES[name]()
        positive, reference = _pair(5)
        x, _ = _pair(6)
        t, omega = jnp.full(5, 0.6), jnp.full(5, 2.3)
        there = [x0_to(kind, schedule, x, d, t) for d in (positive, reference)]
        back = x0_from(kind, schedule, x, cfg(*there, omega), t)
        chex.assert_trees_all_close(back, cfg(positive, reference, omega), rtol=1e-9, atol=1e-9)


def test_conv_2_by_hand():
    """CONV-2 at alpha = 0.6, sigma = 0.8, omega = 2.3, as the table states it."""
    with jax.enable_x64(True):
        schedule = _constant_schedule(0.6, 0.8)
        positive, reference = _pair(7)
        x, _ = _pair(8)
        t, omega = jnp.zeros(5), jnp.full(5, 2.3)
        eps = cfg((x - 0.6 * positive) / 0.8, (x - 0.6 * reference) / 0.8, omega)
        expected = cfg(positive, reference, omega)
        chex.assert_trees_all_close(x0_from("eps", schedule, x, eps, t), expected, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("source", PREDICTIONS)
@pytest.mark.parametrize("target", PREDICTIONS)
def test_finite_at_both_ends(name, source, target):
    """Values and gradients with respect to x and to the prediction, in float32, at t = 0 and t = 1."""
    schedule = SCHEDULES[name]()
    x, prediction = (a.astype(jnp.float32) for a in _pair(9, (2, 3)))
    x, prediction = 10 * x, 10 * prediction
    t = jnp.asarray([0.0, 1.0])
    f = lambda x, p: jnp.sum(jnp.sin(1e-30 * convert(source, target, schedule, x, p, t)))  # noqa: E731
    chex.assert_tree_all_finite(convert(source, target, schedule, x, prediction, t))
    chex.assert_tree_all_finite(jax.grad(f, (0, 1))(x, prediction))


def test_eps_from_x0_is_exact():
    with jax.enable_x64(True):
        x0, eps = _pair(10)
        t = jnp.full(5, 0.4)
        x = schedules.diffuse(schedules.cosine(), x0, eps, t)
        chex.assert_trees_all_close(eps_from_x0(schedules.cosine(), x, x0, t), eps, atol=1e-14)


def test_unknown_kind():
    schedule, x, t = schedules.cosine(), jnp.ones((1, 1)), jnp.ones(1)
    for call in (
        lambda: x0_from("epsilon", schedule, x, x, t),
        lambda: x0_to("epsilon", schedule, x, x, t),
        lambda: as_denoise(None, None, "epsilon", schedule),
    ):
        with pytest.raises(ValueError, match="unknown prediction 'epsilon'; known: x0, eps, v"):
            call()


def _network(params, x, t, cond):
    return params["scale"] * x + cond[:, None] * t[:, None]


def test_as_denoise_converts_and_has_the_parameters_as_leaves():
    schedule = schedules.cosine()
    params = {"scale": jnp.asarray(0.7)}
    x, _ = (a.astype(jnp.float32) for a in _pair(11))
    t, cond = jnp.full(5, 0.4), jnp.arange(5.0)
    for kind in PREDICTIONS:
        denoise = as_denoise(_network, params, kind, schedule)
        chex.assert_trees_all_equal(jax.tree.leaves(denoise), [params["scale"]])
        expected = predictions.x0_from(kind, schedule, x, _network(params, x, t, cond), t)
        chex.assert_trees_all_equal(denoise(x, t, cond), expected)


def test_wrapping_twice_does_not_compile_twice():
    call, traces = counted(lambda denoise, x, t, cond: denoise(x, t, cond))
    x, t, cond = jnp.ones((2, 3)), jnp.ones(2), jnp.ones(2)
    for scale in (0.1, 0.2, 0.3):
        call(as_denoise(_network, {"scale": jnp.asarray(scale)}, "v", schedules.cosine()), x, t, cond)
    assert len(traces) == 1

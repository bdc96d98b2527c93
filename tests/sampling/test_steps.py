"""Steps: the transition kernel with its identities and reference coefficients, DDIM and churned DDIM."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules
from guidance.sampling import churned_ddim, ddim, transition
from guidance.schedules import SCHEDULES
from guidance.truth import mixtures
from guidance.types import Guided

RF = schedules.rectified_flow()
PAIRS = [(0.1, 0.3), (0.4, 0.9), (0.5, 0.55), (0.01, 0.99), (0.5, 0.6)]
CHURNS = [0.0, 0.3, 0.7, 1.0]
every_schedule = pytest.mark.parametrize("name", sorted(SCHEDULES))


# ---- the transition kernel


@every_schedule
@pytest.mark.parametrize("churn", CHURNS)
def test_ker_1_marginals_are_kept(name, churn, x64):
    """KER-1: A alpha_t + B = alpha_s and A^2 sigma_t^2 + V = sigma_s^2."""
    schedule = SCHEDULES[name]()
    s, t = (jnp.asarray(column) for column in zip(*PAIRS, strict=True))
    a, b, v = transition(schedule, t=t, s=s, churn=churn)
    # 1e-12 of the values, which are below one but for the EDM schedule
    chex.assert_trees_all_close(a * schedule.alpha(t) + b, schedule.alpha(s), atol=1e-12)
    chex.assert_trees_all_close(a**2 * schedule.sigma(t) ** 2 + v, schedule.sigma(s) ** 2, rtol=1e-12, atol=1e-12)


def test_ker_2_the_printed_square_breaks_the_variance(x64):
    """KER-2: with (sigma_s^2/sigma_t^2)^j, as printed in arXiv 2510.00815, the error is up to 0.1284; ours is 0."""

    def coefficients(s, t, e, power):
        ratio = lambda i, j: ((1 - t) / (1 - s)) ** i * (s / t) ** (power * j)  # noqa: E731
        keep = e**2 * ratio(1, 1) + 1 - e**2
        return e**2 * ratio(1, 2) + (1 - e**2) * ratio(0, 1), s**2 * (1 - keep**2)

    def error(power):
        cases = [(s, t, *coefficients(s, t, e, power)) for s, t in PAIRS[:3] for e in CHURNS]
        return max(abs(a**2 * t**2 + v - s**2) for s, t, a, v in cases)

    assert error(power=2) == pytest.approx(0.1284, abs=1e-4)
    assert error(power=1) < 1e-12
    for s, t in PAIRS[:3]:
        for e in CHURNS:
            a, _, v = transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=e)
            chex.assert_trees_all_close((a, v), jax.tree.map(jnp.asarray, coefficients(s, t, e, 1)), atol=1e-12)


@every_schedule
def test_ker_3_churn_1_is_the_ddpm_posterior(name, x64):
    """KER-3: k sigma_s^2/sigma_t^2, alpha_s u/sigma_t^2, u sigma_s^2/sigma_t^2; u = sigma_t^2 - k^2 sigma_s^2."""
    schedule = SCHEDULES[name]()
    s, t = (jnp.asarray(column) for column in zip(*PAIRS, strict=True))
    k, var_s, var_t = schedule.alpha(t) / schedule.alpha(s), schedule.sigma(s) ** 2, schedule.sigma(t) ** 2
    u = var_t - k**2 * var_s
    expected = (k * var_s / var_t, schedule.alpha(s) * u / var_t, u * var_s / var_t)
    chex.assert_trees_all_close(transition(schedule, t=t, s=s, churn=1.0), expected, rtol=1e-10, atol=1e-12)
    # the ground truth of the mixtures derives the same kernel on its own
    chex.assert_trees_all_close(
        transition(schedule, t=t, s=s, churn=1.0), mixtures.bridge(schedule, t=t, s=s), rtol=1e-10, atol=1e-12
    )


def test_ker_4_churn_0_is_euler(x64):
    """KER-4: x_s = x_t - (t - s) v with v = (x_t - x0)/t, and no noise."""
    a, b, v = transition(RF, t=jnp.asarray(0.9), s=jnp.asarray(0.4), churn=0.0)
    chex.assert_trees_all_close((a, b, v), jax.tree.map(jnp.asarray, (1 - 0.5 / 0.9, 0.5 / 0.9, 0.0)), atol=1e-15)


@pytest.mark.parametrize(
    "s, t, churn, expected",
    [
        (0.5, 0.6, 0.0, (0.83333333, 0.16666667, 0.0)),
        (0.5, 0.6, 1.0, (0.55555556, 0.27777778, 0.13888889)),
        (0.5, 0.6, 0.5, (0.76388889, 0.19444444, 0.03993056)),
        (0.3, 0.5, 0.0, (0.6, 0.4, 0.0)),
        (0.3, 0.5, 1.0, (0.25714286, 0.57142857, 0.07346939)),
        (0.4, 0.9, 1.0, (0.03292181, 0.59670782, 0.15912209)),
        (0.4, 0.9, 0.3, (0.40740741, 0.55925926, 0.02555556)),
    ],
)
def test_ker_5_reference_coefficients(s, t, churn, expected, x64):
    got = transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=churn)
    chex.assert_trees_all_close(got, jax.tree.map(jnp.asarray, expected), atol=1e-7)


@every_schedule
@pytest.mark.parametrize("churn", CHURNS)
def test_transition_is_finite_at_the_ends(name, churn):
    """At s = 0 the clean prediction is taken as it is; at t = 1 nothing overflows, and gradients neither."""
    schedule = SCHEDULES[name]()
    s, t = jnp.asarray([0.0, 0.5, 0.0]), jnp.asarray([0.5, 1.0, 1.0])
    a, b, v = transition(schedule, t=t, s=s, churn=churn)
    chex.assert_tree_all_finite((a, b, v))
    chex.assert_trees_all_close((a[0], b[0], v[0]), jax.tree.map(jnp.float32, (0.0, 1.0, 0.0)), atol=1e-6)
    gradient = jax.grad(lambda e: sum(jnp.sum(c) for c in transition(schedule, t=t, s=s, churn=e)))(churn)
    chex.assert_tree_all_finite(gradient)


# ---- steps


def _point(seed=0):
    rng = np.random.default_rng(seed)
    x, x0 = (jnp.asarray(rng.normal(size=(3, 4))) for _ in range(2))
    keys = jax.random.split(jax.random.key(seed), 3)
    return keys, x, x0


@every_schedule
@pytest.mark.parametrize("churn", CHURNS)
def test_steps_follow_the_transition(name, churn, x64):
    """churned_ddim = A x_t + B x_0 + sqrt(V) z with its own noise; ddim is its churn-0 case."""
    schedule = SCHEDULES[name]()
    keys, x, x0 = _point()
    s, t = jnp.asarray([0.1, 0.4, 0.5]), jnp.asarray([0.3, 0.9, 0.55])
    eps = (x - schedule.alpha(t)[:, None] * x0) / schedule.sigma(t)[:, None]
    guided = Guided(x0, eps, {})
    z = jax.vmap(lambda key: jax.random.normal(key, (4,), x.dtype))(keys.copy())
    a, b, v = (c[:, None] for c in transition(schedule, t=t, s=s, churn=churn))
    got = churned_ddim(churn)(jax.random.clone(keys), x, guided, t=t, s=s, schedule=schedule)
    chex.assert_trees_all_close(got, a * x + b * x0 + jnp.sqrt(v) * z, rtol=1e-9, atol=1e-11)
    if churn == 0.0:
        chex.assert_trees_all_close(ddim()(None, x, guided, t=t, s=s, schedule=schedule), got, rtol=1e-12, atol=1e-12)


def test_ddim_keeps_the_noise_that_the_guide_names():
    """x_s = alpha_s x0 + sigma_s eps with the two members of Guided taken apart (as CFG++ needs)."""
    _, x, x0 = _point()
    guided = Guided(x0, jnp.ones_like(x), {})
    got = ddim()(None, x, guided, t=jnp.full(3, 0.7), s=jnp.full(3, 0.25), schedule=RF)
    chex.assert_trees_all_close(got, 0.75 * x0 + 0.25, rtol=1e-6)

"""What each one-step objective wants: optimal constant weights on HG against closed forms (L2G-1 to L2G-9).

HG: mu ~ N(0, I_16), x0 | mu ~ N(mu, .49 I), exact branches. A constant omega has a one-dimensional loss, so it is
minimised by Newton's method on each of several independent batches; the spread over the batches gives the standard
error of the optimum.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import learning, schedules, weights
from guidance.learning.mismatch import grouped_mismatch
from guidance.sampling import transition
from guidance.truth import mixtures
from tests import oracles

pytestmark = pytest.mark.compute

RF = schedules.rectified_flow()
BATCHES, POINTS = 10, 1000  # 10 000 data points of 4 particles each


def _newton(loss, steps):
    """Minimises a smooth convex loss(omega) from 0."""

    def step(_, omega):
        return omega - jax.grad(loss)(omega) / jax.grad(jax.grad(loss))(omega)

    return jax.lax.fori_loop(0, steps, step, jnp.zeros(()))


@functools.partial(jax.jit, static_argnames=("objective", "particles"))
def _optima(objective, r, config, particles=4):
    """The optimal constant omega of each batch; `config` holds the traced settings, so that few programs serve all."""
    config = config._replace(particles=particles)

    def one(key):
        data_key, loss_key = jax.random.split(key)
        x0, cond = oracles.hg_sample(data_key, POINTS)

        def loss(omega):
            return objective(
                jax.random.clone(loss_key), oracles.hg_model(r), weights.constant(omega), x0, cond, config
            )

        return _newton(loss, 4)

    return jax.lax.map(one, jax.random.split(jax.random.key(0), BATCHES))


def _optimum(s, t, churn, beta, lam=1.0, r=0.0, objective=learning.self_consistency):
    """(omega*, its standard error) by Monte Carlo."""
    values = np.asarray(
        _optima(objective, r, oracles.traced(oracles.steps_at(s, t, churn, beta=beta, lam=lam))), np.float64
    )
    return values.mean(), oracles.standard_error(values)


def _near(got, expected, table=0.0):
    """Within 4.5 standard errors of ours and the tolerance of a table (itself about 4 of its own)."""
    value, error = got
    return abs(value - expected) < np.hypot(4.5 * error, table)


# ---- what the objectives want (L2G-1 to L2G-9)

L2_CASES = [
    (0.5, 0.6, 0.0, 2.0),
    (0.5, 0.6, 1.0, 0.8),
    (0.5, 0.51, 0.0, 24.5),
    (0.5, 0.51, 1.0, 12.005),
    (0.3, 0.5, 0.0, 0.75),
    (0.3, 0.5, 1.0, 0.225),
]


@pytest.mark.parametrize("s, t, churn, expected", L2_CASES)
def test_l2g_1_formula_of_the_l2_optimum(s, t, churn, expected, x64):
    """L2G-1: omega* = A alpha_t/B = (alpha_s - B)/B, from the coefficients of our own transition."""
    a, b, _ = (float(c) for c in transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=churn))
    assert a * (1 - t) / b == pytest.approx(expected, abs=1e-9)
    assert (1 - s - b) / b == pytest.approx(expected, abs=1e-9)
    assert oracles.omega_l2(RF, s, t, churn) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("s, t, churn, expected", L2_CASES)
def test_l2g_2_the_l2_loss_is_biased_as_derived(s, t, churn, expected):
    """L2G-2: its minimiser on HG is A alpha_t/B, positive although the model is exact."""
    assert _near(_optimum(s, t, churn, beta=2.0, lam=0.0), expected)


@pytest.mark.parametrize("t", [0.6, 0.5])
def test_l2g_3_guided_score_matching_wants_no_guidance(t):
    """L2G-3: the optimum of an exact conditional branch is 0."""
    value = _optimum(0.3, t, 1.0, beta=2.0, objective=learning.score_matching)
    assert _near(value, 0.0) and value[1] < 0.01


@pytest.mark.parametrize("s, t, expected", [(0.5, 0.6, -0.229144), (0.3, 0.5, -0.450205)])
def test_l2g_4_beta_2_matches_means(s, t, expected):
    """L2G-4: the closed form by an independent derivation and by Monte Carlo, the same for every churn."""
    with jax.enable_x64(True):
        assert oracles.omega_energy_beta2(RF, t) == pytest.approx(expected, abs=1e-6)
    for churn in (0.0, 1.0):
        assert _near(_optimum(s, t, churn, beta=2.0), expected)


@pytest.mark.parametrize(
    "s, t, beta, without_churn, with_churn",
    [
        (0.5, 0.6, 1.75, -0.206, -0.216),
        (0.5, 0.6, 1.0, -0.128, -0.182),
        (0.5, 0.6, 0.5, -0.085, -0.161),
        (0.3, 0.5, 1.75, -0.400, -0.432),
        (0.3, 0.5, 1.0, -0.272, -0.381),
    ],
)
def test_l2g_5_energy_loss_wants_almost_no_guidance(s, t, beta, without_churn, with_churn):
    """L2G-5: slightly negative, so that the learned non-negative weight of an exact model is 0."""
    assert _near(_optimum(s, t, 0.0, beta=beta), without_churn, table=0.03)
    assert _near(_optimum(s, t, 1.0, beta=beta), with_churn, table=0.03)


@pytest.mark.parametrize(
    "s, t, churn, expected",
    [(0.5, 0.6, 0.0, 1.007), (0.5, 0.6, 1.0, 0.349), (0.3, 0.5, 0.0, 0.250), (0.3, 0.5, 1.0, -0.059)],
)
def test_l2g_6_weak_repulsion_overguides(s, t, churn, expected):
    """L2G-6: lambda = 1/2."""
    assert _near(_optimum(s, t, churn, beta=1.75, lam=0.5), expected, table=0.03)


@functools.partial(jax.jit, static_argnames=("particles", "beta", "lam"))
def _optima_with_shared_noise(s, t, churn, particles, beta, lam):
    """A local variant with the fault of L2G-7: x_s and x_t are noised by the same eps."""
    a, b, v = transition(RF, t=t, s=s, churn=churn)

    def one(key):
        data_key, eps_key, churn_key = jax.random.split(key, 3)
        x0, cond = oracles.hg_sample(data_key, POINTS)
        x0 = jnp.repeat(x0, particles, axis=0)
        cond = jax.tree.map(lambda c: jnp.repeat(c, particles, axis=0), cond)
        eps, z = (jax.random.normal(k, x0.shape) for k in (eps_key, churn_key))
        x_t, x_s = (1 - t) * x0 + t * eps, (1 - s) * x0 + s * eps
        tt = jnp.full(x0.shape[0], t)
        positive = oracles.hg_denoise(RF)(x_t, tt, cond)
        reference = oracles.hg_denoise(RF)(x_t, tt, {"mu": cond["mu"], "known": jnp.zeros_like(cond["known"])})
        grouped = lambda y: y.reshape(POINTS, particles, -1)  # noqa: E731

        def loss(omega):
            y = a * x_t + b * (positive + omega * (positive - reference)) + jnp.sqrt(v) * z
            return grouped_mismatch(grouped(y), grouped(x_s), beta, lam)

        return _newton(loss, 4)

    return jax.lax.map(one, jax.random.split(jax.random.key(1), BATCHES))


@pytest.mark.parametrize(
    "churn, beta, lam, expected",
    [(0.0, 2.0, 0.0, 0.0), (1.0, 2.0, 0.0, -0.398), (0.0, 1.75, 1.0, -0.700), (1.0, 1.75, 1.0, -0.582)],
)
def test_l2g_7_shared_noise_has_another_optimum(churn, beta, lam, expected):
    """L2G-7: a negative test. With l2 and one particle (each pair shares its noise) the loss wants no guidance."""
    particles = 1 if lam == 0.0 else 4
    values = np.asarray(_optima_with_shared_noise(0.5, 0.6, churn, particles, beta, lam), np.float64)
    assert _near((values.mean(), oracles.standard_error(values)), expected, table=0.02)


@pytest.mark.parametrize("r", [0.3, 0.5])
@pytest.mark.parametrize(
    "objective, churn, beta, lam",
    [
        (learning.score_matching, 1.0, 2.0, 0.0),
        (learning.self_consistency, 1.0, 2.0, 0.0),
        (learning.self_consistency, 0.0, 1.75, 1.0),
    ],
    ids=["score_matching", "l2", "energy"],
)
def test_l2g_8_attenuation_moves_every_optimum_the_same_way(r, objective, churn, beta, lam):
    """L2G-8: omega_att = (1 + omega_exact)/(1 - r) - 1, for every objective and every batch, not only in the mean."""
    config = oracles.traced(oracles.steps_at(0.5, 0.6, churn, beta=beta, lam=lam))
    exact, attenuated = (_optima(objective, q, config) for q in (0.0, r))
    # Newton in float32 ends within 1e-3 of the optimum of a batch, whose spread over batches is .02 to .1
    chex.assert_trees_all_close(attenuated, oracles.omega_attenuated(exact, r), atol=3e-3)


@pytest.mark.parametrize(
    "omega, at_r_3, at_r_5",
    [(0.0, 0.428571, 1.0), (0.8, 1.571429, 2.6), (0.225, 0.75, 1.45)]
    + [(-0.229144, 0.101223, 0.541713), (-0.450205, -0.214578, 0.099590)],
)
def test_l2g_8_values(omega, at_r_3, at_r_5):
    """The table's values of score matching, l2 and beta = 2 follow from their exact optima."""
    assert oracles.omega_attenuated(omega, 0.3) == pytest.approx(at_r_3, abs=2e-6)
    assert oracles.omega_attenuated(omega, 0.5) == pytest.approx(at_r_5, abs=2e-6)


@pytest.mark.parametrize(
    "s, t, at_r_3, at_r_5",
    [
        (0.5, 0.6, (0.125, 0.174, 0.204), (0.570, 0.635, 0.674)),
        (0.3, 0.5, (-0.184, -0.112, -0.073), (0.127, 0.230, 0.286)),
    ],
)
def test_l2g_9_energy_losses_repair_part_of_an_attenuated_branch(s, t, at_r_3, at_r_5):
    """L2G-9: churn 1, beta 1.75, 1, 0.5."""
    for beta, first, second in zip((1.75, 1.0, 0.5), at_r_3, at_r_5, strict=True):
        assert _near(_optimum(s, t, 1.0, r=0.3, beta=beta), first, table=0.03)
        assert _near(_optimum(s, t, 1.0, r=0.5, beta=beta), second, table=0.03)


def _losses_on_the_ring(objective, omegas, batches=8):
    """loss(omega) - loss(0) on the exact ring of four classes with two modes each: means [omegas] and their errors."""
    angles = 2 * np.pi * np.arange(8) / 8
    points = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    ring = mixtures.from_classes([points[c::4] for c in range(4)], 0.25)
    model = learning.Model(mixtures.denoise(ring, RF), RF, ring.null)
    settings = oracles.traced(oracles.steps_at(0.77, 0.8, 1.0, beta=1.75, lam=1.0))._replace(particles=4)

    @jax.jit
    def one(key):
        data_key, loss_key = jax.random.split(key)
        if objective is learning.per_condition_consistency:
            cond = jnp.arange(4)
            x0 = mixtures.sample(data_key, ring, jnp.repeat(cond, 2000)).reshape(4, 2000, 2)
        else:
            x0, cond = mixtures.sample_joint(data_key, ring, 4000)
        loss = lambda omega: objective(  # noqa: E731
            jax.random.clone(loss_key), model, weights.constant(omega), x0, cond, settings
        )
        return jnp.stack([loss(omega) for omega in omegas]) - loss(0.0)

    values = np.asarray([one(key) for key in jax.random.split(jax.random.key(0), batches)])
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(batches)


def test_self_consistency_overguides_exact_denoisers_where_a_class_has_several_modes():
    """It compares a sample's step with that sample's own noising, and guidance brings the step nearer to the sample.

    On HG, where a class is one Gaussian, the repulsion outweighs this (L2G-5). On the ring it does not, even for a
    small step between laws that omega = 0 reproduces; the per-condition form compares the laws, and wants 0 there.
    """
    gain, error = _losses_on_the_ring(learning.self_consistency, (1.0,))
    assert gain[0] + 5 * error[0] < 0
    gain, error = _losses_on_the_ring(learning.per_condition_consistency, (1.0,))
    assert gain[0] - 4 * error[0] > 0

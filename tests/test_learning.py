"""Learning: what each objective wants, against closed forms; gradients; the step sampler; costs.

The optimal weights are checked on HG (mu ~ N(0, I_16), x0 | mu ~ N(mu, .49 I), exact branches). A constant omega has a
one-dimensional loss, so it is minimised by Newton's method on each of several independent batches; the spread over the
batches gives the standard error of the optimum.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial
from scipy import stats

from guidance import learning, rules, schedules, weights
from guidance.learning import Model, OneStep
from guidance.mismatch import grouped_mismatch
from guidance.sampling import transition
from tests import oracles

RF = schedules.rectified_flow()
BATCHES, POINTS = 10, 1000  # 10 000 data points of 4 particles each


def _at(s, t, churn=1.0, **knobs) -> OneStep:
    """Settings whose steps are all s <- t: the triangle of allowed steps shrunk to a point."""
    return OneStep(s_min=s, delta=t - s, zeta=1 - t, churn=churn, **knobs)


def _attenuated(r, x, t, cond):
    """(1 - r) D_c + r D_u: an under-trained conditional branch with a known repair."""
    exact = oracles.hg_denoise(RF)
    unconditional = {"mu": cond["mu"], "known": jnp.zeros_like(cond["known"])}
    return (1 - r) * exact(x, t, cond) + r * exact(x, t, unconditional)


def _model(r=0.0):
    return Model(Partial(_attenuated, r), RF, oracles.HG_NULL)


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
            return objective(jax.random.clone(loss_key), _model(r), weights.constant(omega), x0, cond, config)

        return _newton(loss, 4)

    return jax.lax.map(one, jax.random.split(jax.random.key(0), BATCHES))


def _traced(config):
    return jax.tree.map(jnp.float32, config._replace(particles=None))


def _optimum(s, t, churn, beta, lam=1.0, r=0.0, objective=learning.self_consistency):
    """(omega*, its standard error) by Monte Carlo."""
    values = np.asarray(_optima(objective, r, _traced(_at(s, t, churn, beta=beta, lam=lam))), np.float64)
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
    a, b, _ = (float(c) for c in transition(RF, jnp.asarray(s), jnp.asarray(t), churn))
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
    a, b, v = transition(RF, s, t, churn)

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
    config = _traced(_at(0.5, 0.6, churn, beta=beta, lam=lam))
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


# ---- gradients


def _small(n=6):
    x0, cond = oracles.hg_sample(jax.random.key(5), n)
    return x0, cond


def test_l2g_10_the_guided_step_is_affine_in_omega(x64):
    """L2G-10: y(omega) = base + omega B (D_c - D_u), at any step and churn; so is the clean prediction."""
    x0, cond = _small()
    particles = jnp.repeat(x0[:, None], 3, axis=1)
    s, t = jnp.asarray([0.1, 0.4, 0.5, 0.01, 0.5, 0.2]), jnp.asarray([0.3, 0.9, 0.55, 0.99, 0.6, 0.7])

    @jax.jit
    def at(omega, churn):
        weight = weights.constant(omega)
        return learning.guided_particles(jax.random.key(0), _model(), weight, particles, cond, s, t, churn)

    for churn in (0.0, 0.6, 1.0):
        zero, one, other = (at(omega, churn) for omega in (0.0, 1.0, 2.7))
        line = lambda a, b: a + 2.7 * (b - a)  # noqa: E731
        chex.assert_trees_all_close(other, jax.tree.map(line, zero, one), atol=1e-12)
        slope = transition(RF, s, t, churn)[1][:, None, None] * (one.x0 - zero.x0)
        chex.assert_trees_all_close(one.y - zero.y, slope, atol=1e-12)


def test_gradient_is_the_analytic_affine_one(x64):
    """d/d omega = mean of the pair forces times G = y(1) - y(0), computed here in numpy, for one omega per sample."""
    x0, cond = _small()
    s, t, beta, lam, m = jnp.full(6, 0.3), jnp.full(6, 0.5), 1.75, 1.0, 3
    copies = jnp.repeat(x0[:, None], m, axis=1)
    x_s = copies + 0.3 * jax.random.normal(jax.random.key(9), copies.shape)
    omegas = jnp.linspace(0, 1, 6)

    @jax.jit
    def particles(omegas):
        weight = lambda s, t, cond: omegas  # noqa: E731
        return learning.guided_particles(jax.random.key(0), _model(), weight, copies, cond, s, t, 0.5).y

    gradient = jax.jit(jax.grad(lambda omegas: grouped_mismatch(particles(omegas), x_s, beta, lam)))(omegas)
    y, x = np.asarray(particles(omegas)), np.asarray(x_s)
    push = np.asarray(particles(jnp.ones(6)) - particles(jnp.zeros(6)))
    force = lambda d: beta * np.linalg.norm(d) ** (beta - 2) * d  # noqa: E731
    expected = []
    for i in range(6):
        cross = sum(force(y[i, j] - x[i, k]) @ push[i, j] for j in range(m) for k in range(m)) / m**2
        pairs = [(j, k) for j in range(m) for k in range(m) if j != k]
        repulsion = sum(force(y[i, j] - y[i, k]) @ (push[i, j] - push[i, k]) for j, k in pairs) / (m * (m - 1))
        expected.append((cross - lam / 2 * repulsion) / 6)
    chex.assert_trees_all_close(gradient, np.asarray(expected), rtol=1e-8, atol=1e-12)


def test_the_l2_loss_is_a_parabola(x64):
    """Its gradient at any omega follows from three values of the loss."""
    x0, cond = _small()

    @jax.jit
    def loss(omega):
        return learning.l2(jax.random.key(0), _model(), weights.constant(omega), x0, cond, _at(0.3, 0.5, 0.4))

    low, zero, high = (float(loss(omega)) for omega in (-1.0, 0.0, 1.0))
    slope, curvature = (high - low) / 2, (high + low) / 2 - zero
    assert float(jax.jit(jax.grad(loss))(2.3)) == pytest.approx(slope + 2 * 2.3 * curvature, rel=1e-9)
    assert float(loss(2.3)) == pytest.approx(zero + 2.3 * slope + 2.3**2 * curvature, rel=1e-9)


def _groups_of(x0, cond, groups):
    """n samples as `groups` conditions of n/groups samples (the first condition of each is kept)."""
    return x0.reshape(groups, -1, *x0.shape[1:]), jax.tree.map(lambda c: c[:: x0.shape[0] // groups], cond)


def _objective(name):
    if name == "per_condition_consistency":
        return lambda key, model, weight, x0, cond, config: learning.per_condition_consistency(
            key, model, weight, *_groups_of(x0, cond, 2), config
        )
    return getattr(learning, name)


OBJECTIVES = ["self_consistency", "l2", "score_matching", "per_condition_consistency", "marginal_consistency"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_gradient_reaches_the_denoiser(name):
    x0, cond = _small(8)

    def loss(r, omega):
        return _objective(name)(jax.random.key(0), _model(r), weights.constant(omega), x0, cond, OneStep())

    to_denoiser, to_weight = jax.jit(jax.grad(loss, (0, 1)))(0.2, 0.5)
    assert float(to_denoiser) == 0.0
    assert np.isfinite(float(to_weight)) and float(to_weight) != 0.0


def _reward(x0, cond):
    return -jnp.sum((x0 - 3.0) ** 2, axis=-1)


def test_the_reward_enters_with_a_minus_sign():
    """loss(gamma) = loss(0) - gamma mean R(D_omega, c), with the same guided particles."""
    x0, cond = _small()
    config = OneStep()

    @functools.partial(jax.jit, static_argnames="reward")
    def run(gamma=0.0, reward=None):
        weight = weights.constant(0.7)
        return learning.self_consistency(jax.random.key(0), _model(), weight, x0, cond, config, gamma, reward)

    constant = lambda x0, cond: jnp.full(x0.shape[0], 5.0)  # noqa: E731
    assert float(run(gamma=0.3, reward=constant)) == pytest.approx(float(run()) - 1.5, rel=1e-5)
    by_condition = lambda x0, cond: cond["mu"][:, 0]  # noqa: E731
    expected = float(run()) - 2 * float(jnp.mean(cond["mu"][:, 0]))
    assert float(run(gamma=2.0, reward=by_condition)) == pytest.approx(expected, rel=1e-5)


def test_a_step_on_the_reward_term_raises_the_mean_reward():
    x0, cond = _small(64)

    @jax.jit
    def loss(omega, gamma):
        return learning.self_consistency(
            jax.random.key(0), _model(), weights.constant(omega), x0, cond, OneStep(), gamma, _reward
        )

    mean_reward = lambda omega: loss(omega, 0.0) - loss(omega, 1.0)  # noqa: E731
    reward_term = lambda omega: loss(omega, 1.0) - loss(omega, 0.0)  # noqa: E731
    slope = jax.jit(jax.grad(reward_term))
    for omega in (0.0, 1.0):
        step = -0.1 * jnp.sign(slope(omega))
        assert float(mean_reward(omega + step)) > float(mean_reward(omega))


# ---- the laws that the group objectives compare


def _point_masses(x, t, cond):
    """D_c = c for data that is a point at its condition (labels 0, 1, 2 at -1, 0.5, 2; null 3: never right)."""
    return jnp.asarray([-1.0, 0.5, 2.0, 0.0])[cond][:, None] * jnp.ones_like(x)


POINTS_AT = jnp.asarray([-1.0, 0.5, 2.0])
POINT_MODEL = Model(_point_masses, RF, 3)


def _folded(mean, sd):
    """E|Z| for Z ~ N(mean, sd^2)."""
    return sd * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * sd**2)) + mean * (1 - 2 * stats.norm.cdf(-mean / sd))


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("omega", [0.0, 0.8])
def test_per_condition_consistency_has_its_closed_form_mean(churn, omega):
    """Points: y ~ N(alpha_s c + omega B c, s^2), x_s ~ N(alpha_s c, s^2). At omega = 0 the laws agree exactly."""
    s, t = 0.4, 0.6
    config = _at(s, t, churn, beta=1.0)
    cond = jnp.arange(3)
    real = jnp.broadcast_to(POINTS_AT[:, None, None], (3, 8, 1))
    loss = lambda key: learning.per_condition_consistency(  # noqa: E731
        key, POINT_MODEL, weights.constant(omega), real, cond, config
    )
    values = jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(0), 4000))
    b = float(transition(RF, jnp.asarray(s), jnp.asarray(t), churn)[1])
    shifts = omega * b * np.asarray(POINTS_AT)
    repulsion = _folded(0.0, s * 2**0.5)
    expected = np.mean([_folded(shift, s * 2**0.5) for shift in shifts]) - 0.5 * repulsion
    assert abs(np.asarray(values, np.float64).mean() - expected) < 5 * oracles.standard_error(values)
    if omega == 0.0:  # half the energy distance of equal laws is 0: the loss is minus its omega-free remainder
        assert expected == pytest.approx(0.5 * repulsion)


@pytest.mark.parametrize("omega", [0.0, 0.8])
def test_marginal_consistency_has_its_closed_form_mean(omega):
    """The same data pooled: mixtures of three Gaussians on both sides, all labels equally often."""
    s, t, n = 0.4, 0.6, 12
    config = _at(s, t, 1.0, beta=1.0)

    def loss(key):
        label_key, key = jax.random.split(key)
        labels = jax.random.randint(label_key, (n,), 0, 3)
        x0 = POINTS_AT[labels][:, None]
        return learning.marginal_consistency(key, POINT_MODEL, weights.constant(omega), x0, labels, config)

    values = jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(1), 4000))
    b = float(transition(RF, jnp.asarray(s), jnp.asarray(t), 1.0)[1])
    c = np.asarray(POINTS_AT, np.float64)
    x, y = (1 - s) * c, (1 - s) * c + omega * b * c
    mean_distance = lambda a, b: np.mean([_folded(p - q, s * 2**0.5) for p in a for q in b])  # noqa: E731
    expected = mean_distance(y, x) - 0.5 * mean_distance(y, y)
    assert abs(np.asarray(values, np.float64).mean() - expected) < 5 * oracles.standard_error(values)


# ---- the step sampler, costs, the update


@settings(max_examples=20)
@given(s_min=st.floats(0.0, 0.2), zeta=st.floats(0.0, 0.2), delta=st.floats(0.01, 0.4), seed=st.integers(0, 2**31 - 1))
def test_l2g_14_steps_obey_their_bounds(s_min, zeta, delta, seed):
    """L2G-14: S_min <= s, t - s >= delta, t <= 1 - zeta; up to the rounding of float32."""
    config = OneStep(s_min=s_min, zeta=zeta, delta=delta)
    s, t = (np.asarray(a, np.float64) for a in learning.draw_steps(jax.random.key(seed), (500,), config))
    rounding = 3e-7
    assert s.min() >= s_min - rounding
    assert (t - s).min() >= delta - rounding
    assert t.max() <= 1 - zeta + rounding


def test_steps_are_uniform_as_the_algorithm_draws_them():
    """s ~ U[S_min, 1 - zeta - delta], then t - s ~ U[delta, 1 - zeta - s]; s and the gap use different randomness."""
    config = OneStep(s_min=0.05, zeta=0.02, delta=0.1)
    s, t = (np.asarray(a, np.float64) for a in learning.draw_steps(jax.random.key(0), (5000,), config))
    u = (s - 0.05) / (0.98 - 0.1 - 0.05)
    v = (t - s - 0.1) / (0.98 - s - 0.1)
    for draws in (u, v):
        assert stats.kstest(draws, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(u, v)[0, 1]) < 5 / 5000**0.5


def test_l2g_13_an_update_costs_2_n_m_evaluations():
    """L2G-13: n = 256 and m = 4 need 2048 denoiser forwards (2.048e8 for 100k iterations), and no backward pass."""
    rows = []

    def denoise(x, t, cond):
        rows.append(x.shape[0])
        return 0.9 * x

    model = Model(denoise, RF, 3)
    x0, cond = jnp.ones((256, 2)), jnp.zeros(256, jnp.int32)
    loss = lambda omega: learning.self_consistency(  # noqa: E731
        jax.random.key(0), model, weights.constant(omega), x0, cond, OneStep(particles=4)
    )
    jax.eval_shape(jax.value_and_grad(loss), 0.5)
    assert sum(rows) == 2 * 256 * 4 == 2048
    assert sum(rows) * 100_000 == 204_800_000


def test_l2_is_a_case_of_self_consistency():
    x0, cond = _small()
    arguments = (_model(), weights.constant(0.4), x0, cond)
    settings = OneStep(beta=2.0, lam=0.0)
    expected = jax.jit(lambda key: learning.self_consistency(key, *arguments, settings))(jax.random.key(0))
    got = jax.jit(lambda key: learning.l2(key, *arguments, OneStep()))(jax.random.key(0))
    chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_any_rule_may_be_learned():
    """The unguided rule ignores omega, so its loss has no gradient and the value of omega = 0."""
    x0, cond = _small()

    def loss(omega, rule):
        model = _model()._replace(rule=rule)
        return learning.self_consistency(jax.random.key(0), model, weights.constant(omega), x0, cond, OneStep())

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(1.0, rules.unguided)
    assert float(gradient) == 0.0
    chex.assert_trees_all_close(value, jax.jit(loss, static_argnums=1)(0.0, rules.cfg), rtol=1e-5)


def test_update_is_one_optimiser_step():
    """Gradient descent on a parabola, by hand; the metrics are those before the step."""
    optimizer = optax.sgd(0.25)
    params = {"a": jnp.asarray([3.0, 4.0])}
    loss = lambda params, key: jnp.sum(params["a"] ** 2) / 2  # noqa: E731
    params, _, metrics = learning.update(optimizer, loss, params, optimizer.init(params), jax.random.key(0))
    chex.assert_trees_all_close(params["a"], jnp.asarray([2.25, 3.0]))
    assert float(metrics["loss"]) == 12.5 and float(metrics["gradient_norm"]) == 5.0


def test_updates_find_the_l2_optimum():
    """Learning a constant by Adam with fresh noise ends at A alpha_t/B = 0.8 (s = .5, t = .6, churn 1)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))

    def loss(params, key):
        data_key, key = jax.random.split(key)
        x0, cond = oracles.hg_sample(data_key, 128)
        return learning.l2(key, _model(), weights.constant(params), x0, cond, _at(0.5, 0.6))

    def body(carry, key):
        params, state, _ = learning.update(optimizer, loss, *carry, key)
        return (params, state), None

    start = (jnp.asarray(0.0), optimizer.init(jnp.asarray(0.0)))
    keys = jax.random.split(jax.random.key(0), 300)
    (omega, _), _ = jax.jit(lambda start: jax.lax.scan(body, start, keys))(start)
    assert float(omega) == pytest.approx(0.8, abs=0.1)

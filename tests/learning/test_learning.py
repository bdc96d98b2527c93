"""Learning: gradients, the reward, the laws that the group objectives compare, the step sampler, costs."""

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
from guidance.learning.mismatch import grouped_mismatch
from guidance.sampling import transition
from tests import oracles

RF = schedules.rectified_flow()


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
        return learning.guided_particles(
            jax.random.key(0), oracles.hg_model(), weight, particles, cond, t=t, s=s, churn=churn
        )

    for churn in (0.0, 0.6, 1.0):
        zero, one, other = (at(omega, churn) for omega in (0.0, 1.0, 2.7))
        line = lambda a, b: a + 2.7 * (b - a)  # noqa: E731
        chex.assert_trees_all_close(other, jax.tree.map(line, zero, one), atol=1e-12)
        slope = transition(RF, t=t, s=s, churn=churn)[1][:, None, None] * (one.x0 - zero.x0)
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
        weight = lambda *, t, s, cond: omegas  # noqa: E731
        return learning.guided_particles(
            jax.random.key(0), oracles.hg_model(), weight, copies, cond, t=t, s=s, churn=0.5
        ).y

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
        return learning.l2(
            jax.random.key(0), oracles.hg_model(), weights.constant(omega), x0, cond, oracles.steps_at(0.3, 0.5, 0.4)
        )

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
        return _objective(name)(jax.random.key(0), oracles.hg_model(r), weights.constant(omega), x0, cond, OneStep())

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
        return learning.self_consistency(
            jax.random.key(0), oracles.hg_model(), weight, x0, cond, config, gamma, reward
        )

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
            jax.random.key(0), oracles.hg_model(), weights.constant(omega), x0, cond, OneStep(), gamma, _reward
        )

    @jax.jit
    def mean_reward(omega):
        """By its own route: the clean guided predictions of other noise at steps spread over the same range."""
        s, t = jnp.full(64, 0.3), jnp.full(64, 0.6)
        particles = jnp.repeat(x0[:, None], 4, axis=1)
        guided = learning.guided_particles(
            jax.random.key(1), oracles.hg_model(), weights.constant(omega), particles, cond, t=t, s=s, churn=1.0
        )
        return jnp.mean(_reward(guided.x0.reshape(256, -1), None))

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


@jax.jit
def _per_condition_losses(omega, config):
    real = jnp.broadcast_to(POINTS_AT[:, None, None], (3, 8, 1))
    config = config._replace(particles=4)
    loss = lambda key: learning.per_condition_consistency(  # noqa: E731
        key, POINT_MODEL, weights.constant(omega), real, jnp.arange(3), config
    )
    return jax.vmap(loss)(jax.random.split(jax.random.key(0), 4000))


@jax.jit
def _marginal_losses(omega, config):
    def loss(key):
        label_key, key = jax.random.split(key)
        labels = jax.random.randint(label_key, (12,), 0, 3)
        x0 = POINTS_AT[labels][:, None]
        return learning.marginal_consistency(key, POINT_MODEL, weights.constant(omega), x0, labels, config)

    return jax.vmap(loss)(jax.random.split(jax.random.key(1), 4000))


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("omega", [0.0, 0.8])
def test_per_condition_consistency_has_its_closed_form_mean(churn, omega):
    """Points: y ~ N(alpha_s c + omega B c, s^2), x_s ~ N(alpha_s c, s^2). At omega = 0 the laws agree exactly."""
    s, t = 0.4, 0.6
    values = _per_condition_losses(omega, oracles.traced(oracles.steps_at(s, t, churn, beta=1.0)))
    b = float(transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=churn)[1])
    shifts = omega * b * np.asarray(POINTS_AT)
    repulsion = _folded(0.0, s * 2**0.5)
    expected = np.mean([_folded(shift, s * 2**0.5) for shift in shifts]) - 0.5 * repulsion
    assert abs(np.asarray(values, np.float64).mean() - expected) < 5 * oracles.standard_error(values)
    if omega == 0.0:  # half the energy distance of equal laws is 0: the loss is minus its omega-free remainder
        assert expected == pytest.approx(0.5 * repulsion)


@pytest.mark.parametrize("omega", [0.0, 0.8])
def test_marginal_consistency_has_its_closed_form_mean(omega):
    """The same data pooled: mixtures of three Gaussians on both sides, all labels equally often."""
    s, t = 0.4, 0.6
    values = _marginal_losses(omega, oracles.traced(oracles.steps_at(s, t, 1.0, beta=1.0)))
    b = float(transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=1.0)[1])
    c = np.asarray(POINTS_AT, np.float64)
    x, y = (1 - s) * c, (1 - s) * c + omega * b * c
    mean_distance = lambda a, b: np.mean([_folded(p - q, s * 2**0.5) for p in a for q in b])  # noqa: E731
    expected = mean_distance(y, x) - 0.5 * mean_distance(y, y)
    assert abs(np.asarray(values, np.float64).mean() - expected) < 5 * oracles.standard_error(values)


def _gaussian(variance, x, t, cond):
    alpha, sigma = (1 - t)[:, None], t[:, None]
    return alpha * variance / (alpha**2 * variance + sigma**2) * x


@pytest.mark.parametrize("name", ["per_condition_consistency", "marginal_consistency"])
def test_group_objectives_compare_independent_samples(name):
    """One class N(0, v): y and x_s come from different true samples, so their distance is that of independent draws.

    y = (A + B k) x_t + sqrt(V) z is Gaussian with a known variance; shared samples would shorten the distance.
    """
    s, t, v, churn, n = 0.1, 0.2, 4.0, 0.5, 4
    model, config = Model(Partial(_gaussian, v), RF, 1), oracles.steps_at(s, t, churn, beta=1.0)

    def loss(key):
        data_key, key = jax.random.split(key)
        x0, weight = v**0.5 * jax.random.normal(data_key, (n, 1)), weights.constant(0.0)
        if name == "marginal_consistency":
            return learning.marginal_consistency(key, model, weight, x0, jnp.zeros(n, int), config)
        return learning.per_condition_consistency(key, model, weight, x0[None], jnp.zeros(1, int), config)

    values = jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(2), 8000))
    a, b, noise = (float(c) for c in transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=churn))
    var_t, var_s = (1 - t) ** 2 * v + t**2, (1 - s) ** 2 * v + s**2
    var_y = (a + b * (1 - t) * v / var_t) ** 2 * var_t + noise
    expected = _folded(0.0, (var_y + var_s) ** 0.5) - 0.5 * _folded(0.0, (2 * var_y) ** 0.5)
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
    arguments = (oracles.hg_model(), weights.constant(0.4), x0, cond)
    settings = OneStep(beta=2.0, lam=0.0)
    expected = jax.jit(lambda key: learning.self_consistency(key, *arguments, settings))(jax.random.key(0))
    got = jax.jit(lambda key: learning.l2(key, *arguments, OneStep()))(jax.random.key(0))
    chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_any_rule_may_be_learned():
    """The unguided rule ignores omega, so its loss has no gradient and the value of omega = 0."""
    x0, cond = _small()

    def loss(omega, rule):
        model = oracles.hg_model()._replace(rule=rule)
        return learning.self_consistency(jax.random.key(0), model, weights.constant(omega), x0, cond, OneStep())

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(1.0, rules.unguided)
    assert float(gradient) == 0.0
    chex.assert_trees_all_close(value, jax.jit(loss, static_argnums=1)(0.0, rules.cfg), rtol=1e-5)


def test_a_weaker_denoiser_stands_for_the_reference():
    """Autoguidance in a one-step objective: away from the null prediction it is CFG, away from itself nothing."""
    x0, cond = _small()
    strong = oracles.hg_model(0.3)

    def null(x, t, cond):
        return strong.denoise(x, t, {"mu": cond["mu"], "known": jnp.zeros_like(cond["known"])})

    @jax.jit
    def loss(weak, omega):
        model = strong._replace(weak=weak)
        return learning.self_consistency(jax.random.key(0), model, weights.constant(omega), x0, cond, OneStep())

    for omega in (0.0, 1.5):
        chex.assert_trees_all_close(loss(Partial(null), omega), loss(None, omega), rtol=1e-5)
        chex.assert_trees_all_close(loss(strong.denoise, omega), loss(None, 0.0), rtol=1e-5)
    assert abs(float(loss(None, 1.5) - loss(None, 0.0))) > 1e-2


def test_update_is_one_optimiser_step():
    """Gradient descent on a parabola, by hand; the metrics are those before the step."""
    optimizer = optax.sgd(0.25)
    params = {"a": jnp.asarray([3.0, 4.0])}
    loss = lambda params, key: jnp.sum(params["a"] ** 2) / 2  # noqa: E731
    params, _, metrics = learning.update(jax.random.key(0), optimizer, loss, params, optimizer.init(params))
    chex.assert_trees_all_close(params["a"], jnp.asarray([2.25, 3.0]))
    assert float(metrics["loss"]) == 12.5 and float(metrics["gradient_norm"]) == 5.0


@pytest.mark.parametrize("parts", [[2.0], [1.0, 2.0, 6.0]])
def test_an_update_in_parts_is_that_of_their_mean(parts):
    """Loss c a^2 / 2 with the mean c of the parts: gradient c a, step a - c a / 4. Adam would not see a factor."""
    optimizer, mean = optax.sgd(0.25), np.mean(parts)
    loss = lambda params, part: part * params["a"] ** 2 / 2  # noqa: E731
    params = {"a": jnp.asarray(2.0)}
    params, _, metrics = learning.update_in_parts(optimizer, loss, params, optimizer.init(params), jnp.asarray(parts))
    assert float(params["a"]) == pytest.approx(2 - mean / 2)
    assert (float(metrics["loss"]), float(metrics["gradient_norm"])) == pytest.approx((2 * mean, 2 * mean))


def test_updates_find_the_l2_optimum():
    """Learning a constant by Adam with fresh noise ends at A alpha_t/B = 0.8 (s = .5, t = .6, churn 1)."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))

    def loss(params, key):
        data_key, key = jax.random.split(key)
        x0, cond = oracles.hg_sample(data_key, 128)
        return learning.l2(key, oracles.hg_model(), weights.constant(params), x0, cond, oracles.steps_at(0.5, 0.6))

    def body(carry, key):
        params, state, _ = learning.update(key, optimizer, loss, *carry)
        return (params, state), None

    start = (jnp.asarray(0.0), optimizer.init(jnp.asarray(0.0)))
    keys = jax.random.split(jax.random.key(0), 300)
    (omega, _), _ = jax.jit(lambda start: jax.lax.scan(body, start, keys))(start)
    assert float(omega) == pytest.approx(0.8, abs=0.1)

"""Tilts, soft values and rewards: against Bayes' rule, quadrature and the published numbers of the two fixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from guidance import schedules
from guidance.truth import mixtures, rewards, tilts
from tests import oracles
from tests.oracles import FORMS, NAMES, example, points

QUADRATICS = {"number": 0.4, "diagonal": [0.5, -0.2], "full": [[0.6, 0.3], [0.3, 0.1]]}


def reward_of(kind: str) -> rewards.LinearQuadratic:
    return rewards.linear_quadratic([0.7, -0.4], QUADRATICS[kind], 0.25)


def test_published_tilt_of_the_two_mode_fixture():
    """TLT-1, TLT-2, TLT-3."""
    with jax.enable_x64(True):
        prior, known = oracles.tilt_prior(), oracles.TILT
        cond = jnp.zeros(1, jnp.int32)
        mean, variance = mixtures.moments(prior, cond)
        np.testing.assert_allclose((mean[0, 0], variance[0, 0, 0]), (-0.6, 3.094), rtol=1e-12)
        tilted, log_z = tilts.tilt(prior, oracles.tilt_reward())
        np.testing.assert_allclose(tilted.means[:, 0], known["means"], atol=1e-6)
        np.testing.assert_allclose(tilted.variances[:, 0], known["variances"], atol=1e-6)
        np.testing.assert_allclose(np.exp(tilted.log_weights), [known["weights"]] * 2, atol=1e-6)
        np.testing.assert_allclose(log_z, known["log_z"], atol=1e-6)
        np.testing.assert_allclose(np.exp(log_z), known["z"], atol=1e-6)
        mean, variance = mixtures.moments(tilted, cond)
        np.testing.assert_allclose((mean[0, 0], variance[0, 0, 0]), (known["mean"], known["variance"]), atol=1e-6)
        for edge, name in ((0.0, "p_above_0"), (-0.25, "p_above_-.25")):
            above = norm.sf(edge, tilted.means[:, 0], jnp.sqrt(tilted.variances[:, 0]))
            np.testing.assert_allclose(jnp.exp(tilted.log_weights[0]) @ above, known[name], atol=1e-6)


def test_published_tilt_of_the_nine_mode_fixture():
    """TLT-5."""
    with jax.enable_x64(True):
        tilted, log_z = tilts.tilt(oracles.nine_prior(), oracles.nine_reward())
        np.testing.assert_allclose(log_z, -1.439687, atol=1e-6)
        side, corner, middle, top = 0.315191, 1.431e-5, 0.369527, 1.678e-5
        expected = [corner, side, corner, top, middle, top, corner, side, corner]
        np.testing.assert_allclose(np.exp(tilted.log_weights[0]), expected, rtol=1e-3, atol=1e-6)
        mean, covariance = mixtures.moments(tilted, jnp.zeros(1, jnp.int32))
        np.testing.assert_allclose(mean, np.zeros((1, 2)), atol=1e-12)
        np.testing.assert_allclose(covariance[0], np.diag([10.265274, 0.188067]), atol=1e-6)


@pytest.mark.parametrize(
    ("form", "kind", "name"),
    [(form, kind, NAMES[(i + j) % 4]) for i, form in enumerate(FORMS) for j, kind in enumerate(QUADRATICS)],
)
def test_tilted_density_and_soft_value_obey_bayes(form, kind, name):
    """p'(x) = p(x) e^{r/T - log Z} pointwise, and V_t = log Z + log p'_t - log p_t at every noise level."""
    with jax.enable_x64(True):
        mixture, reward, schedule, temperature = example(form), reward_of(kind), schedules.by_name(name), 1.6
        tilted, log_z = tilts.tilt(mixture, reward, temperature)
        x, t, cond = points()
        t = t.at[0].set(0.0).at[1].set(1.0)

        def everything(x):
            data, noisy = (
                [mixtures.log_density(m, schedule, x, time, cond) for m in (tilted, mixture)]
                for time in (jnp.zeros_like(t), t)
            )
            scores = [mixtures.score(m, schedule, x, t, cond) for m in (tilted, mixture)]
            value = tilts.soft_value(mixture, schedule, reward, temperature, x, t, cond)
            return value.sum(), (data, noisy, scores, value)

        slope, (data, noisy, scores, value) = jax.jit(jax.grad(everything, has_aux=True))(x)
        np.testing.assert_allclose(data[0] - data[1], reward(x) / temperature - log_z[cond], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(value, log_z[cond] + noisy[0] - noisy[1], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(value[0], reward(x)[0] / temperature, rtol=1e-9)
        np.testing.assert_allclose(slope, scores[0] - scores[1], rtol=1e-7, atol=1e-9)


def test_normaliser_by_quadrature():
    """TLT-4: log Z of a random 2-D Gaussian and a full reward, against a tensor Gauss-Hermite rule."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        root, mean, a, half = rng.normal(size=(2, 2)), rng.normal(size=2), rng.normal(size=2), rng.normal(size=(2, 2))
        mixture = mixtures.from_classes([mean[None]], [(root @ root.T)[None]])
        reward = rewards.linear_quadratic(a, half @ half.T)
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
        weight = np.outer(weights, weights).ravel() / (2 * np.pi)
        z = weight @ np.exp(np.asarray(reward(jnp.asarray(mean + grid @ root.T))))
        np.testing.assert_allclose(tilts.tilt(mixture, reward)[1], np.log(z), rtol=1e-8)


def test_soft_value_by_quadrature():
    with jax.enable_x64(True):
        mixture, reward, schedule = oracles.tilt_prior(), oracles.tilt_reward(), schedules.by_name("cosine")
        x0 = np.linspace(-8, 8, 20_001)
        for time, state in ((0.1, 1.2), (0.5, -0.4), (0.9, 0.7)):
            a, s = (float(f(jnp.array(time))) for f in (schedule.alpha, schedule.sigma))
            prior = 0.6 / 0.3 * np.exp(-0.5 * ((x0 + 2) / 0.3) ** 2) + 0.4 / 0.5 * np.exp(
                -0.5 * ((x0 - 1.5) / 0.5) ** 2
            )
            weight = prior * np.exp(-0.5 * ((state - a * x0) / s) ** 2)
            expected = np.log(weight @ np.exp(1.2 * x0 - 0.15 * x0**2) / weight.sum())
            value = tilts.soft_value(
                mixture, schedule, reward, 1.0, jnp.array([[state]]), jnp.array([time]), jnp.zeros(1, jnp.int32)
            )
            np.testing.assert_allclose(value[0], expected, rtol=1e-8)


def test_null_row_is_the_tilt_of_the_joint_law():
    with jax.enable_x64(True):
        mixture = example("diagonal")
        tilted, log_z = tilts.tilt(mixture, reward_of("full"))
        np.testing.assert_allclose(jnp.exp(tilted.log_prior).sum(), 1.0, rtol=1e-12)
        np.testing.assert_allclose(
            tilted.log_prior,
            mixture.log_prior + log_z[:-1] - jnp.log(jnp.exp(mixture.log_prior) @ jnp.exp(log_z[:-1])),
        )
        average = jnp.exp(tilted.log_prior) @ jnp.exp(tilted.log_weights[:-1])
        np.testing.assert_allclose(jnp.exp(tilted.log_weights[-1]), average, rtol=1e-12)


def test_temperature_divides_the_reward_and_log_z_is_its_generating_function():
    """d log Z / d(1/T) = E'[r] under the tilted law, which the closed form must reproduce through autodiff."""
    with jax.enable_x64(True):
        for form, kind in (("isotropic", "number"), ("diagonal", "diagonal"), ("full", "full")):
            mixture, reward = example(form), reward_of(kind)

            def at(beta, m=mixture, r=reward):
                tilted, log_z = tilts.tilt(m, r, 1 / beta)
                return log_z, mixtures.moments(tilted, jnp.arange(3))

            slope, (mean, covariance) = jax.jit(jax.jacfwd(at, has_aux=True))(0.8)
            b = reward.quadratic
            b = b if b.ndim == 2 else jnp.diag(jnp.broadcast_to(b, (2,)))
            expected = reward(mean) - 0.5 * jnp.einsum("de,nde->n", b, covariance)
            np.testing.assert_allclose(slope, expected, rtol=1e-9)


def test_reward_without_slope_changes_only_log_z():
    mixture = example("isotropic")
    tilted, log_z = tilts.tilt(mixture, rewards.linear_quadratic([0.0, 0.0], 0.0, 0.5), 2.0)
    np.testing.assert_allclose(log_z, np.full(3, 0.25), rtol=1e-5)
    for actual, expected in zip(tilted[:4], mixture[:4], strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("quadratic", [-3.0, [-3.0, -3.0], [[-3.0, 0.0], [0.0, 1.0]]])
def test_a_tilt_that_does_not_exist_is_nan(quadratic):
    """Variance .5: the tilted precision 2 - 3 is negative; two negative factors must not cancel."""
    mixture = mixtures.from_classes([[[0.0, 1.0]]], 0.5)
    assert np.isnan(tilts.tilt(mixture, rewards.linear_quadratic([1.0, 0.0], quadratic))[1]).all()


@pytest.mark.parametrize("kind", QUADRATICS)
def test_far_modes_in_single_precision(kind):
    """Modes 60 sigma out, where m^2/v is 3600: log Z and V keep float32's relative accuracy."""

    def evaluate():
        mixture = mixtures.from_classes([[[-60.0, 0.0], [60.0, 0.0]]], 1.0, [[0.999, 0.001]])
        reward, schedule = reward_of(kind), schedules.by_name("rectified_flow")
        x, t = jnp.array([[-59.0, 0.3], [0.01, 0.0], [61.0, 1.0]]), jnp.full(3, jnp.float32(0.05))
        cond = jnp.zeros(3, jnp.int32)

        def total(x):
            tilted, log_z = tilts.tilt(mixture, reward, 1.0)
            value = tilts.soft_value(mixture, schedule, reward, 1.0, x, t, cond)
            return value.sum(), (value, tilted, log_z)

        slope, (value, tilted, log_z) = jax.jit(jax.grad(total, has_aux=True))(x)
        return [np.asarray(v, np.float64) for v in (log_z, tilted.means, value, slope)]

    single = evaluate()
    with jax.enable_x64(True):
        double = evaluate()
    for actual, expected in zip(single, double, strict=True):
        assert np.isfinite(actual).all()
        # r is of size 60^2 / 2 and the responsibilities' logs of size 60^2: errors of their product with eps.
        np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-3)


def test_class_log_probability_tilts_the_marginal_into_the_class():
    with jax.enable_x64(True):
        mixture, schedule = example("full"), schedules.by_name("rectified_flow")
        reward = rewards.class_log_probability(mixture)
        x, _, _ = points()
        cond, zero = jnp.arange(len(x)) % 2, jnp.zeros(len(x))
        null = mixtures.log_density(mixture, schedule, x, zero, jnp.full(len(x), mixture.null))
        expected = mixtures.log_density(mixture, schedule, x, zero, cond) + mixture.log_prior[cond]
        np.testing.assert_allclose(null + jax.jit(lambda r, *a: r(*a))(reward, x, cond), expected, rtol=1e-10)


def test_linear_quadratic_reward():
    with jax.enable_x64(True):
        x = jnp.array([[1.0, 2.0], [-0.5, 3.0]])
        for quadratic, b in (
            (0.4, 0.4 * np.eye(2)),
            ([0.5, -0.2], np.diag([0.5, -0.2])),
            ([[1, 4], [2, 3]], [[1, 3], [3, 3]]),
        ):
            reward = rewards.linear_quadratic([0.7, -0.4], quadratic, 0.25)
            expected = 0.25 + x @ np.array([0.7, -0.4]) - 0.5 * np.einsum("nd,de,ne->n", x, b, x)
            np.testing.assert_allclose(reward(x, None), expected, rtol=1e-12)
            np.testing.assert_allclose(jax.vmap(lambda row, r=reward: r(row[None])[0])(x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1.0,), "linear"), (([1.0, 2.0], [1.0, 2.0, 3.0]), "quadratic"), (([1.0], 0.0, [1.0]), "constant")],
)
def test_linear_quadratic_names_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        rewards.linear_quadratic(*arguments)

"""Exact identities between conditional and unconditional branches, and mixtures with far modes in single precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules
from guidance.truth import mixtures
from tests import oracles
from tests.oracles import MEANS, NAMES, example, points


def three_classes() -> mixtures.Mixture:
    return mixtures.from_classes([[[1.0, 0.5]], [[-1.0, 1.0]], [[0.3, -1.2]]], 1.3, class_prior=(0.2, 0.5, 0.3))


def test_class_posterior_is_bayes_rule():
    with jax.enable_x64(True):
        mixture, schedule = example("full"), schedules.by_name("cosine")
        x, t, _ = points()
        actual = mixtures.class_log_posterior(mixture, schedule, x, t)
        null = mixtures.log_density(mixture, schedule, x, t, jnp.full(len(x), mixture.null))
        for c in range(2):
            joint = mixture.log_prior[c] + mixtures.log_density(mixture, schedule, x, t, jnp.full(len(x), c))
            np.testing.assert_allclose(actual[:, c], joint - null, rtol=1e-9, atol=1e-12)


def test_identities_of_exact_branches():
    """ID-1: sum_c p(c|x)(s_c - s_u) = 0. ID-2: sum_c p(c|x)(J g + g g^T) = 0 for g = s_c - s_u."""
    with jax.enable_x64(True):
        mixture, schedule = three_classes(), schedules.by_name("rectified_flow")
        x, t, _ = points(5)

        def gap(x, t, c):
            branches = (
                mixtures.score(mixture, schedule, x[None], t[None], jnp.full(1, label)) for label in (c, mixture.null)
            )
            return jnp.subtract(*branches)[0]

        p = jnp.exp(mixtures.class_log_posterior(mixture, schedule, x, t))
        first, second = 0.0, 0.0
        for c in range(3):
            g, jacobian = jax.jit(jax.vmap(lambda *a: (gap(*a), jax.jacfwd(gap)(*a)), (0, 0, None)))(
                x, t, jnp.int32(c)
            )
            assert np.abs(g).max() > 0.1
            first += p[:, c, None] * g
            second += p[:, c, None, None] * (jacobian + g[:, :, None] * g[:, None, :])
        np.testing.assert_allclose(first, np.zeros_like(first), atol=1e-12)
        np.testing.assert_allclose(second, np.zeros_like(second), atol=1e-12)


def test_identities_at_pure_noise():
    """ID-5, rectified flow, t = 1: no score gap; velocity x - E[x0|c], with gap E[x0] - E[x0|c]."""
    with jax.enable_x64(True):
        mixture, schedule = example("full"), schedules.by_name("rectified_flow")
        x, one = points()[0], jnp.ones(9)
        cond, null = jnp.arange(9) % 2, jnp.full(9, 2)
        gap = mixtures.score(mixture, schedule, x, one, cond) - mixtures.score(mixture, schedule, x, one, null)
        np.testing.assert_allclose(gap, np.zeros_like(gap), atol=1e-12)
        velocity = [(x - mixtures.denoise(mixture, schedule)(x, one, c)) / 1 for c in (cond, null)]
        mean = oracles.mode_probabilities() @ np.concatenate(MEANS)
        np.testing.assert_allclose(velocity[0], x - mean[np.asarray(cond)], rtol=1e-12)
        np.testing.assert_allclose(velocity[0] - velocity[1], mean[[2]] - mean[np.asarray(cond)], atol=1e-12)


def test_gaussian_branches():
    """GAUS-1: D_c - D_u = (A_c - A_u)(x - mu_c) + (I - A_u)(mu_c - mu_u), A = Sig (Sig + rho^2 I)^-1."""
    with jax.enable_x64(True):
        rng, rho2 = np.random.default_rng(2), 1.7
        roots, mu = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3))
        sig = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(3)
        pair = mixtures.from_classes(mu[:, None], sig[:, None], class_prior=(0, 1))
        schedule = schedules.by_name("edm")
        x, t = jnp.asarray(rng.normal(size=(4, 3))), jnp.full(4, schedule.time(-jnp.log(rho2)))
        denoise = mixtures.denoise(pair, schedule)
        gap = denoise(x, t, jnp.zeros(4, jnp.int32)) - denoise(x, t, jnp.full(4, pair.null))
        a_c, a_u = (v @ np.linalg.inv(v + rho2 * np.eye(3)) for v in sig)
        expected = (x - mu[:1]) @ (a_c - a_u).T + (mu[:1] - mu[1:]) @ (np.eye(3) - a_u).T
        np.testing.assert_allclose(gap, expected, rtol=1e-10, atol=1e-10)


def test_guided_scores_of_cfg_1d():
    """GIB-1: s_c + 2 (s_c - s_u) at rho = 1."""
    with jax.enable_x64(True):
        pair, schedule = oracles.cfg_1d(), schedules.by_name("edm")
        x, t = jnp.array([[-1.0], [0.5], [2.0], [4.0]]), jnp.full(4, schedule.time(jnp.zeros(())))
        s_c, s_u = (mixtures.score(pair, schedule, x, t, jnp.full(4, c)) for c in (0, pair.null))
        np.testing.assert_allclose((3 * s_c - 2 * s_u)[:, 0], (7.508779, 2.858447, 0.071945, -2.470437), atol=1e-5)


@pytest.mark.parametrize(
    ("tau", "omega", "mean", "variance"),
    [
        (0.01, 0.5, 2.00099, 0.32855),
        (0.01, 1, 2.00160, 0.31396),
        (0.01, 2, 2.00260, 0.30292),
        (0, 2, 2.00236, 0.30221),
    ],
)
def test_power_tilted_density_of_cfg_1d(tau, omega, mean, variance):
    """FLOW-4, FLOW-5: moments of p_c^(1 + omega) p_u^(-omega) at rho^2 = tau, by quadrature of log_density."""
    with jax.enable_x64(True):
        pair, schedule = oracles.cfg_1d(), schedules.by_name("edm")
        x = jnp.linspace(-2, 6, 4001)[:, None]
        t = jnp.full(len(x), schedule.time(-jnp.log(tau)) if tau else 0.0)
        p_c, p_u = (mixtures.log_density(pair, schedule, x, t, jnp.full(len(x), c)) for c in (0, pair.null))
        log_p = np.asarray((1 + omega) * p_c - omega * p_u)
        weight = np.exp(log_p - log_p.max())
        weight, x = weight / weight.sum(), np.asarray(x[:, 0])
        np.testing.assert_allclose(weight @ x, mean, atol=1e-5)
        np.testing.assert_allclose(weight @ x**2 - (weight @ x) ** 2, variance, atol=1e-5)


# ---- far modes in single precision


@pytest.mark.parametrize("form", ["isotropic", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_modes_60_sigma_away(form, name):
    """float32 against float64 (the same inputs): at a mode, beside it, half-way and far outside; and the gradients."""

    def evaluate(dtype):
        unit = np.tile(np.eye(2), (2, 1, 1)) if form == "full" else np.ones(2)
        mixture = mixtures.from_classes(
            [[[-30.0, 0.0], [30.0, 0.0]], [[0.0, 60.0]]], [unit, unit[:1]], [[0.9, 0.1], [1]]
        )
        schedule = schedules.by_name(name)
        where = [[-30, 0], [-29, 1], [0.01, 0], [30, 60], [90, -60], [29, 0.5]]
        x = jnp.tile(jnp.asarray(where, dtype), (3, 1))
        cond = jnp.repeat(jnp.arange(3), len(where))
        t = jnp.full(len(x), jnp.float32(0.02)).astype(dtype)
        denoise = mixtures.denoise(mixture, schedule)

        def one(x, t, c):
            return denoise(x[None], t[None], c[None])[0]

        @jax.jit
        def everything(mixture, x, t, cond):
            values = (
                mixtures.log_density(mixture, schedule, x, t, cond),
                mixtures.score(mixture, schedule, x, t, cond),
                denoise(x, t, cond),
                jax.vmap(jax.jacrev(one))(x, t, cond),
            )
            gradient = jax.grad(lambda m: mixtures.log_density(m, schedule, x, t, cond).sum())(mixture)
            return values, (gradient, jax.vmap(jax.jacrev(one, 1))(x, t, cond))

        values, gradients = everything(mixture, x, t, cond)
        chex.assert_tree_all_finite((values, gradients))
        return jax.tree.map(np.asarray, values)

    single = evaluate(jnp.float32)
    with jax.enable_x64(True):
        double = evaluate(jnp.float64)
    assert single[0].dtype == np.float32
    # A log weight of size L (up to 90^2) carries an error of L eps; responsibilities inherit it as a relative error.
    size = 3 * 90**2 * np.finfo(np.float32).eps
    np.testing.assert_allclose(single[0], double[0], rtol=1e-5)
    for actual, expected, scale in zip(single[1:], double[1:], (120, 120, 120**2), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=size * scale)
    at_mode = double[2][[0, 12]]
    np.testing.assert_allclose(single[2][[0, 12]], at_mode, rtol=1e-6, atol=1e-6)

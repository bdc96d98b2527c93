"""The guidance-matched loss on a labelled mixture, where both heads are known: GML-1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import predictions, rules, schedules
from guidance.learning.matched import guidance_matched_loss
from guidance.truth import mixtures
from tests import oracles

RF = schedules.rectified_flow()
OMEGA, TOY = 1.5, oracles.toy2()


def _data(key, n, dropped=0.0):
    keys = jax.random.split(key, 4)
    x0, cond = mixtures.sample_joint(keys[0], TOY, n)
    t = jax.random.uniform(keys[1], (n,), minval=0.05, maxval=0.95)
    eps = jax.random.normal(keys[2], x0.shape)
    cond = jnp.where(jax.random.uniform(keys[3], (n,)) < dropped, TOY.null, cond)
    return schedules.diffuse(RF, x0, eps, t), t, cond, eps


def _heads(x, t, cond):
    """E[eps | x, c] and E[eps | x]."""
    denoise = mixtures.denoise(TOY, RF)
    null = jnp.full_like(cond, TOY.null)
    return tuple(predictions.eps_from_x0(RF, x, denoise(x, t, c), t) for c in (cond, null))


def _matched(omega):
    """The claimed minimiser: (E[eps|x,c] + omega E[eps|x])/(1 + omega); the null head is E[eps|x]."""

    def predict(x, t, cond):
        conditional, unconditional = _heads(x, t, cond)
        return (conditional + omega * unconditional) / (1 + omega)

    return predict


def test_gml_1_the_guided_output_of_the_minimiser_is_the_true_conditional(x64):
    x, t, cond, _ = _data(jax.random.key(0), 20)
    predict = _matched(OMEGA)
    guided = rules.cfg(predict(x, t, cond), predict(x, t, jnp.full_like(cond, TOY.null)), jnp.full(20, OMEGA))
    np.testing.assert_allclose(guided, _heads(x, t, cond)[0], atol=1e-12)


def _slopes(base, omega, dropped):
    """The derivative of the loss along directions of the prediction (by label and by x), one row for each batch."""

    def loss(a, key):
        x, t, cond, eps = _data(key, 200, dropped)

        def predict(x, t, cond):
            real = (cond != TOY.null).astype(x.dtype)[:, None]
            outwards = real * TOY.means[jnp.minimum(cond, 3)]  # what all classes share would cancel
            a_c, b_c, a_u, b_u = a[:, None]
            return base(x, t, cond) + outwards * (a_c + b_c * jnp.tanh(x)) + (1 - real) * (a_u + b_u * jnp.tanh(x))

        return guidance_matched_loss(predict, x, t, cond, TOY.null, eps, omega)

    keys = jax.random.split(jax.random.key(1), 300)
    return np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(jnp.zeros((4, 2)), keys), np.float64)


@pytest.mark.parametrize("omega", [0.0, OMEGA])
def test_the_loss_is_stationary_at_the_closed_form_minimiser(omega):
    slopes = _slopes(_matched(omega), omega, 0.2)
    assert np.all(np.abs(slopes.mean(0)) < 5 * oracles.standard_error(slopes))
    assert np.all(oracles.standard_error(slopes) > 0), "every direction is trained, the null head by dropped rows"


def test_the_plain_minimiser_does_not_minimise_it():
    plain = lambda x, t, cond: _heads(x, t, cond)[0]  # noqa: E731
    slopes = _slopes(plain, OMEGA, 0.0)
    assert np.any(np.abs(slopes.mean(0)) > 10 * oracles.standard_error(slopes) + 1e-6)


def test_conditional_rows_do_not_train_the_null_head():
    slopes = _slopes(_matched(OMEGA), OMEGA, 0.0)
    assert np.all(slopes[:, 2:] == 0) and np.all(slopes[:, :2] != 0)


def test_dropped_rows_have_the_plain_loss_and_gradient():
    x, t, _, eps = _data(jax.random.key(3), 16)
    cond = jnp.full(16, TOY.null)
    predict = lambda a: lambda x, t, cond: a * x  # noqa: E731
    matched = lambda a: guidance_matched_loss(predict(a), x, t, cond, TOY.null, eps, OMEGA)  # noqa: E731
    plain = lambda a: jnp.mean(jnp.sum((a * x - eps) ** 2, -1))  # noqa: E731
    got, expected = jax.value_and_grad(matched)(0.7), jax.value_and_grad(plain)(0.7)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_conditions_may_be_pytrees():
    """HG: the null condition is mu = 0, known = 0; one row of four is null."""
    x0, cond = oracles.hg_sample(jax.random.key(0), 4)
    cond = jax.tree.map(lambda c: c.at[2].set(0), cond)
    predict = lambda x, t, cond: x * (1 + cond["known"])  # noqa: E731
    got = guidance_matched_loss(predict, x0, jnp.full(4, 0.5), cond, oracles.HG_NULL, jnp.zeros_like(x0), 1.0)
    factor = np.where(np.arange(4) == 2, 1.0, 2 * 2.0 - 1.0)  # 2 f_c - f_u = 4x - x
    np.testing.assert_allclose(got, np.mean(factor**2 * np.sum(np.asarray(x0) ** 2, -1)), rtol=1e-5)

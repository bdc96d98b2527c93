"""Wasserstein distances on the line against SciPy, linear programming and closed forms; sliced against POT."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from guidance.metrics import sliced_wasserstein, sliced_wasserstein_along, wasserstein_1d

# POT's sliced W2 on NumPy draws with 64 given lines: shared/golden/metric_goldens/metric_goldens.json.
POT_SLICED = {
    "A": (0, lambda rs: (rs.randn(500, 64), rs.randn(400, 64) * 0.8 + 0.1), 0.24915484583314243),
    "B": (7, lambda rs: (rs.randn(300, 8), rs.randn(300, 8)), 0.13773781016148595),
    "C": (3, lambda rs: (rs.randn(1000, 2), rs.randn(1000, 2) * 1.5 + 0.5), 0.6959375049185362),
}


@pytest.mark.parametrize("name", POT_SLICED)
def test_sliced_matches_pot(name, x64):
    seed, draw, expected = POT_SLICED[name]
    x, y = map(jnp.asarray, draw(np.random.RandomState(seed)))  # noqa: NPY002 the fixture's own generator
    directions = np.random.RandomState(123).randn(x.shape[1], 64).T  # noqa: NPY002
    value = jax.jit(sliced_wasserstein_along)(jnp.asarray(directions), x, y)
    np.testing.assert_allclose(value, expected, rtol=1e-10)


compiled_distance = jax.jit(wasserstein_1d, static_argnames="p")
SIZES = st.sampled_from([(1, 5), (6, 4), (7, 3), (8, 8)])  # few, for each is compiled


@hypothesis.given(seed=st.integers(0, 2**32 - 1), sizes=SIZES)
def test_first_order_matches_scipy(seed, sizes):
    n, m = sizes
    rng = np.random.default_rng(seed)
    u, v = rng.normal(size=n), rng.normal(size=m) + 1
    with jax.enable_x64(True):
        value = compiled_distance(jnp.asarray(u), jnp.asarray(v), p=1)
    np.testing.assert_allclose(value, scipy.stats.wasserstein_distance(u, v), rtol=1e-12)


def transport_cost(u, v, p):
    """min sum P_ij |u_i - v_j|^p over couplings of uniform weights, by linear programming."""
    n, m = len(u), len(v)
    cost = np.abs(u[:, None] - v[None, :]) ** p
    rows, columns = np.kron(np.eye(n), np.ones((1, m))), np.kron(np.ones((1, n)), np.eye(m))
    marginals = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    return scipy.optimize.linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=marginals).fun


@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
@pytest.mark.parametrize(("n", "m"), [(5, 5), (4, 6), (3, 7), (1, 4)])
def test_is_the_cheapest_transport(n, m, p, x64):
    rng = np.random.default_rng(n + 10 * m)
    u, v = rng.normal(size=n), 2 * rng.normal(size=m)
    value = wasserstein_1d(jnp.asarray(u), jnp.asarray(v), p=p)
    np.testing.assert_allclose(value, transport_cost(u, v, p) ** (1 / p), rtol=1e-7)


@hypothesis.given(seed=st.integers(0, 2**32 - 1), sizes=SIZES, p=st.sampled_from([1, 2]))
def test_identities(seed, sizes, p):
    n, m = sizes
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        u, v = jnp.asarray(rng.normal(size=n)), jnp.asarray(rng.normal(size=m))
        value = compiled_distance(u, v, p=p)
        np.testing.assert_allclose(compiled_distance(v, u, p=p), value, rtol=1e-12)
        np.testing.assert_allclose(compiled_distance(u + 4, v + 4, p=p), value, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(compiled_distance(u - 3, u, p=p), 3, rtol=1e-12)
        repeated = jnp.repeat(v, 3)  # the same law with other sizes: the other branch of the code
        np.testing.assert_allclose(compiled_distance(u, repeated, p=p), value, rtol=1e-9)


def test_sliced_between_shifted_samples(x64):
    """A translate is exactly |theta.delta| away on each line: SW_2^2 = |delta|^2 / d on average over lines.

    (theta.delta)^2 / |delta|^2 ~ Beta(1/2, (d-1)/2) with variance 2 (d - 1) / (d^2 (d + 2)).
    """
    d, lines = 5, 4000
    delta = np.asarray([3.0, 0, 0, 4, 0])
    x = np.random.default_rng(0).normal(size=(12, d))
    value = sliced_wasserstein(jax.random.key(0), jnp.asarray(x), jnp.asarray(x + delta), lines=lines)
    deviation = math.sqrt(2 * (d - 1) / (d**2 * (d + 2)) / lines)
    np.testing.assert_allclose(value**2 / 25, 1 / d, rtol=0, atol=4 * deviation)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_gradients_are_finite_at_equal_samples(p):
    u = jnp.asarray([0.0, 0.0, 1.0])
    assert np.all(np.isfinite(jax.grad(lambda z: wasserstein_1d(z, u, p))(u)))
    x = jnp.ones((4, 3))
    gradient = jax.grad(lambda z: sliced_wasserstein(jax.random.key(0), z, x, lines=4, p=p))(x)
    assert np.all(np.isfinite(gradient))


def test_gradient_transports(x64):
    """d W_2^2 / d u_i = 2 (u_i - its partner) / n."""
    u, v = jnp.asarray([3.0, 0.0, 1.0]), jnp.asarray([5.0, -1.0, 2.0])
    gradient = jax.grad(lambda z: wasserstein_1d(z, v, 2) ** 2)(u)
    np.testing.assert_allclose(gradient, 2 * np.asarray([3 - 5, 0 + 1, 1 - 2]) / 3, rtol=1e-12)


def test_refusals():
    line = jnp.zeros(3)
    with pytest.raises(ValueError, match="samples must have"):
        wasserstein_1d(line, jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="samples must have"):
        wasserstein_1d(line, jnp.zeros(0))
    with pytest.raises(ValueError, match="p must"):
        wasserstein_1d(line, line, p=0.5)
    with pytest.raises(ValueError, match="last axis"):
        sliced_wasserstein_along(jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.ones((4, 2)))

"""Weights, resampling and the estimate of log Z, on laws that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidance import steering
from tests import oracles

log_weights = st.lists(st.one_of(st.floats(-30, 30), st.just(-np.inf)), min_size=1, max_size=40).filter(
    lambda values: max(values) > -np.inf
)


def test_ess_counts_equal_weights():
    assert float(steering.ess(jnp.full(8, -700.0))) == pytest.approx(8)
    assert float(steering.ess(jnp.asarray([0.0, 0.0, -jnp.inf, -jnp.inf]))) == pytest.approx(2)
    assert float(steering.ess(jnp.asarray([500.0, 0.0, 0.0]))) == pytest.approx(1)


@given(values=log_weights, seed=st.integers(0, 1000))
def test_systematic_keeps_floor_or_ceil_of_the_expected_number(values, seed):
    w = jnp.asarray(values, jnp.float32)
    kept = np.asarray(jax.jit(steering.systematic)(jax.random.key(seed), w))
    n = len(values)
    share = np.exp(np.asarray(w, np.float64) - max(values))
    expected = n * share / share.sum()
    counts = np.bincount(kept, minlength=n)
    assert len(counts) == n and counts.sum() == n
    slack = 1e-4  # rounding of the cumulative sum in float32
    assert np.all(counts >= np.floor(expected - slack)) and np.all(counts <= np.ceil(expected + slack))
    assert np.all(counts[share == 0] == 0)


def test_systematic_is_unbiased():
    w = jnp.log(jnp.asarray([0.45, 0.05, 0.2, 0.3]))
    keys = jax.random.split(jax.random.key(0), 4000)
    counts = jax.vmap(lambda key: jnp.bincount(steering.systematic(key, w), length=4))(keys)
    error = np.mean(np.asarray(counts, np.float64), axis=0) - 4 * np.exp(np.asarray(w))
    assert np.all(np.abs(error) < 5 * np.maximum(oracles.standard_error(counts), 1e-9))


def test_resampling_carries_the_weight():
    x = {"a": jnp.arange(5.0), "b": jnp.arange(10).reshape(5, 2)}
    w = jnp.asarray([0.0, -1.0, 2.0, -jnp.inf, 0.5])
    key = jax.random.key(0)
    mean = float(np.log(np.mean(np.exp(np.asarray(w, np.float64)))))
    after, carried = steering.resample_below(key, 2.0, x, w)
    np.testing.assert_allclose(carried, np.full(5, mean), rtol=1e-6)
    assert float(steering.log_mean_weight(carried)) == pytest.approx(mean, rel=1e-6)
    assert float(steering.log_mean_weight(w)) == pytest.approx(mean, rel=1e-6)
    np.testing.assert_array_equal(after["b"], jnp.stack([2 * after["a"], 2 * after["a"] + 1], -1).astype(int))
    same, kept = steering.resample_below(jax.random.key(1), 0.0, x, w)
    np.testing.assert_array_equal(same["a"], x["a"])
    np.testing.assert_array_equal(kept, w)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 2.0])
def test_the_estimate_of_z_and_of_moments_is_right_however_often_it_is_resampled(fraction):
    """A Gaussian random walk from N(0, 1) with potentials exp(x/4): three moves of variance 1, weighted at their ends.

    x_k = x_0 + sums; the weight exp((x_1 + x_2 + x_3)/4) is lognormal: with a = (3/4) on x_0 and (3, 2, 1)/4 on the
    moves, log Z = (9 + 9 + 4 + 1)/32, and the mean of x_3 shifts by the covariance (3 + 3 + 2 + 1)/4.
    """

    def move(key, x, *, t, s):
        x = x + jax.random.normal(key, x.shape)
        return x, x / 4

    def one(key):
        start, key = jax.random.split(key)
        out = steering.evolve(key, move, jnp.linspace(1, 0, 4), jax.random.normal(start, (50,)), fraction)
        w = jnp.exp(out.log_weights)
        return jnp.mean(w), jnp.mean(w * out.x)

    z, zx = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 4000))
    for values, truth in ((z, np.exp(23 / 32)), (zx, np.exp(23 / 32) * 9 / 4)):  # both are unbiased for any n
        assert abs(np.asarray(values, np.float64).mean() - truth) < 5 * oracles.standard_error(values)


def test_the_last_move_is_not_resampled():
    """Each particle's weight is then its own: the mean of those before, and what the last move added."""
    start = jnp.asarray([0.0, 1.0, 2.0, 3.0])
    still = lambda key, x, *, t, s: (x, x)  # noqa: E731
    out = steering.evolve(jax.random.key(0), still, jnp.linspace(1, 0, 3), start, 2.0)
    mean = np.log(np.mean(np.exp(np.asarray(start))))
    assert len(np.unique(out.x)) > 1
    np.testing.assert_allclose(out.log_weights, mean + np.asarray(out.x), rtol=1e-6)


def test_a_population_starts_with_the_weights_it_is_given():
    still = lambda key, x, *, t, s: (x, jnp.zeros(3))  # noqa: E731
    w = jnp.log(jnp.asarray([1.0, 2.0, 3.0]))
    out = steering.evolve(jax.random.key(0), still, jnp.linspace(1, 0, 3), jnp.arange(3.0), 0.0, w)
    np.testing.assert_allclose(out.log_weights, w)
    np.testing.assert_allclose(out.ess, np.full(2, 36 / 14), rtol=1e-6)

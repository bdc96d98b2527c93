"""Mode shares, moments and likelihood against a mixture whose everything is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from guidance.metrics import (
    mode_moments,
    mode_shares,
    nearest_mode,
    negative_log_likelihood,
    share_error,
    variance_ratio,
)

WEIGHTS = np.asarray([0.2, 0.5, 0.3])
MEANS = np.asarray([[0.0, 0.0], [2.0, 0.0], [0.0, 2.5]])
SCALES = np.asarray([1.0, 0.5, 0.8])


def log_terms(x):
    squared = np.square(x[:, None, :] - MEANS[None]).sum(axis=2)
    return np.log(WEIGHTS / (2 * np.pi * SCALES**2))[None, :] - squared / (2 * SCALES**2)[None, :]


def mixture_draw(n, seed=0):
    rng = np.random.default_rng(seed)
    component = rng.choice(3, size=n, p=WEIGHTS)
    return MEANS[component] + SCALES[component][:, None] * rng.normal(size=(n, 2)), component


def test_posterior_moments_are_the_components(x64):
    """E r_j f = pi_j E_j f: shares, means and covariances are right although the components overlap."""
    n = 40_000
    x, _ = mixture_draw(n)
    terms = log_terms(x)
    posterior = np.exp(terms - scipy.special.logsumexp(terms, axis=1, keepdims=True))
    moments = jax.jit(mode_moments)(jnp.asarray(x), jnp.asarray(posterior))
    occupancy = WEIGHTS * n
    # r <= 1, so weighted moments are at most as noisy as those of the true members.
    np.testing.assert_array_less(np.abs(moments.share - WEIGHTS), 4 * np.sqrt(WEIGHTS * (1 - WEIGHTS) / n))
    assert np.all(np.abs(moments.mean - MEANS) < 4 * (SCALES / np.sqrt(occupancy))[:, None])
    ratio = variance_ratio(moments.covariance, jnp.asarray(SCALES**2)[:, None, None] * jnp.eye(2)[None])
    # tr S / tr S* has variance 1/n per mode in 2-D: twice 2 sigma^4 / n over (2 sigma^2)^2.
    np.testing.assert_array_less(np.abs(ratio - 1), 4 / np.sqrt(occupancy))
    np.testing.assert_allclose(mode_shares(jnp.asarray(posterior)), moments.share, rtol=1e-12)


def test_one_hot_moments_are_numpys(x64):
    x, component = mixture_draw(60)
    moments = mode_moments(jnp.asarray(x), jax.nn.one_hot(component, 3, dtype=jnp.float64))
    for j in range(3):
        members = x[component == j]
        np.testing.assert_allclose(moments.share[j], len(members) / 60, rtol=1e-12)
        np.testing.assert_allclose(moments.mean[j], members.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(moments.covariance[j], np.cov(members.T), rtol=1e-10)


def test_empty_and_single_modes():
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
    responsibilities = jnp.asarray([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])
    moments = mode_moments(x, responsibilities)
    np.testing.assert_allclose(moments.share, [2 / 3, 0, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(moments.mean[2], [5, 5])
    np.testing.assert_array_equal(moments.covariance[1:], 0)
    np.testing.assert_allclose(moments.covariance[0], [[2, 2], [2, 2]], rtol=1e-6)
    gradient = jax.grad(lambda r: jnp.sum(mode_moments(x, r).covariance))(responsibilities)
    assert np.all(np.isfinite(gradient))


def test_nearest_mode_is_a_voronoi_cell():
    x, _ = mixture_draw(200)
    cells = np.asarray(nearest_mode(jnp.asarray(x, jnp.float32), jnp.asarray(MEANS, jnp.float32)))
    distances = np.linalg.norm(x[:, None] - MEANS[None], axis=2)
    np.testing.assert_array_equal(cells.argmax(axis=1), distances.argmin(axis=1))
    np.testing.assert_array_equal(cells.sum(axis=1), 1)


def test_radius_loses_the_far():
    centres = jnp.asarray([[0.0], [10.0]])
    cells = nearest_mode(jnp.asarray([[0.4], [4.0], [9.5], [11.0]]), centres, radius=0.5)
    np.testing.assert_array_equal(cells, [[1, 0], [0, 0], [0, 1], [0, 0]])


def test_share_error_by_hand():
    truth = jnp.asarray([0.2, 0.5, 0.3])
    np.testing.assert_allclose(share_error(truth, truth), 0, atol=1e-7)
    np.testing.assert_allclose(share_error(jnp.asarray([0.0, 0.0, 1.0]), truth), 0.7, rtol=1e-6)
    np.testing.assert_allclose(share_error(jnp.zeros(3), truth), 1, rtol=1e-6)
    # A fifth of the truth lies in no mode either: lost alike is no error, and half of it found is one of a tenth.
    np.testing.assert_allclose(share_error(0.8 * truth, 0.8 * truth), 0, atol=1e-7)
    np.testing.assert_allclose(share_error(0.9 * truth, 0.8 * truth), 0.1, rtol=1e-5)
    # Half of everything lost: that half has moved to the mode called lost.
    np.testing.assert_allclose(share_error(truth / 2, truth), 0.5, rtol=1e-6)


def test_likelihood_of_a_gaussian_is_its_entropy():
    """-log p = d/2 log 2 pi + |x|^2/2 has mean d/2 (1 + log 2 pi) and variance d/2."""
    n, d = 20_000, 3
    x = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)), jnp.float32)
    estimate = negative_log_likelihood(lambda z: -0.5 * jnp.sum(z * z, axis=1) - 0.5 * d * math.log(2 * math.pi), x)
    assert abs(estimate.value - 0.5 * d * (1 + math.log(2 * math.pi))) < 4 * math.sqrt(d / 2 / n)
    # The spread of |x|^2/2 has kurtosis 3 + 12/d = 7: its standard deviation is known to sqrt(6 / (4 n)).
    np.testing.assert_allclose(estimate.standard_error, math.sqrt(d / 2 / n), rtol=4 * math.sqrt(6 / (4 * n)))


def test_likelihood_refuses_another_shape():
    with pytest.raises(ValueError, match="values must have shape"):
        negative_log_likelihood(lambda z: z, jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="values must have shape"):
        negative_log_likelihood(lambda z: z[:, 0], jnp.zeros((1, 2)))

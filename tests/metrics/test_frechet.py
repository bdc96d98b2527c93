"""Frechet distance against SciPy's matrix root, closed forms and reference packages; merging; derivatives."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from guidance.metrics import (
    Gaussian,
    empty_stats,
    frechet_distance,
    gaussian_frechet_distance,
    gaussian_stats,
    inception_score,
    merge_stats,
)

# shared/golden/metric_goldens/metric_goldens.json: the TTUR formula with scipy's sqrtm; last three torch-fidelity's
# own fixture.
REFERENCE = [
    (0, lambda rs: (rs.randn(500, 64), rs.randn(400, 64) * 0.8 + 0.1), 7.025762989899405),
    (7, lambda rs: (rs.randn(300, 8), rs.randn(300, 8)), 0.13927660344250725),
    (3, lambda rs: (rs.randn(1000, 2), rs.randn(1000, 2) * 1.5 + 0.5), 0.93358432359625),
    (2023, lambda rs: (rs.randn(64, 4), rs.randn(64, 4)), 0.4476970450196731),
    (2023, lambda rs: (rs.randn(1024, 16), rs.randn(1024, 16)), 0.16732765199782307),
    (2023, lambda rs: (rs.randn(4096, 64), rs.randn(4096, 64)), 0.5204524415811704),
]


def jax_frechet(a, b):
    return gaussian_frechet_distance(*(jnp.asarray(z) for z in (a.mean, a.covariance, b.mean, b.covariance)))


@pytest.mark.parametrize(("seed", "draw", "expected"), REFERENCE)
def test_matches_reference(seed, draw, expected, x64):
    x, y = draw(np.random.RandomState(seed))  # noqa: NPY002 the fixture's own generator
    a, b = gaussian_stats(x), gaussian_stats(y)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
    np.testing.assert_allclose(jax_frechet(a, b), expected, rtol=1e-9)


def stats_of(mean, covariance):
    return Gaussian(np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def random_covariance(rng, d, rank=None):
    factor = rng.normal(size=(d, rank or 2 * d))
    return factor @ factor.T


@hypothesis.given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 8))
def test_matches_matrix_root(seed, d):
    rng = np.random.default_rng(seed)
    a = stats_of(rng.normal(size=d), random_covariance(rng, d))
    b = stats_of(rng.normal(size=d), random_covariance(rng, d))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    exact = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), exact, rtol=1e-6)
    np.testing.assert_allclose(frechet_distance(b, a), exact, rtol=1e-6)


def test_commuting_covariances():
    """For diagonal covariances it is |mu_a - mu_b|^2 + sum (s_a - s_b)^2; a rotation of both changes nothing."""
    s_a, s_b, shift = np.asarray([1.0, 2.0, 0.0, 5.0]), np.asarray([3.0, 0.5, 1.0, 5.0]), np.asarray([1.0, 0, -2, 0])
    exact = np.square(s_a - s_b).sum() + np.square(shift).sum()
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    for turn in (np.eye(4), rotation):
        a = stats_of(np.zeros(4), turn @ np.diag(s_a**2) @ turn.T)
        b = stats_of(turn @ shift, turn @ np.diag(s_b**2) @ turn.T)
        # A zero eigenvalue of size eps has a root of size 1e-8.
        np.testing.assert_allclose(frechet_distance(a, b), exact, rtol=0, atol=1e-6)


def test_fewer_rows_than_features(x64):
    """Singular covariances: equal to the nuclear norm of the centred data's product, which needs no root of S."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 30)), rng.normal(size=(15, 30)) + 0.2
    a, b = gaussian_stats(x), gaussian_stats(y)
    cross = (x - x.mean(0)) @ (y - y.mean(0)).T / np.sqrt(9 * 14)
    nuclear = np.linalg.svd(cross, compute_uv=False).sum()
    exact = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance) - 2 * nuclear
    # 30 eigenvalues, each with a rounding of order sqrt(eps * 10).
    found = frechet_distance(a, b, few=True)
    np.testing.assert_allclose(found, exact, rtol=0, atol=30 * np.sqrt(10 * np.finfo(float).eps))
    np.testing.assert_allclose(jax_frechet(a, b), exact, rtol=0, atol=30 * np.sqrt(10 * np.finfo(float).eps))


@hypothesis.given(seed=st.integers(0, 2**32 - 1), cuts=st.lists(st.integers(1, 39), min_size=1, max_size=4))
def test_merging_is_the_whole(seed, cuts):
    rows = np.random.default_rng(seed).normal(size=(40, 3)) + 100
    whole = gaussian_stats(rows)
    parts = [gaussian_stats(part) for part in np.split(rows, sorted(set(cuts)))]
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_stats(merged, part)
    assert merged.count == 40
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-13)
    np.testing.assert_allclose(merged.covariance, np.cov(rows.T), rtol=0, atol=1e-11)
    np.testing.assert_allclose(merge_stats(parts[-1], parts[0]).mean, merge_stats(parts[0], parts[-1]).mean)


def test_a_stream_is_the_batch():
    """In blocks of any size, from the statistics of nothing; equal in distance too, to 1e-12 relative."""
    rng = np.random.default_rng(3)
    factors = rng.normal(size=(2, 20, 20))
    x, y = (rng.normal(size=(1000, 20)) @ factor + 30 for factor in factors)
    streamed = empty_stats(20)
    for block in np.split(x, [1, 2, 65, 400, 401]):
        streamed = merge_stats(streamed, gaussian_stats(block))
    whole, other = gaussian_stats(x), gaussian_stats(y)
    np.testing.assert_allclose(streamed.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(streamed.scatter, whole.scatter, rtol=0, atol=1e-12 * np.trace(whole.scatter))
    np.testing.assert_allclose(frechet_distance(streamed, other), frechet_distance(whole, other), rtol=1e-12)


def test_estimates_the_distance_of_the_laws():
    """Of N(0, I) and N(m, s^2 I): |m|^2 + d (s - 1)^2, up to the bias and spread of samples, both of order d^2 / n.

    Bias: the covariance of n rows has its roots spread, and tr S^{1/2} falls by about d (d + 1) / (8 n) each.
    """
    rng = np.random.default_rng(5)
    n, d, m, s = 40_000, 5, 0.3, 1.5
    x, y = rng.normal(size=(n, d)), m + s * rng.normal(size=(n, d))
    exact = d * m**2 + d * (s - 1) ** 2
    # Delta method, each of the d axes: 2 m times the means' errors, variance (1 + s^2) / n, and 2 (s - 1) times those
    # of the two scales, variance (1 + s^2) / (2 n).
    spread = np.sqrt((4 * d * m**2 + 2 * d * (s - 1) ** 2) * (1 + s**2) / n)
    bias = d * (1 + s**2) / n + d * (d + 1) / n
    assert abs(frechet_distance(gaussian_stats(x), gaussian_stats(y)) - exact) < 4 * spread + bias


def test_float32_features_are_summed_in_float64():
    rows = (np.random.default_rng(0).normal(size=(5000, 2)) + 1000).astype(np.float32)
    stats = gaussian_stats(rows)
    assert stats.mean.dtype == stats.scatter.dtype == np.float64
    np.testing.assert_allclose(stats.covariance, np.cov(rows.astype(np.float64).T), rtol=0, atol=1e-9)


def test_gradient_matches_differences(x64):
    rng = np.random.default_rng(0)
    arguments = (rng.normal(size=4), random_covariance(rng, 4), rng.normal(size=4), random_covariance(rng, 4))
    symmetric = lambda m_a, c_a, m_b, c_b: gaussian_frechet_distance(m_a, c_a + c_a.T, m_b, c_b + c_b.T)  # noqa: E731
    chex.assert_numerical_grads(symmetric, tuple(map(jnp.asarray, arguments)), 1)


def test_gradient_closed_forms(x64):
    """At a = b the distance is minimal: the gradient is 0. For isotropic a = s^2 I, b = r^2 I it is (1 - r/s) I."""
    rng = np.random.default_rng(1)
    zero, covariance = jnp.zeros(3), jnp.asarray(random_covariance(rng, 3))
    gradient = jax.grad(gaussian_frechet_distance, argnums=(0, 1, 2, 3))
    for c in (covariance, jnp.eye(3)):
        for part in gradient(zero, c, zero, c):
            np.testing.assert_allclose(part, 0, atol=1e-12)
    to_a = gradient(zero, 4 * jnp.eye(3), zero, 9 * jnp.eye(3))[1]
    np.testing.assert_allclose(to_a, (1 - 3 / 2) * np.eye(3), atol=1e-12)


def test_gradient_is_finite_for_singular_covariances():
    singular = jnp.diag(jnp.asarray([1.0, 0.0, 0.0]))
    for part in jax.jit(jax.grad(gaussian_frechet_distance, argnums=(1, 3)))(
        jnp.zeros(3), singular, jnp.ones(3), jnp.zeros((3, 3))
    ):
        assert np.all(np.isfinite(part))


def test_inception_score_matches_reference():
    """RandomState(11), 5000 softmaxes of 2 N(0, 1) logits: shared/golden/metric_goldens/metric_goldens.json."""
    logits = np.random.RandomState(11).randn(5000, 10) * 2  # noqa: NPY002 the fixture's own generator
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(inception_score(probabilities), (2.6557431534460307, 0.0), rtol=1e-12)
    np.testing.assert_allclose(inception_score(probabilities, 500), (2.6487613524449576, 0.04110480182908), rtol=1e-10)


def test_inception_score_limits():
    np.testing.assert_allclose(inception_score(np.eye(7)), (7, 0), rtol=1e-12)
    np.testing.assert_allclose(inception_score(np.full((5, 4), 0.25)), (1, 0), rtol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="features must have"):
        gaussian_stats(np.zeros(3))
    with pytest.raises(ValueError, match="at least 2 rows"):
        frechet_distance(gaussian_stats(np.zeros((1, 3))), gaussian_stats(np.zeros((4, 3))), few=True)
    few, many = gaussian_stats(np.eye(3)), gaussian_stats(np.eye(4)[:, :3])
    with pytest.raises(ValueError, match=r"^3 rows of 3 features .*few=True allows it$"):
        frechet_distance(many, few)
    assert frechet_distance(many, Gaussian(few.mean, few.covariance)) == frechet_distance(many, few, few=True)
    assert np.isfinite(frechet_distance(many, many))
    for a, b in ((empty_stats(3), empty_stats(3)), (few, gaussian_stats(np.eye(4)))):
        with pytest.raises(ValueError, match="cannot merge"):
            merge_stats(a, b)
    with pytest.raises(ValueError, match="probabilities must have"):
        inception_score(np.zeros(3))

"""Precision, recall, density and coverage against the reference package, brute force and expectations."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from guidance.metrics import precision_recall_density_coverage

# clovaai's prdc on NumPy draws, k = 3, 5, 10: shared/golden/metric_goldens/metric_goldens.json.
REFERENCE = {
    "A": (
        0,
        lambda rs: (rs.randn(500, 64), rs.randn(400, 64) * 0.8 + 0.1),
        {3: (0.9875, 0.06, 10.895, 0.996), 5: (0.995, 0.082, 9.634, 1.0), 10: (1.0, 0.158, 7.90925, 1.0)},
    ),
    "B": (
        7,
        lambda rs: (rs.randn(300, 8), rs.randn(300, 8)),
        {
            3: (0.8966666666666666, 0.8666666666666667, 1.02, 0.89),
            5: (0.95, 0.9333333333333333, 1.0186666666666668, 0.9766666666666667),
            10: (0.97, 0.9866666666666667, 1.009, 1.0),
        },
    ),
    "C": (
        3,
        lambda rs: (rs.randn(1000, 2), rs.randn(1000, 2) * 1.5 + 0.5),
        {3: (0.925, 0.984, 0.938, 0.787), 5: (0.951, 0.999, 0.916, 0.917), 10: (0.967, 1.0, 0.8365, 0.98)},
    ),
}


measure = jax.jit(precision_recall_density_coverage, static_argnames=("k", "chunk"))


@pytest.mark.parametrize("k", [3, 5, 10])
@pytest.mark.parametrize("name", REFERENCE)
def test_matches_reference(name, k, x64):
    seed, draw, expected = REFERENCE[name]
    real, fake = map(jnp.asarray, draw(np.random.RandomState(seed)))  # noqa: NPY002 the fixture's own generator
    np.testing.assert_allclose(measure(real, fake, k=k), expected[k], rtol=1e-12)


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(15, 4, 1), (9, 14, 4), (12, 12, 64)]),  # few, for each is compiled
)
def test_matches_brute_force(seed, shape):
    n, m, chunk = shape
    rng = np.random.default_rng(seed)
    real, fake, k = rng.normal(size=(n, 2)), rng.normal(size=(m, 2)) + 0.5, 2

    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None, :], axis=2)

    real_radii = np.sort(distances(real, real), axis=1)[:, k]
    fake_radii = np.sort(distances(fake, fake), axis=1)[:, k]
    between = distances(real, fake)
    in_real = between < real_radii[:, None]
    in_fake = between < fake_radii[None, :]
    expected = (in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum() / (k * m), in_real.any(1).mean())
    with jax.enable_x64(True):
        found = measure(jnp.asarray(real), jnp.asarray(fake), k=k, chunk=chunk)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_matches_a_neighbour_search(x64):
    """scikit-learn's trees, many blocks of rows, the last ones not full."""
    rng = np.random.default_rng(4)
    real, fake, k = rng.normal(size=(900, 12)), 1.2 * rng.normal(size=(700, 12)) + 0.1, 5

    def radii(rows):
        return NearestNeighbors(n_neighbors=k + 1).fit(rows).kneighbors(rows)[0][:, -1]

    def balls(centres, radii, rows):
        """[centres, rows], whether a row lies in a ball."""
        nearest = NearestNeighbors(n_neighbors=len(rows)).fit(rows)
        distances, index = nearest.kneighbors(centres)
        inside = np.zeros(distances.shape, bool)
        np.put_along_axis(inside, index, distances < radii[:, None], axis=1)
        return inside

    in_real, in_fake = balls(real, radii(real), fake), balls(fake, radii(fake), real)
    expected = in_real.any(0).mean(), in_fake.any(0).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()
    np.testing.assert_allclose(measure(jnp.asarray(real), jnp.asarray(fake), k=k, chunk=128), expected, rtol=1e-12)


def test_disjoint_and_identical():
    rng = np.random.default_rng(0)
    # Whole numbers of mean 0, whose squared distances are exact: the k-th neighbour lies on the ball's edge.
    half = rng.integers(-1000, 1000, (25, 3))
    real = jnp.asarray(np.concatenate([half, -half]), jnp.float32)
    np.testing.assert_array_equal(precision_recall_density_coverage(real, real + 10_000), 0)
    same = precision_recall_density_coverage(real, real)
    # Each open ball then holds its own centre and its k - 1 nearer neighbours, k rows in all: density is 1 as well.
    np.testing.assert_allclose(same, 1, rtol=1e-6)


def test_expected_coverage():
    """At equal laws and sizes E coverage = 1 - (n-1)...(n-k) / ((2n-1)...(2n-k)), whatever the law.

    The k nearest of the other 2n - 1 points to a real one are real for an uncovered ball.
    Source: Reliable Fidelity and Diversity Metrics, arXiv 2002.09797, lemma 2.
    """
    n, k, repeats = 40, 3, 200
    i = np.arange(1, k + 1)
    expected = 1 - np.prod((n - i) / (2 * n - i))

    def coverage(key):
        key_real, key_fake = jax.random.split(key)
        real, fake = jax.random.normal(key_real, (n, 2)), jax.random.normal(key_fake, (n, 2))
        return precision_recall_density_coverage(real, fake, k=k).coverage

    found = np.asarray(jax.jit(jax.vmap(coverage))(jax.random.split(jax.random.key(0), repeats)))
    chex.assert_shape(found, (repeats,))
    assert abs(found.mean() - expected) < 4 * found.std(ddof=1) / np.sqrt(repeats)
    assert found.std(ddof=1) / np.sqrt(repeats) < 0.01


def test_memory_is_bounded():
    """Compiled, not run: all 10^10 pairs would be 40 GB; the program keeps a few chunks of 256 rows."""
    sample = jax.ShapeDtypeStruct((100_000, 64), jnp.float32)
    compiled = jax.jit(precision_recall_density_coverage).lower(sample, sample).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 12 * 4 * 100_000 * (256 + 64)


def test_refusals():
    x = jnp.zeros((6, 2))
    for k in (0, 6):
        with pytest.raises(ValueError, match="k must"):
            precision_recall_density_coverage(x, x, k=k)
    with pytest.raises(ValueError, match="samples must be"):
        precision_recall_density_coverage(x, jnp.zeros((6, 3)))

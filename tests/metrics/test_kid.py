"""The kernel inception distance: reference values, unbiasedness, calibrated errors."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.metrics import kernel_inception_distance, mmd_squared, polynomial_kernel

measure = jax.jit(kernel_inception_distance, static_argnames="block")

# An independent KID on NumPy draws, all rows at once: shared/golden/metric_goldens/metric_goldens.json.
REFERENCE = [
    (0, lambda rs: (rs.randn(500, 64), rs.randn(400, 64) * 0.8 + 0.1), 0.03755114553410133),
    (7, lambda rs: (rs.randn(300, 8), rs.randn(300, 8)), -0.006684063787464556),
]


def unbiased_in_numpy(x, y):
    """All pairs at once, from the definition."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def others(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    return others(x) + others(y) - 2 * kernel(x, y).mean()


@pytest.mark.parametrize(("seed", "draw", "expected"), REFERENCE)
def test_blocks_average_to_the_reference(seed, draw, expected, x64):
    """A U-statistic of all rows is the mean of those of all its subsets, so over keys the blocks average to it."""
    x, y = draw(np.random.RandomState(seed))  # noqa: NPY002 the fixture's own generator
    np.testing.assert_allclose(unbiased_in_numpy(x, y), expected, rtol=1e-9)
    keys = jax.random.split(jax.random.key(0), 400)
    draws = jax.jit(lambda keys: jax.lax.map(lambda k: measure(k, jnp.asarray(x), jnp.asarray(y), block=50), keys))
    values = np.asarray(draws(keys).value)
    error = values.std(ddof=1) / math.sqrt(len(keys))
    assert abs(values.mean() - expected) < 4 * error
    assert error < 0.3 * abs(expected)


def test_blocks_are_disjoint_and_random():
    """Blocks as large as half the sample: the mean of two unbiased values over complementary halves."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(6, 2)) + 1
    splits = [(list(c), [i for i in range(6) if i not in c]) for c in itertools.combinations(range(6), 3)]
    pairings = [
        (unbiased_in_numpy(x[a], y[c]) + unbiased_in_numpy(x[b], y[d])) / 2 for a, b in splits for c, d in splits
    ]
    found = [float(measure(jax.random.key(i), jnp.asarray(x), jnp.asarray(y), block=3).value) for i in range(20)]
    distance = np.abs(np.asarray(found)[:, None] - np.asarray(pairings)[None, :])
    assert distance.min(axis=1).max() < 1e-4
    assert len(np.unique(distance.argmin(axis=1))) > 10


def repeated(repeats, n, m, block, shift):
    """`repeats` estimates from fresh samples of N(0, I) and N(shift, I) in three features."""

    def once(key):
        key_x, key_y, key_blocks = jax.random.split(key, 3)
        x, y = jax.random.normal(key_x, (n, 3)), jax.random.normal(key_y, (m, 3)) + shift
        return kernel_inception_distance(key_blocks, x, y, block)

    return jax.jit(lambda keys: jax.lax.map(once, keys, batch_size=50))(jax.random.split(jax.random.key(1), repeats))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_error_is_calibrated_and_zero_is_the_mean_at_equal_laws(shift):
    """Blocks are so small that the biased statistic would be off by about 2 E k(x, x) / 20 = 1.

    The squared errors are unbiased for the variance. 500 repeats know it to sqrt(kurtosis / 500), and at shift 0 the
    law is a sum of ten skewed ones, each with a kurtosis of at most 15 as a sum of weighted chi-squares: 4.2 for the
    sum, hence 9 % of the variance and 4.6 % of the spread.
    """
    estimates = repeated(500, n=200, m=220, block=20, shift=shift)
    values = np.asarray(estimates.value, np.float64)
    spread = values.std(ddof=1)
    reported = math.sqrt(np.mean(np.square(np.asarray(estimates.standard_error, np.float64))))
    np.testing.assert_allclose(reported, spread, rtol=4 * 0.046)
    if shift == 0:
        assert abs(values.mean()) < 4 * spread / math.sqrt(len(values))
        assert spread / math.sqrt(len(values)) < 0.05


def test_closed_form():
    """For x ~ N(a, 1), y ~ N(b, 1), d = 1: k sums (x y)^j over binomials, so MMD^2 = sum_j C(3, j) (E x^j - E y^j)^2.

    With a = 0, b = 1: moments (0, 1, 0) and (1, 2, 4), hence 3 + 3 + 16 = 22.
    """
    x = jax.random.normal(jax.random.key(2), (20_000, 1))
    y = jax.random.normal(jax.random.key(3), (20_000, 1)) + 1
    estimate = measure(jax.random.key(4), x, y, block=500)
    assert abs(estimate.value - 22) < 4 * estimate.standard_error
    assert estimate.standard_error < 1
    whole = jax.jit(lambda x, y: mmd_squared(polynomial_kernel(3), x, y))(x[:4000], y[:4000])
    assert abs(whole.value - 22) < 4 * whole.standard_error


def test_refusals():
    key, x = jax.random.key(0), jnp.zeros((9, 2))
    for block in (0, 1, 5):
        with pytest.raises(ValueError, match="two blocks"):
            kernel_inception_distance(key, x, x, block)
    with pytest.raises(ValueError, match="samples must be"):
        kernel_inception_distance(key, x, jnp.zeros((9, 3)), 2)

"""Energy distance and MMD: published values, closed forms, unbiasedness, calibrated errors, bounded memory."""

import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.metrics import distance_kernel, energy_distance, mmd_squared, polynomial_kernel, rbf_kernel

# Values of reference packages (dcor for energy; an independent KID and RBF-MMD) on NumPy draws:
# shared/golden/metric_goldens/metric_goldens.json.
REFERENCE = {
    "A": {
        "draw": lambda rs: (rs.randn(500, 64), rs.randn(400, 64) * 0.8 + 0.1),
        "energy_unbiased": 0.18451889606552108,
        "energy_biased": 0.22949656495959658,
        "energy_biased_1.5": 0.7440277711079339,
        "kid": 0.03755114553410133,
        "rbf_1": 3.5651365950383275e-12,
        "rbf_root_d": 0.017951813825756835,
    },
    "B": {
        "draw": lambda rs: (rs.randn(300, 8), rs.randn(300, 8)),
        "energy_unbiased": -0.0026380698715748885,
        "energy_biased": 0.023111839547425017,
        "energy_biased_1.5": 0.04617331281882198,
        "kid": -0.006684063787464556,
        "rbf_1": -0.00016733988088045437,
        "rbf_root_d": -0.0007118642204790859,
    },
    "C": {
        "draw": lambda rs: (rs.randn(1000, 2), rs.randn(1000, 2) * 1.5 + 0.5),
        "energy_unbiased": 0.2451648697048614,
        "energy_biased": 0.24958604676077556,
        "energy_biased_1.5": 0.5159880338404239,
        "kid": 7.407475937641927,
        "rbf_1": 0.06808616112909133,
        "rbf_root_d": 0.07668158314954765,
    },
}
compiled_energy = jax.jit(energy_distance, static_argnames=("beta", "chunk"))

SEEDS = {"A": 0, "B": 7, "C": 3}


def reference_draw(name):
    return REFERENCE[name]["draw"](np.random.RandomState(SEEDS[name]))  # noqa: NPY002 the fixture's own generator


def brute_force_energy(x, y, beta, unbiased):
    """All pairs at once in NumPy float64."""

    def distances(a, b):
        return np.linalg.norm(a[:, None, :] - b[None, :, :], axis=2) ** beta

    n, m = len(x), len(y)
    within_x, within_y = (n * (n - 1), m * (m - 1)) if unbiased else (n * n, m * m)
    return 2 * distances(x, y).mean() - distances(x, x).sum() / within_x - distances(y, y).sum() / within_y


@pytest.mark.parametrize("name", REFERENCE)
def test_energy_matches_reference(name, x64):
    x, y = reference_draw(name)
    value = compiled_energy(jnp.asarray(x), jnp.asarray(y)).value
    np.testing.assert_allclose(value, REFERENCE[name]["energy_unbiased"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", REFERENCE)
def test_energy_exponent(name, x64):
    """The reference has the biased statistic at 1.5: it proves the brute force, which proves ours."""
    x, y = reference_draw(name)
    biased = brute_force_energy(x, y, 1.5, unbiased=False)
    np.testing.assert_allclose(biased, REFERENCE[name]["energy_biased_1.5"], rtol=1e-12)
    value = compiled_energy(jnp.asarray(x), jnp.asarray(y), beta=1.5).value
    np.testing.assert_allclose(value, brute_force_energy(x, y, 1.5, unbiased=True), rtol=0, atol=1e-11)


def test_brute_force_matches_documented_value():
    """dcor's documentation: 20.5780594 and, with exponent 1.5, 99.7863956 for these matrices (biased)."""
    a = np.arange(1.0, 17).reshape(4, 4)
    b = np.asarray([[1.0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    np.testing.assert_allclose(brute_force_energy(a, b, 1, unbiased=False), 20.5780594, rtol=1e-8)
    np.testing.assert_allclose(brute_force_energy(a, b, 1.5, unbiased=False), 99.786395559, rtol=1e-9)


@pytest.mark.parametrize("name", REFERENCE)
def test_mmd_matches_reference(name, x64):
    x, y = map(jnp.asarray, reference_draw(name))
    kernels = {"kid": polynomial_kernel(3), "rbf_1": rbf_kernel(1.0), "rbf_root_d": rbf_kernel(math.sqrt(x.shape[1]))}
    values = jax.jit(lambda x, y: {key: mmd_squared(kernel, x, y).value for key, kernel in kernels.items()})(x, y)
    for key, value in values.items():
        np.testing.assert_allclose(value, REFERENCE[name][key], rtol=1e-9, atol=1e-13, err_msg=key)


@pytest.mark.parametrize("name", REFERENCE)
def test_float32_is_close(name):
    """Each witness is a difference of means of distances ~ sqrt(2 d): eps-sized relative errors that average out."""
    x, y = (jnp.asarray(z, jnp.float32) for z in reference_draw(name))
    tolerance = 4 * np.finfo(np.float32).eps * math.sqrt(2 * x.shape[1])
    np.testing.assert_allclose(compiled_energy(x, y).value, REFERENCE[name]["energy_unbiased"], rtol=0, atol=tolerance)


def test_float32_sums_in_float64_where_enabled(x64):
    x, y = (jnp.asarray(z, jnp.float32) for z in reference_draw("C"))
    estimate = compiled_energy(x, y)
    assert estimate.value.dtype == jnp.float64
    exact = brute_force_energy(np.asarray(x, np.float64), np.asarray(y, np.float64), 1, unbiased=True)
    # Left over: the rounding of single distances, eps each, averaged over 4 million pairs, and of sums of 512.
    np.testing.assert_allclose(estimate.value, exact, rtol=0, atol=1e-6)


# distances are taken coordinate by coordinate up to 8 dimensions and from Gram matrices above: all chunks for both
@pytest.mark.parametrize(
    "d, chunk",
    [(d, chunk) for d in (2, 40) for chunk in (1, 7, 100)] + [(d, chunk) for d in (8, 9) for chunk in (64, 101, 4096)],
)
def test_chunks_do_not_matter(d, chunk, x64):
    x, y = np.split(np.random.default_rng(d).normal(size=(164, d)), [101])
    y = 1.3 * y
    estimate = compiled_energy(jnp.asarray(x), jnp.asarray(y), chunk=chunk)
    np.testing.assert_allclose(estimate.value, brute_force_energy(x, y, 1, unbiased=True), rtol=0, atol=1e-12)
    whole = compiled_energy(jnp.asarray(x), jnp.asarray(y), chunk=200)
    chex.assert_trees_all_close(estimate, whole, atol=1e-12, rtol=0)


def test_gram_form_survives_a_far_origin():
    """Centring keeps float32 distances of a cloud of spread 1 at 1000 as good as its coordinates, eps 1000 each."""
    x, y = np.split(np.random.default_rng(0).normal(size=(120, 20)).astype(np.float32), 2)
    y = 1.3 * y
    near = compiled_energy(jnp.asarray(x), jnp.asarray(y)).value
    far = compiled_energy(jnp.asarray(x + 1000), jnp.asarray(y + 1000)).value
    # Uncentred, |x|^2 = 2e7 would round by 2 and the distances, about 6, by 0.2.
    np.testing.assert_allclose(far, near, rtol=0, atol=np.finfo(np.float32).eps * 1000)


@hypothesis.given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(2, 2, 1), (11, 4, 3), (7, 7, 12)]),  # few, for each is compiled
    beta=st.sampled_from([1.0, 1.7]),
)
def test_identities(seed, shape, beta):
    n, m, d = shape
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(n, d)), 2 * rng.normal(size=(m, d)) + 0.5

        def energy(a, b):
            return compiled_energy(jnp.asarray(a), jnp.asarray(b), beta=beta, chunk=5)

        estimate = energy(x, y)
        rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
        close = {"atol": 1e-9, "rtol": 1e-9}
        chex.assert_trees_all_close(energy(y, x), estimate, **close)
        chex.assert_trees_all_close(energy(x + 3.0, y + 3.0), estimate, **close)
        chex.assert_trees_all_close(energy(x @ rotation, y @ rotation), estimate, **close)
        chex.assert_trees_all_close(energy(rng.permutation(x), y), estimate, **close)
        chex.assert_trees_all_close(energy(3 * x, 3 * y), jax.tree.map(lambda e: 3**beta * e, estimate), **close)


def normal_energy_distance(shift, scale):
    """2 E|x - y| - E|x - x'| - E|y - y'| for N(0, 1) and N(shift, scale^2), from E|N(m, s^2)| in closed form."""

    def mean_absolute(m, s):
        return s * math.sqrt(2 / math.pi) * math.exp(-0.5 * (m / s) ** 2) + m * math.erf(m / (s * math.sqrt(2)))

    return 2 * mean_absolute(shift, math.hypot(1, scale)) - mean_absolute(0, math.sqrt(2)) * (1 + scale)


def repeated(statistic, repeats, n, m, shift=0.0, scale=1.0):
    """`repeats` estimates from fresh samples of N(0, 1) and N(shift, scale^2)."""

    def once(key):
        key_x, key_y = jax.random.split(key)
        return statistic(jax.random.normal(key_x, (n, 1)), scale * jax.random.normal(key_y, (m, 1)) + shift)

    return jax.jit(lambda keys: jax.lax.map(once, keys, batch_size=50))(jax.random.split(jax.random.key(0), repeats))


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 1.5)])
def test_unbiased(shift, scale):
    """Over 2000 repeats of samples so small that the biased statistic would be off by E|x - x'| (1/n + 1/m) = 0.2."""
    repeats = 2000
    values = np.asarray(repeated(energy_distance, repeats, n=8, m=20, shift=shift, scale=scale).value, np.float64)
    error = values.std(ddof=1) / math.sqrt(repeats)
    assert abs(values.mean() - normal_energy_distance(shift, scale)) < 4 * error
    assert error < 0.01


def test_unbiased_rbf():
    """E exp(-z^2 / (2 b^2)) = sqrt(b^2 / (b^2 + s^2)) exp(-m^2 / (2 (b^2 + s^2))) for z ~ N(m, s^2)."""
    repeats, shift, bandwidth = 2000, 0.7, 0.8
    statistic = lambda x, y: mmd_squared(rbf_kernel(bandwidth), x, y)  # noqa: E731
    values = np.asarray(repeated(statistic, repeats, n=8, m=20, shift=shift).value, np.float64)
    width = bandwidth**2 + 2
    exact = 2 * bandwidth / math.sqrt(width) * (1 - math.exp(-(shift**2) / (2 * width)))
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(repeats)


# The spread of 400 repeats is known to 1/sqrt(2 * 399) = 3.5 % if normal; 4 sigma = 14 %.
REPEATS, SPREAD_TOLERANCE = 400, 0.14


@pytest.mark.parametrize("statistic", [energy_distance, lambda x, y: mmd_squared(rbf_kernel(1.0), x, y)])
def test_standard_error_is_calibrated(statistic):
    """Far from p = q the reported error is the spread of the estimate."""
    estimates = repeated(statistic, REPEATS, n=150, m=250, shift=1.5)
    spread = np.std(np.asarray(estimates.value, np.float64), ddof=1)
    reported = math.sqrt(np.mean(np.square(np.asarray(estimates.standard_error, np.float64))))
    np.testing.assert_allclose(reported, spread, rtol=SPREAD_TOLERANCE)


def test_standard_error_is_root_two_too_large_at_equal_laws():
    """At p = q the reported variance is twice the true one (derived in the module).

    The limit law is a centred sum of weighted chi-squares. Its leading weight dominates, so its kurtosis is at most
    that of one chi-square, 15, and the spread of 2000 repeats is known to sqrt((15 - 1) / (4 * 2000)) = 4.2 %.
    """
    estimates = repeated(energy_distance, 2000, n=60, m=100)
    spread = np.std(np.asarray(estimates.value, np.float64), ddof=1)
    reported = math.sqrt(np.mean(np.square(np.asarray(estimates.standard_error, np.float64))))
    np.testing.assert_allclose(reported, math.sqrt(2) * spread, rtol=3 * 0.042)


@pytest.mark.parametrize("d", [2, 12])
@pytest.mark.parametrize("statistic", [energy_distance, lambda x, y: energy_distance(x, y, beta=0.5)])
def test_gradient_is_finite_with_duplicates(statistic, d):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(10, d)), jnp.float32)
    x = x.at[1].set(x[0])

    @jax.jit
    def gradients(x, equal):
        of_error = jax.grad(lambda z: statistic(z, z).standard_error)
        return jax.grad(lambda z: statistic(z, x[:6]).value)(x), of_error(equal)

    gradient, of_error = gradients(x, jnp.ones((4, d)))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)
    assert np.all(np.isfinite(of_error))


@pytest.mark.parametrize("d", [2, 12])
def test_gradient_matches_differences(d, x64):
    x, y = np.split(np.random.default_rng(d).normal(size=(16, d)), [9])
    energy = jax.jit(lambda z: energy_distance(z, jnp.asarray(y), chunk=4).value)
    chex.assert_numerical_grads(energy, (jnp.asarray(x),), 1)


def test_maps_over_classes():
    x = jax.random.normal(jax.random.key(1), (3, 30, 2))
    y = jax.random.normal(jax.random.key(2), (3, 50, 2)) * jnp.asarray([0.5, 1, 2])[:, None, None]
    mapped = jax.jit(jax.vmap(lambda a, b: energy_distance(a, b, chunk=16)))(x, y)
    for c in range(3):
        one = compiled_energy(x[c], y[c], chunk=16)
        chex.assert_trees_all_close(jax.tree.map(lambda e, c=c: e[c], mapped), one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize(("of", "copies"), [(lambda f: f, 4), (jax.grad, 10)])
def test_memory_is_bounded_at_a_million(d, of, copies):
    """Compiled, not run: a million against a million pairs would be 4 terabytes; the program keeps copies of rows."""
    n = 10**6
    sample = jax.ShapeDtypeStruct((n, d), jnp.float32)
    compiled = jax.jit(of(lambda x, y: energy_distance(x, y).value)).lower(sample, sample).compile()
    rows = 4 * n * d
    blocks = 4 * 512 * 512
    columns = 4 * n  # one number per point: witnesses, padding, sums
    assert compiled.memory_analysis().temp_size_in_bytes < copies * (rows + columns + blocks)


def test_refusals():
    good = jnp.zeros((3, 2))
    for beta in (0.0, 2.0, -1.0):
        with pytest.raises(ValueError, match="beta"):
            distance_kernel(beta)
    for bad in (jnp.zeros((1, 2)), jnp.zeros((3, 1)), jnp.zeros(3)):
        with pytest.raises(ValueError, match="samples must be"):
            energy_distance(good, bad)


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_a_sample_that_is_nan_is_at_no_distance_that_counts(beta):
    """The whole estimate is NaN: as a distance of 0 it would lower it."""
    x, y = jnp.ones((4, 2)).at[1, 0].set(jnp.nan), jnp.zeros((6, 2))
    assert jnp.isnan(energy_distance(x, y, beta).value)

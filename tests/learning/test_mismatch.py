"""Mismatch estimators: closed-form expectations, algebraic identities, and finite gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from guidance.learning.mismatch import energy_offset, grouped_mismatch, pairwise_power, particle_mismatch
from tests import oracles

# compiled once for each beta and shape; an eager call would compile every primitive on its own
_mismatch = jax.jit(particle_mismatch, static_argnames="beta")
_gradient = jax.jit(jax.grad(particle_mismatch), static_argnames="beta")
BETAS = [0.5, 1.0, 1.75, 2.0]


def _mean_distance(mean, sd):
    """E|Z| for Z ~ N(mean, sd^2): the folded normal."""
    return sd * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * sd**2)) + mean * (1 - 2 * stats.norm.cdf(-mean / sd))


def _half_energy_distance(m1, s1, m2, s2):
    """E|X - Y| - E|X - X'|/2 - E|Y - Y'|/2 of two one-dimensional Gaussians."""
    return (
        _mean_distance(m1 - m2, np.hypot(s1, s2))
        - 0.5 * _mean_distance(0, s1 * 2**0.5)
        - 0.5 * _mean_distance(0, s2 * 2**0.5)
    )


def _groups(seed, groups, m, k, m1=0.0, s1=1.0, m2=0.0, s2=1.0, dim=1):
    y_key, x_key = jax.random.split(jax.random.key(seed))
    y = m1 + s1 * jax.random.normal(y_key, (groups, m, dim))
    return y, m2 + s2 * jax.random.normal(x_key, (groups, k, dim))


def _particles(seed, m, k, dim=3):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(m, dim))), jnp.asarray(rng.normal(size=(k, dim)))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_formula_pair_by_pair(beta, lam, x64):
    y, x = _particles(0, 4, 3)
    a, b = np.asarray(y), np.asarray(x)
    cross = np.mean([np.linalg.norm(p - q) ** beta for p in a for q in b])
    repulsion = np.mean([np.linalg.norm(a[i] - a[j]) ** beta for i in range(4) for j in range(4) if i != j])
    got = float(_mismatch(y, x, beta=beta, lam=lam))
    assert got == pytest.approx(cross - lam / 2 * repulsion, rel=1e-9)
    offset = np.mean([np.linalg.norm(b[i] - b[j]) ** beta for i in range(3) for j in range(3) if i != j])
    assert float(energy_offset(x[None], beta)) == pytest.approx(-offset / 2, rel=1e-9)


@pytest.mark.parametrize("m, k", [(2, 2), (3, 5), (4, 1)])
@pytest.mark.parametrize("laws", [(0.0, 1.0, 0.0, 1.0), (0.7, 1.5, -0.4, 0.6)], ids=["equal", "different"])
def test_unbiased_for_the_energy_distance(m, k, laws):
    """However few the particles, the mean over many draws is the closed form of two Gaussians."""
    y, x = _groups(0, 20_000, m, k, *laws)
    values = jax.jit(jax.vmap(lambda a, b: particle_mismatch(a, b, 1.0, 1.0)))(y, x)
    remainder = -0.5 * _mean_distance(0, laws[3] * 2**0.5)
    expected = _half_energy_distance(*laws) - remainder
    assert abs(np.asarray(values, np.float64).mean() - expected) < 5 * oracles.standard_error(values)


def test_mismatch_and_offset_make_half_the_energy_distance():
    for laws in ((0.0, 1.0, 0.0, 1.0), (0.7, 1.5, -0.4, 0.6)):
        y, x = _groups(1, 20_000, 4, 4, *laws)
        each = jax.vmap(lambda a, b: grouped_mismatch(a[None], b[None], 1.0, 1.0) + energy_offset(b[None], 1.0))(y, x)
        error = abs(np.asarray(each, np.float64).mean() - _half_energy_distance(*laws))
        assert error < 5 * oracles.standard_error(each)


def test_a_biased_estimate_would_be_noticed():
    """Keeping the pairs of a particle with itself (a V-statistic) misses by far more than the tolerance above."""
    y, x = _groups(0, 20_000, 3, 5)
    repulsion = jax.vmap(lambda a: jnp.mean(pairwise_power(a, a, 1.0)))(y)
    cross = jax.vmap(lambda a, b: jnp.mean(pairwise_power(a, b, 1.0)))(y, x)
    values = cross - 0.5 * repulsion
    expected = 0.5 * _mean_distance(0, 2**0.5)
    assert abs(np.asarray(values, np.float64).mean() - expected) > 20 * oracles.standard_error(values)


def test_one_particle_has_no_repulsion():
    y, x = _particles(2, 1, 4)
    for lam in (0.0, 1.0):
        got = _mismatch(y, x, beta=1.0, lam=lam)
        expected = np.mean([np.linalg.norm(np.asarray(y[0] - q)) for q in np.asarray(x)])
        assert float(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("m, k", [(2, 2), (4, 3)])
def test_beta_2_is_mean_matching(m, k, x64):
    """|y_bar - x_bar|^2 + S_x/k + S_y/m - S_y/(m-1), S the sums of squared deviations: no higher moments of y."""
    y, x = _particles(3, m, k)
    spread = lambda a: float(jnp.sum((a - jnp.mean(a, 0, keepdims=True)) ** 2))  # noqa: E731
    means = float(jnp.sum((jnp.mean(y, 0) - jnp.mean(x, 0)) ** 2))
    expected = means + spread(x) / k + spread(y) / m - spread(y) / (m - 1)
    assert float(_mismatch(y, x, beta=2.0, lam=1.0)) == pytest.approx(expected, rel=1e-9)


def test_beta_2_without_repulsion_is_the_mean_square(x64):
    y, x = _particles(4, 3, 2)
    expected = np.mean([np.sum((p - q) ** 2) for p in np.asarray(y) for q in np.asarray(x)])
    assert float(_mismatch(y, x, beta=2.0, lam=0.0)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("precision", [jnp.float32, jnp.float64])
def test_gradients_are_finite_where_particles_coincide(beta, precision, x64):
    same = jnp.ones((3, 2), precision)
    gradient = _gradient(same, same, beta=beta, lam=1.0)
    chex.assert_tree_all_finite(gradient)
    chex.assert_trees_all_close(gradient, jnp.zeros_like(same), atol=1e-6)
    # one pair coincides, the others do not
    y, x = _particles(5, 3, 3, 2)
    y = y.at[0].set(x[0]).astype(precision)
    chex.assert_tree_all_finite(_gradient(y, x.astype(precision), beta=beta, lam=1.0))


@pytest.mark.parametrize("beta", BETAS)
def test_gradient_is_the_analytic_one(beta, x64):
    """d/dy_i = (beta/(m k)) sum_k |y_i - x_k|^(beta-2) (y_i - x_k) - (beta lam/(m (m-1))) sum_j |..|^(beta-2) (..)."""
    y, x = _particles(6, 4, 3)
    pull = lambda d: np.linalg.norm(d) ** (beta - 2) * d  # noqa: E731
    a, b = np.asarray(y), np.asarray(x)
    expected = np.stack(
        [
            beta / 12 * sum(pull(a[i] - q) for q in b)
            - beta * 0.8 / 12 * sum(pull(a[i] - a[j]) for j in range(4) if j != i)
            for i in range(4)
        ]
    )
    gradient = _gradient(y, x, beta=beta, lam=0.8)
    chex.assert_trees_all_close(gradient, expected, rtol=1e-8, atol=1e-10)


def test_invariances(x64):
    """Order, a common shift and a rotation change nothing; a common factor c multiplies by c^beta."""
    y, x = _particles(7, 4, 5)
    value = _mismatch(y, x, beta=1.5, lam=1.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    for a, b in ((y[::-1], x[::-1]), (y + 2.0, x + 2.0), (y @ rotation, x @ rotation)):
        chex.assert_trees_all_close(_mismatch(a, b, beta=1.5, lam=1.0), value, rtol=1e-9)
    chex.assert_trees_all_close(_mismatch(3 * y, 3 * x, beta=1.5, lam=1.0), 3**1.5 * value, rtol=1e-9)


def test_particles_of_any_shape_are_flattened():
    y, x = (jnp.asarray(np.random.default_rng(8).normal(size=(3, 2, 2, 1)), jnp.float32) for _ in range(2))
    x = x + 1
    flat = particle_mismatch(y.reshape(3, 4), x.reshape(3, 4), 1.75, 1.0)
    chex.assert_trees_all_equal(particle_mismatch(y, x, 1.75, 1.0), flat)


def test_groups_are_averaged_and_never_mixed():
    y, x = _groups(9, 3, 4, 2)
    y = y + 100 * jnp.arange(3.0)[:, None, None]
    x = x + 100 * jnp.arange(3.0)[:, None, None]
    each = [float(_mismatch(y[i], x[i], beta=1.0, lam=1.0)) for i in range(3)]
    assert float(grouped_mismatch(y, x, 1.0, 1.0)) == pytest.approx(np.mean(each), rel=1e-5)


def test_beta_may_be_traced():
    y, x = (a.astype(jnp.float32) for a in _particles(10, 3, 3))
    traced = jax.jit(lambda beta: particle_mismatch(y, x, beta, 1.0))(1.0)
    chex.assert_trees_all_close(traced, particle_mismatch(y, x, 1.0, 1.0), rtol=1e-5)

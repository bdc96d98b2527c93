"""Group normalisation against flax's, its definition and its invariances."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.nets.normalisation import GroupNorm

EPSILON = 1e-5


def _setting(shape, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, 2.0, shape) * rng.uniform(0.1, 10, shape[-1])  # channels far apart, groups away from zero
    return x.astype(dtype), {"scale": rng.normal(size=shape[-1:]), "bias": rng.normal(size=shape[-1:])}


@jax.jit
def _plain(x):
    """Two groups, without scale and bias, next to no epsilon."""
    ones = jnp.ones(x.shape[-1])
    return GroupNorm(2, 1e-12).apply({"params": {"scale": ones, "bias": 0 * ones}}, x)


@pytest.mark.parametrize(("shape", "groups"), [((2, 5, 3, 12), 4), ((3, 7, 6), 1), ((2, 4, 4, 6), 6)])
def test_values_and_gradients_are_those_of_flax(x64, shape, groups):
    x, params = _setting(shape)
    ours, flax = GroupNorm(groups, EPSILON), nn.GroupNorm(groups, epsilon=EPSILON, use_fast_variance=False)
    chex.assert_trees_all_equal_shapes_and_dtypes(ours.init(jax.random.key(0), x), flax.init(jax.random.key(0), x))
    weight = np.random.default_rng(1).normal(size=shape)

    def of(net):
        def loss(params, x):
            y = net.apply({"params": params}, x)
            return jnp.sum(weight * y**2), y

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    chex.assert_trees_all_close(of(ours), of(flax), rtol=1e-11, atol=1e-12)


def test_each_group_of_each_sample_has_mean_zero_and_variance_one(x64):
    x, _ = _setting((3, 6, 5, 8))
    y = _plain(x)
    groups = np.asarray(y).reshape(3, 30, 2, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(groups.var((1, 3)), 1, rtol=1e-9)
    np.testing.assert_allclose(_plain(5 * x - 2), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
def test_statistics_are_float32_whatever_the_dtype_of_the_result(dtype):
    x, params = _setting((2, 32, 32, 16), dtype=np.float32)
    x, params = jnp.asarray(x + 200, jnp.bfloat16), jax.tree.map(jnp.float32, params)
    ours, flax = GroupNorm(4, EPSILON, dtype), nn.GroupNorm(4, epsilon=EPSILON, use_fast_variance=False, dtype=dtype)
    y, expected = (net.apply({"params": params}, x) for net in (ours, flax))
    assert y.dtype == expected.dtype == (dtype or jnp.float32)
    # a value of bfloat16 may be rounded to either side; sums in bfloat16 would be off by far more
    np.testing.assert_allclose(np.float32(y), np.float32(expected), atol=3e-2 if dtype == jnp.bfloat16 else 2e-5)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 groups do not divide 8 channels"):
        GroupNorm(3, EPSILON).init(jax.random.key(0), jnp.zeros((1, 2, 2, 8)))

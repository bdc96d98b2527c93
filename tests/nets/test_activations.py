"""GELU and layer normalisation against JAX's and flax's: values and derivatives of both kinds."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.nets.activations import gelu, tanh_gelu
from guidance.nets.normalisation import LayerNorm, normalised

EPSILON = 1e-5


def _flax_norm(x):
    return nn.LayerNorm(EPSILON, use_scale=False, use_bias=False, use_fast_variance=False).apply({}, x)


PAIRS = {
    "gelu": (gelu, lambda x: jax.nn.gelu(x, approximate=False)),
    "tanh_gelu": (tanh_gelu, jax.nn.gelu),
    "normalised": (lambda x: normalised(x, EPSILON), _flax_norm),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_derivatives_are_the_plain_ones(x64, name):
    x, tangent = np.random.default_rng(0).normal(scale=2.0, size=(2, 3, 8))

    def all_of(f):
        square = lambda x: jnp.sum(f(x) ** 2)  # noqa: E731
        second = jax.grad(lambda x: jnp.sum(jax.grad(square)(x) * tangent))
        return jax.jit(lambda x: (jax.jvp(f, (x,), (tangent,)), jax.grad(square)(x), second(x)))(x)

    ours, plain = PAIRS[name]
    chex.assert_trees_all_close(all_of(ours), all_of(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
def test_a_backward_pass_keeps_little(name):
    """Of an input [64, 32] one array of its size, and a column for the normalisation; JAX's own keep two to five."""
    x = jnp.zeros((64, 32))
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(PAIRS[name][0], x)[1], x))
    assert sum(leaf.size for leaf in kept) <= 64 * 32 + 64


def test_layer_norm_has_the_params_and_the_numbers_of_flax():
    x = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (4, 16)), jnp.float32)
    ours, flax = LayerNorm(EPSILON), nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False)
    chex.assert_trees_all_equal(ours.init(jax.random.key(0), x), flax.init(jax.random.key(0), x))
    rng = np.random.default_rng(1)
    params = {"params": {name: jnp.asarray(rng.normal(size=16), jnp.float32) for name in ("scale", "bias")}}
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)
    low = jnp.asarray(x, jnp.bfloat16)
    assert ours.apply(params, low).dtype == flax.apply(params, low).dtype == jnp.float32

"""GELU and layer normalisation against JAX's and flax's: values and derivatives of both kinds."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.nets.activations import tanh_gelu
from guidance.nets.normalisation import normalised

EPSILON = 1e-5


def _flax_norm(x):
    return nn.LayerNorm(EPSILON, use_scale=False, use_bias=False, use_fast_variance=False).apply({}, x)


PAIRS = {
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

"""Convolutions and pools written in other ways are the same ones, and so are their gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.nets.convolution import convolve, pool3

NHWC = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "precision": jax.lax.Precision.HIGHEST}


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(1, 1), (3, 3), (1, 7), (5, 2), (4, 4)])
def test_it_is_the_convolution(sides, stride, padding):
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (2, 9, 8, 3)), jax.random.normal(keys[1], (*sides, 3, 5))
    strides = (stride, stride)
    expected, back = jax.vjp(lambda *a: jax.lax.conv_general_dilated(*a, strides, padding, **NHWC), x, kernel)
    found, back_too = jax.vjp(lambda *a: convolve(*a, strides, padding, **NHWC), x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    cotangent = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    for one, other in zip(back_too(cotangent), back(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sides", [(3, 3), (9, 8), (4, 7)])
@pytest.mark.parametrize(
    ("ours", "flax"),
    [
        (lambda x: pool3(x, jnp.add, fill=0), lambda x: 9 * nn.avg_pool(x, (3, 3), padding="SAME")),
        (lambda x: pool3(x, jnp.maximum, fill=-jnp.inf), lambda x: nn.max_pool(x, (3, 3), padding="SAME")),
        (lambda x: pool3(x, jnp.maximum, stride=2), lambda x: nn.max_pool(x, (3, 3), (2, 2))),
        (lambda x: pool3(x, jnp.minimum), lambda x: -nn.max_pool(-x, (3, 3))),
    ],
)
def test_it_is_the_pool(ours, flax, sides):
    x = jax.random.normal(jax.random.key(0), (2, *sides, 3)) - 2
    expected, back = jax.vjp(flax, x)
    found, back_too = jax.vjp(ours, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    cotangent = jnp.cos(jnp.arange(expected.size, dtype=jnp.float32)).reshape(expected.shape)
    np.testing.assert_allclose(back_too(cotangent)[0], back(cotangent)[0], rtol=1e-5, atol=1e-5)

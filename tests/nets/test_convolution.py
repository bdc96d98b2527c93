"""Convolutions and pools written in other ways are the same ones, and so are their gradients."""

import functools
import re

import chex
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

    @functools.partial(jax.jit, static_argnums=0)
    def of(convolution, x, kernel):
        y, back = jax.vjp(lambda *a: convolution(*a, (stride, stride), padding, **NHWC), x, kernel)
        return y, back(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

    expected, expected_gradients = of(jax.lax.conv_general_dilated, x, kernel)
    found, gradients = of(convolve, x, kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_every_derivative_is_the_convolution_s(x64, stride):
    """Forward, twice, for one argument alone, under vmap, recomputed, in a scan."""
    rng = np.random.default_rng(0)
    x, kernel, dx, dkernel = (rng.normal(size=shape) for shape in [(2, 6, 5, 3), (3, 3, 3, 3)] * 2)

    def of(convolution):
        f = functools.partial(convolution, window_strides=(stride, stride), padding="SAME")
        loss = lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel)))  # noqa: E731
        along_x = lambda x, kernel: jnp.vdot(jax.grad(loss)(x, kernel), dx)  # noqa: E731

        def repeated(x, kernel):
            block = jax.checkpoint(lambda x, _: (jnp.tanh(f(x, kernel)) if stride == 1 else x, f(x, kernel).sum()))
            return jax.lax.scan(block, x, None, length=3)[1].sum()

        return (
            jax.jvp(f, (x, kernel), (dx, dkernel)),
            jax.jvp(lambda x: f(x, kernel), (x,), (dx,))[1],
            jax.grad(loss, argnums=1)(x, kernel),
            jax.grad(along_x, argnums=(0, 1))(x, kernel),
            jax.vmap(jax.grad(lambda row: loss(row[None], kernel)))(x),
            jax.vmap(jax.grad(lambda kernel: loss(x, kernel)))(jnp.stack([kernel, dkernel])),
            jax.grad(repeated, argnums=(0, 1))(x, kernel),
        )

    ours = jax.jit(of, static_argnums=0)(lambda x, kernel, window_strides, padding: convolve(
        x, kernel, window_strides, padding, **NHWC
    ))  # fmt: skip
    theirs = jax.jit(of, static_argnums=0)(functools.partial(jax.lax.conv_general_dilated, **NHWC))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_gradients_in_a_loop_are_laid_out_as_the_cpu_wants_them():
    """Any other layout is computed one product at a time there."""

    def loss(x, kernel):
        step = lambda x, _: (convolve(x, kernel, (1, 1), "SAME", **NHWC), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, x, None, length=2)[0] ** 2)

    shapes = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 4, 4))
    text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile().as_text()
    if jax.default_backend() == "cpu":
        layouts = re.findall(r"dim_labels=(\S+?)[,\s]", text)
        assert len(layouts) >= 3 and set(layouts) == {"b01f_01io->b01f"}


@pytest.mark.parametrize(
    ("ours", "flax"),
    [
        (lambda x: pool3(x, jnp.add, fill=0), lambda x: 9 * nn.avg_pool(x, (3, 3), padding="SAME")),
        (lambda x: pool3(x, jnp.maximum, fill=-jnp.inf), lambda x: nn.max_pool(x, (3, 3), padding="SAME")),
        (lambda x: pool3(x, jnp.maximum, stride=2), lambda x: nn.max_pool(x, (3, 3), (2, 2))),
        (lambda x: pool3(x, jnp.minimum), lambda x: -nn.max_pool(-x, (3, 3))),
    ],
)
def test_it_is_the_pool(ours, flax):
    """Of images with a single window, and with sides that windows of stride 2 do and do not exhaust."""
    images = [jax.random.normal(jax.random.key(0), (2, *sides, 3)) - 2 for sides in ((3, 3), (9, 8), (4, 7))]

    @functools.partial(jax.jit, static_argnums=0)
    def of(pool, images):
        pooled = [pool(x) for x in images]
        weighted = lambda x: jnp.vdot(pool(x), jnp.cos(jnp.arange(pool(x).size)).reshape(pool(x).shape))  # noqa: E731
        return pooled, [jax.grad(weighted)(x) for x in images]

    (found, gradients), (expected, expected_gradients) = of(ours, images), of(flax, images)
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-5, atol=1e-5)

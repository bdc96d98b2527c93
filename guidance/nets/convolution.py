"""Convolutions and pools of the kinds that XLA is slow at on a CPU, written as ones that it is fast at.

A 1x1 convolution is a matrix product, and as such twice as fast. A "VALID" one at stride 1 is slower by a factor of
two to four than one with a row of padding that is cut off again; at stride 2 some take up to 1.7 times as long as one
product of gathered patches. A 3x3 pool is slower by a factor of three to eight than three rows and then three columns
put together. Inside a loop or a branch (a scan over the steps of a rollout) XLA's CPU compiler runs a convolution
that is not laid out NHWC, HWIO one product at a time, and JAX's gradients of convolutions are not: written with
explicit transpositions they are, and 15 to 30 times faster there. The numbers are those of
`jax.lax.conv_general_dilated` and `reduce_window` up to the order of the sums.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from guidance.types import Array


def convolve(x: Array, kernel: Array, strides, padding, **how) -> Array:
    """What `Conv` calls instead of `jax.lax.conv_general_dilated`: x [n, H, W, C], kernel [h, w, C, D]."""
    sides = kernel.shape[:2]
    if sides == (1, 1) and tuple(strides) == (1, 1):
        return jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0], precision=how["precision"])
    if padding == "VALID" and tuple(strides) == (1, 1):
        return _convolution(strides, ((0, 1), (0, 0)), how)(x, kernel)[:, :-1]
    if padding == "VALID" and tuple(strides) == (2, 2) and jax.default_backend() == "cpu":
        patches = _patches(x, sides)
        return jnp.dot(patches, kernel.reshape(patches.shape[-1], -1), precision=how["precision"])
    return _convolution(strides, padding, how)(x, kernel)


def _patches(x: Array, sides: tuple[int, ...]) -> Array:
    """Returns the whole windows of x [n, H, W, C] at stride 2, in a kernel's order: [n, rows, columns, h w C]."""
    rows, columns = (size - side + 1 for size, side in zip(x.shape[1:3], sides, strict=True))
    corners = [(i, j) for i in range(sides[0]) for j in range(sides[1])]
    return jnp.concatenate([x[:, i : i + rows : 2, j : j + columns : 2] for i, j in corners], axis=-1)


def _convolution(strides, padding, how: dict) -> Callable[[Array, Array], Array]:
    """(x, kernel) -> the convolution; on a CPU with tangents whose transpositions are laid out NHWC, HWIO again.

    Reverse mode never runs the tangents below, only their transpositions: JAX's rule for those exchanges the roles of
    the axes, batch with feature and input with output, of what is laid out the other way round here.
    """

    def laid_out(x, kernel, *layout):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how | {"dimension_numbers": layout})

    def plain(x, kernel):
        return laid_out(x, kernel, "NHWC", "HWIO", "NHWC")

    if jax.default_backend() != "cpu":
        return plain

    def with_tangent(primals, tangents):
        (x, kernel), (dx, dkernel) = primals, tangents
        parts = []
        if not isinstance(dx, SymbolicZero):
            parts.append(laid_out(dx, kernel.swapaxes(2, 3), "NHWC", "HWOI", "NHWC"))
        if not isinstance(dkernel, SymbolicZero):
            turned = laid_out(x.transpose(3, 1, 2, 0), dkernel.transpose(2, 0, 1, 3), "CHWN", "IHWO", "HWNC")
            parts.append(turned.transpose(2, 0, 1, 3))
        return convolution(x, kernel), sum(parts[1:], parts[0])

    convolution = jax.custom_jvp(plain)
    convolution.defjvp(with_tangent, symbolic_zeros=True)
    return convolution


Conv = functools.partial(nn.Conv, conv_general_dilated=convolve)  # flax's, its params and its arguments


def pool3(x: Array, combine: Callable[[Array, Array], Array], stride: int = 1, fill: float | None = None) -> Array:
    """The entries of each 3x3 window of x [n, H, W, C] put together by `combine`, which is jnp.add, jnp.maximum, ...

    fill: what stands around x, so that at stride 1 the result has the shape of x; None for whole windows only.
    """
    if fill is not None:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=fill)
    for axis in (1, 2):
        last = x.shape[axis] - 3
        first, second, third = (jax.lax.slice_in_dim(x, i, last + i + 1, stride, axis) for i in range(3))
        x = combine(combine(first, second), third)
    return x

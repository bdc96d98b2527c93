"""Convolutions and pools of the kinds that XLA is slow at on a CPU, written as ones that it is fast at.

A 1x1 convolution is a matrix product, and as such twice as fast; a "VALID" one at stride 1 is slower by a factor of
two to four than a "SAME" one whose edge is cut off; a 3x3 pool is slower by a factor of three to eight than three rows
and then three columns put together. The numbers are those of `jax.lax.conv_general_dilated` and `reduce_window` up to
the order of the sums.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.types import Array


def convolve(x: Array, kernel: Array, strides, padding, **how) -> Array:
    """What flax's `nn.Conv(..., conv_general_dilated=convolve)` calls: x [n, H, W, C], kernel [h, w, C, D]."""
    sides = kernel.shape[:2]
    if sides == (1, 1) and tuple(strides) == (1, 1):
        return jnp.einsum("nhwc,cd->nhwd", x, kernel[0, 0], precision=how["precision"])
    if padding == "VALID" and tuple(strides) == (1, 1):
        top, left = ((side - 1) // 2 for side in sides)
        whole = jax.lax.conv_general_dilated(x, kernel, strides, "SAME", **how)
        rows, columns = (size - side + 1 for size, side in zip(x.shape[1:3], sides, strict=True))
        return whole[:, top : top + rows, left : left + columns]
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, **how)


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

"""Convolutions of the kinds that XLA is slow at on a CPU, written as ones that it is fast at.

A 1x1 convolution is a matrix product, and as such twice as fast; a "VALID" one at stride 1 is slower by a factor of
two to four than a "SAME" one whose edge is cut off. The numbers are those of `jax.lax.conv_general_dilated` up to the
order of the sums.
"""

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

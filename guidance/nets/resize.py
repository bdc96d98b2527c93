"""Linear interpolation of images as matrices, in the conventions that published networks were fed by."""

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array


def bilinear_matrix(size: int, target: int, centred: bool = True) -> np.ndarray:
    """The rows that interpolate `size` samples linearly at `target` places: [target, size], rows sum to one.

    Output pixel i lies at (i + 1/2) size/target - 1/2 of the input, between pixel centres, or, unless `centred`, at
    i size/target, where the last pixels are not reached symmetrically. Beyond the outermost samples the edge repeats.
    Nothing is averaged when shrinking: samples are skipped, as both conventions do.
    Source: centred, torch's F.interpolate(mode="bilinear", align_corners=False); not centred, TensorFlow 1's
    resize_bilinear(align_corners=False), kernels/image_resizer_state.h.
    """
    at = np.arange(target) * size / target if not centred else (np.arange(target) + 0.5) * size / target - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(at, 0, size - 1)[:, None] - np.arange(size)[None]))


def bilinear(images: Array, side: int, centred: bool = True) -> Array:
    """Images [batch, H, W, C] as [batch, side, side, C], each axis by `bilinear_matrix`. Source: as there."""
    rows, columns = (jnp.asarray(bilinear_matrix(n, side, centred), images.dtype) for n in images.shape[1:3])
    # HIGHEST: a matrix product on an accelerator would round the pixels to 8 or 11 bits
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=jax.lax.Precision.HIGHEST)

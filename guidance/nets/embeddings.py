"""Fixed features of time and place: what transformers and U-Nets of diffusion are told before any weight acts."""

import math

import jax.numpy as jnp
import numpy as np

from guidance.types import Array

MAX_PERIOD = 10000.0


def sinusoids(t: Array, width: int, freq_shift: int = 0) -> Array:
    """[cos(t f_k), sin(t f_k)], f_k = 10000^(-k / (width/2 - freq_shift)), k = 0 .. width/2 - 1: [batch, width].

    t [batch], a timestep, may be fractional. The frequencies are rounded as in training: computed in the dtype of t,
    float32 at least. freq_shift = 0 in the code of GLIDE, ADM, DiT and SiT, 1 in that of DDPM and in diffusers' DiT.
    Raises ValueError for an odd width.
    Source: Denoising Diffusion Probabilistic Models, arXiv 2006.11239, its code; Attention Is All You Need, arXiv
    1706.03762, section 3.5.
    """
    if width % 2:
        raise ValueError(f"sinusoids come in pairs: the width must be even, got {width}")
    number = jnp.promote_types(t.dtype, jnp.float32).type
    k = np.arange(width // 2, dtype=number)
    frequencies = np.exp(-number(math.log(MAX_PERIOD)) * k / number(width // 2 - freq_shift))
    angles = t[:, None] * jnp.asarray(frequencies)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """The fixed embedding of a grid's places, row by row: [rows * columns, width], float64.

    [sin(c f_k), cos(c f_k), sin(r f_k), cos(r f_k)] at column c = 0, 1, .. and row r, f_k = 10000^(-k / (width/4)).
    Raises ValueError unless the width is a multiple of 4.
    Source: Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, its code; DiT, arXiv 2212.09748.
    """
    if width % 4:
        raise ValueError(f"an embedding of places needs a width that is a multiple of 4, got {width}")
    frequencies = MAX_PERIOD ** (-np.arange(width // 4) / (width / 4))

    def along(places):
        angles = places.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    row, column = np.mgrid[:rows, :columns]
    return np.concatenate([along(column), along(row)], axis=1)

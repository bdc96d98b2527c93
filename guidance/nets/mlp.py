"""A small MLP denoiser for vectors: mixtures in any dimension, 8x8 digits.

The condition is an int label in {0, ..., num_classes}; the last one is the null label, trained by dropping conditions.
"""

import flax.linen as nn
import jax.numpy as jnp

from guidance.types import Array


def fourier(u: Array, width: int, highest: float = 64.0) -> Array:
    """[sin(f_k u), cos(f_k u)] with f_k geometric from 1 to `highest`: [batch] -> [batch, width]."""
    frequencies = jnp.geomspace(1.0, highest, width // 2)
    angles = u[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class DenoiserMLP(nn.Module):
    """prediction(x [batch, ...], t [batch], cond int [batch]) -> [batch, ...], a residual MLP over the flat vector.

    skip: residual layers, 0 .. depth - 1, that add nothing. `functools.partial(net.apply, skip=(1,))` wrapped by
    `as_denoise` is a perturbed reference for `guides.autoguided`. Raises ValueError for a layer that is not there.
    """

    num_classes: int
    width: int = 128
    depth: int = 3
    time_width: int = 32

    @nn.compact
    def __call__(self, x: Array, t: Array, cond: Array, skip: tuple[int, ...] = ()) -> Array:
        if not set(skip) <= set(range(self.depth)):
            raise ValueError(f"skip names layers from 0 to {self.depth - 1}, got {skip}")
        flat = x.reshape(x.shape[0], -1)
        context = nn.Dense(self.width)(fourier(t, self.time_width))
        context = context + nn.Embed(self.num_classes + 1, self.width)(cond)
        h = nn.Dense(self.width)(flat) + context
        for i in range(self.depth):
            # built even where skipped: the names of the later layers count them
            outer, inner = nn.Dense(self.width), nn.Dense(self.width, use_bias=False)
            if i not in skip:
                h = h + outer(nn.silu(h + inner(nn.silu(context))))
        return nn.Dense(flat.shape[-1], kernel_init=nn.initializers.zeros)(nn.silu(h)).reshape(x.shape)

"""Group normalisation as the U-Nets and the autoencoder use it, in an order that a CPU is fast at."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from guidance.types import Array


class GroupNorm(nn.Module):
    """y = scale (x - mean_g)/sqrt(var_g + epsilon) + bias over groups of neighbouring channels of x [batch, ..., C].

    mean_g and var_g are over all places and the C / groups channels of a group: flax's `nn.GroupNorm(groups,
    use_fast_variance=False)`, with its params (`scale` and `bias`, both [C]) and its numbers up to the order of the
    sums, in a fifth of its time on a CPU. There flax's sum over places and channels at once goes entry by entry, so
    this one sums over the places first; and XLA would look up the group of every entry of x again, were the means not
    handed to the channels by a matrix product, which no fusion swallows. Statistics are float32 or more; dtype: of the
    result, None for what x and the params promote to. Raises ValueError where groups do not divide C.
    Source: Group Normalization, arXiv 1803.08494, eq. 7.
    """

    groups: int
    epsilon: float
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(f"{self.groups} groups do not divide {channels} channels")
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        dtype = jnp.result_type(x, scale, bias) if self.dtype is None else self.dtype

        h = x.reshape(x.shape[0], -1, channels).astype(jnp.promote_types(x.dtype, jnp.float32))
        h = h - self._means(h)[:, None]
        factor = jax.lax.rsqrt(self._means(h * h) + self.epsilon) * scale[None]
        return (h * factor[:, None] + bias[None, None]).reshape(x.shape).astype(dtype)

    def _means(self, h: Array) -> Array:
        """The mean of each channel's group, [batch, C], of h [batch, places, C]."""
        batch, _, channels = h.shape
        groups = self.groups
        of_groups = jnp.mean(jnp.mean(h, axis=1).reshape(batch, groups, -1), axis=-1)
        own = jnp.broadcast_to(jnp.eye(groups, dtype=h.dtype)[:, :, None], (groups, groups, channels // groups))
        return jnp.dot(of_groups, own.reshape(groups, channels), precision="highest")

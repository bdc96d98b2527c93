"""Normalisations in an order that a CPU is fast at: over groups of channels for U-Nets and the autoencoder, over
tokens' features for transformers."""

import functools
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


class LayerNorm(nn.Module):
    """y = scale (x - mean)/sqrt(var + epsilon) + bias over the last axis of x [..., C], scale and bias [C].

    flax's `nn.LayerNorm(epsilon, use_fast_variance=False)`, with its params and its numbers up to the order of sums.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        around = (1,) * (x.ndim - 1)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        y = normalised(x, self.epsilon) * scale.reshape(*around, -1) + bias.reshape(*around, -1)
        return y.astype(jnp.result_type(x, scale, bias))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def normalised(x: Array, epsilon: float) -> Array:
    """Returns y = (x - mean) r over the last axis, r = 1/sqrt(var + epsilon), in float32 at least.

    The derivative is r (dx - mean(dx) - y mean(y dx)): a backward pass keeps y and r, half of what JAX's own
    keeps. Source: Layer Normalization, arXiv 1607.06450, eq. 4.
    """
    return _normalised(x, epsilon)[0]


@normalised.defjvp
def _(epsilon, primals, tangents):
    (x,), (dx,) = primals, tangents
    y, r = _normalised(x, epsilon)
    dx = dx.astype(y.dtype)
    return y, r * (dx - _mean(dx) - y * _mean(y * dx))


def _normalised(x, epsilon):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    h = x - _mean(x)
    r = jax.lax.rsqrt(_mean(h * h) + epsilon)
    return h * r, r


def _mean(x):
    return jnp.mean(x, axis=-1, keepdims=True)

"""Perturbed attention: what to do to the logits of self-attention for a deliberately worse reference prediction.

The network that attends calls one of these between logits and softmax, in chosen layers, and the result is the `weak`
denoiser of `guides.autoguided` or an entry of `guides.summed`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.types import Array


def identity_attention(logits: Array) -> Array:
    """Logits whose softmax is the identity, so that every token attends to itself: the output is V.

    logits [..., tokens, tokens]. Raises ValueError for other shapes: in cross-attention there is no identity.
    Source: Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, arXiv 2403.17377.
    """
    if logits.shape[-2] != logits.shape[-1]:
        raise ValueError(f"identity attention needs as many queries as keys, got {logits.shape[-2:]}")
    return jnp.where(jnp.eye(logits.shape[-1], dtype=bool), jnp.zeros_like(logits), -jnp.inf)


def mean_query_attention(logits: Array) -> Array:
    """The logits of the mean query, for every query: the mean over the query axis; logits [..., queries, keys].

    The limit of infinite blur of smoothed energy guidance. Its attention row is the v that minimises the mean over i
    of KL(v || softmax(logits_i)). Source: Smoothed Energy Guidance, arXiv 2408.00760.
    """
    return jnp.broadcast_to(jnp.mean(logits, axis=-2, keepdims=True), logits.shape)


def blurred_query_attention(shape: tuple[int, int], sigma) -> Partial:
    """A function of logits [..., height width, keys] that blurs the queries over their places on the image.

        logits'_(i, j) = sum_(k, l) b_ik b_jl logits_(k, l),   b_ik ~ exp(-(i - k)^2 / (2 sigma^2)),  sum_k b_ik = 1

    shape: (height, width) of the tokens, row by row; sigma in tokens, a leaf. Logits are linear in the queries, so
    that this is the attention of the blurred queries. sigma -> 0 changes nothing, sigma -> inf is exactly
    `mean_query_attention`: at the border the kernel is normalised over the image, where official code mirrors the
    image (our choice).
    Raises ValueError where the logits have another number of queries.
    Source: Smoothed Energy Guidance, arXiv 2408.00760.
    """
    return Partial(_Blur(shape), sigma)


class _Blur(NamedTuple):
    """The static half, compared by value."""

    shape: tuple[int, int]

    def __call__(self, sigma, logits: Array) -> Array:
        height, width = self.shape
        if logits.shape[-2] != height * width:
            raise ValueError(f"a blur over {height} x {width} queries got {logits.shape[-2]}")
        rows, columns = _kernel(height, sigma, logits.dtype), _kernel(width, sigma, logits.dtype)
        on_image = logits.reshape(*logits.shape[:-2], height, width, logits.shape[-1])
        return jnp.einsum("ik,jl,...klq->...ijq", rows, columns, on_image).reshape(logits.shape)


def _kernel(n: int, sigma, dtype) -> Array:
    """b [n, n], its rows as in a softmax, which no sigma overflows."""
    places = jnp.arange(n, dtype=dtype)
    tiny = jnp.finfo(dtype).tiny ** 0.5
    scaled = (places[:, None] - places[None]) / jnp.maximum(sigma, tiny).astype(dtype)
    return jax.nn.softmax(-(jnp.minimum(jnp.abs(scaled), 1e3) ** 2) / 2, axis=-1)

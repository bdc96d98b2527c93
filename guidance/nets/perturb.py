"""Perturbed attention: what to do to the logits of self-attention for a deliberately worse reference prediction.

The network that attends calls one of these between logits and softmax, in chosen layers, and the result is the `weak`
denoiser of `guides.autoguided` or an entry of `guides.summed`.
"""

import jax.numpy as jnp

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

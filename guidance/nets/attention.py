"""Attention over heads: the one function that every transformer and U-Net here calls."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.types import Array


def attend(q: Array, k: Array, v: Array, perturb: Callable[[Array], Array] | None = None) -> Array:
    """softmax(q k^T / sqrt(d)) v for each head: [batch, queries, heads, d] x 2 [batch, keys, heads, d] -> as q.

    perturb: a function of the logits [batch, heads, queries, keys] (see `guidance.nets.perturb`), None for none.
    The softmax is computed in float32 at least. The implementation is chosen when the function is traced:
    - On an accelerator `jax.nn.dot_product_attention`, in bfloat16 or float16 on a GPU through cuDNN's fused kernel
      where the head's width allows it (a multiple of 8 up to 128), which never holds the logits.
      The kernel has no forward-mode derivative.
    - On a CPU, and wherever logits are perturbed and hence must be held, two products with the heads in the batch,
      q scaled before the first and the softmax's sums divided by after the second, where there is less to go
      through. A DiT-S/2 pass of 16 on two CPU cores took 1.10 s so, 1.21 s with the whole softmax between the
      products, 1.38 s with jax.nn.dot_product_attention and 2.2 s with einsums over [batch, tokens, heads, d].
      `jax.default_backend` decides, not where the arrays happen to lie.
    Source: Attention Is All You Need, arXiv 1706.03762, eq. 1.
    """
    if perturb is None and jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(q, k, v, implementation=_implementation(q))
    exact = {"preferred_element_type": jnp.promote_types(q.dtype, jnp.float32)}
    q, k, v = (a.swapaxes(1, 2) for a in (q * q.shape[-1] ** -0.5, k, v))
    logits = jnp.matmul(q, k.swapaxes(-1, -2), **exact)
    if perturb is not None:
        logits = perturb(logits)
    terms = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    sums = jnp.sum(terms, axis=-1, keepdims=True)
    return (jnp.matmul(terms.astype(v.dtype), v, **exact) / sums).astype(v.dtype).swapaxes(1, 2)


def _implementation(q: Array) -> str | None:
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    fits = q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return "cudnn" if jax.default_backend() == "gpu" and half and fits else None

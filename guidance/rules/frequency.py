"""Frequency-decoupled guidance, which guides each band of a Laplacian pyramid with a weight of its own."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.ranges import Each, Finite, Number, ranged
from guidance.rules.projected import along
from guidance.rules.stacking import neutral
from guidance.shapes import like
from guidance.types import Array, Rule


@ranged
def frequency_decoupled(factors: Annotated[Any, Each(Number())] = (0.25, 1.0), parallel: Finite = 1.0) -> Rule:
    """Builds frequency-decoupled guidance (FDG), which guides band k with the weight omega factors[k].

        guided = sum_k [ P_k D_c + omega factor_k (g_perp + parallel g_par) ],   g = P_k (D_c - D_u)

    P_k is band k of a Laplacian pyramid of images [batch, H, W, C] with len(factors) bands, the lowest frequencies
    first. Vectors [batch, d] have two bands, mean and residual. g_par is the part of the gap g along P_k D_c. If all
    factors and `parallel` are 1 this is CFG. Costs 2 evaluations per step. Raises ValueError for vectors unless there
    are two factors.
    Source: Guidance in the Frequency Domain Enables High-Fidelity Sampling at Low CFG Scales, arXiv 2506.19713 (its
    w_k - 1 is our omega factor_k).
    """
    return Partial(_frequency_decoupled, tuple(factors), parallel)


@neutral
def _frequency_decoupled(factors, parallel, positive: Array, reference: Array, omega: Array) -> Array:
    added = []
    levels = zip(factors, bands(positive, len(factors)), bands(positive - reference, len(factors)), strict=True)
    for factor, band, gap in levels:
        shared = along(gap, band)
        added.append(like(omega * factor, band) * (gap - shared + parallel * shared))
    return positive + assemble(added)


def bands(x: Array, levels: int) -> list[Array]:
    """Splits x into bands, the lowest frequencies first; `assemble` puts them together again.

    Images are halved in size again and again. Each halving gives one band: the image minus its half enlarged again.
    The lowest band is the smallest image. Vectors have two bands, mean and residual.
    """
    if x.ndim == 2:
        if levels != 2:
            raise ValueError(f"vectors have two bands, mean and residual; got {levels} factors")
        mean = jnp.broadcast_to(jnp.mean(x, axis=-1, keepdims=True), x.shape)
        return [mean, x - mean]
    found = []
    for _ in range(levels - 1):
        smaller = _resize(x, [max(1, (size + 1) // 2) for size in x.shape[1:-1]])
        found.append(x - _resize(smaller, x.shape[1:-1]))
        x = smaller
    return [x, *reversed(found)]


def assemble(parts: list[Array]) -> Array:
    """Returns the array whose bands are `parts`, the lowest frequencies first; the inverse of `bands`."""
    x = parts[0]
    for part in parts[1:]:
        x = part + _resize(x, part.shape[1:-1])
    return x


def _resize(x, sizes):
    return x if x.ndim == 2 else jax.image.resize(x, (x.shape[0], *sizes, x.shape[-1]), "linear")

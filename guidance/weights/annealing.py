"""The annealing network: a guidance scale that depends on time and on how far the branches are apart."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.types import Array


class AnnealingNet(nn.Module):
    """scale(t, |eps_c - eps_u|, lambda) = scale MLP(emb(t), emb(|d|/gap_unit), emb(lambda)) + bias; all [batch].

        emb(v) = [v, cos v, cos 2v, cos 3v]

    gap_unit = 5 is the paper's, for its latents: choose about the size of the gap at hand. Depth, width (about 52k
    parameters, as there), activation and the start at a constant `initial_scale` are our choice.
    Source: Navigating with Annealing Guidance Scale in Diffusion Space, arXiv 2506.24108.
    """

    width: int = 128
    depth: int = 4
    gap_unit: float = 5.0
    initial_scale: float = 0.6

    @nn.compact
    def __call__(self, t: Array, gap_size: Array, lam: Array) -> Array:
        h = jnp.concatenate([_embed(t), _embed(gap_size / self.gap_unit), _embed(lam)], axis=-1)
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width)(h))
        bias = nn.initializers.constant(self.initial_scale)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, bias_init=bias)(h)[..., 0]


def annealing(net: AnnealingNet, params) -> Partial:
    """The function (t, gap_size, lambda) -> scale, all [batch], for `rules.annealed`; its leaves are `params`."""
    return Partial(_Applied(net), params)


@dataclasses.dataclass(frozen=True)
class _Applied:
    """Compared by the network, so that building it twice does not compile twice."""

    net: AnnealingNet

    def __call__(self, params, t, gap_size, lam):
        return self.net.apply(params, t, gap_size, lam)


def _embed(v: Array) -> Array:
    """[v, cos v, cos 2v, cos 3v]: [batch] -> [batch, 4]."""
    return jnp.stack([v, jnp.cos(v), jnp.cos(2 * v), jnp.cos(3 * v)], axis=-1)

"""The annealing network: a guidance scale that depends on time and on the distance between the two predictions."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.types import Array


class AnnealingNet(nn.Module):
    """The network scale(t, d, lambda) = MLP(emb(t), emb(d/gap_unit), emb(lambda)), d = |eps_c - eps_u|; all [batch].

        emb(v) = [v, cos v, cos 2v, cos 3v]

    gap_unit: about the usual size of d; 5 is the paper's, for its latents. The untrained network returns
    `initial_scale`. That, the depth, the width (about 52k parameters, as in the paper) and the activation are our
    choice.
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
    """Returns the function (t, gap_size, lambda) -> scale, all [batch], for `rules.annealed`; `params` are leaves."""
    return Partial(_Applied(net), params)


@dataclasses.dataclass(frozen=True)
class _Applied:
    """The application of a network. It compares by the network, so that building it twice does not compile twice."""

    net: AnnealingNet

    def __call__(self, params, t, gap_size, lam):
        return self.net.apply(params, t, gap_size, lam)


def _embed(v: Array) -> Array:
    """Returns [v, cos v, cos 2v, cos 3v] [batch, 4] for v [batch]."""
    return jnp.stack([v, jnp.cos(v), jnp.cos(2 * v), jnp.cos(3 * v)], axis=-1)

"""The diffusion transformers DiT and SiT on latents: one network, two ways to train and hence to ask it.

Square patches become tokens with a fixed 2-D embedding of their place; transformer blocks whose normalisations are
shifted, scaled and gated by a vector of timestep and class (adaLN-zero); tokens back to patches. DiT is asked for eps
at the discrete timesteps of a variance-preserving diffusion, SiT for the velocity of a rectified flow; `dit_denoiser`
and `sit_denoiser` are the two borders between those conventions and ours.

    net = dit("XL/2", dtype=jnp.bfloat16)
    denoise = dit_denoiser(net, published_dit.from_original(net, arrays))

Sources: Scalable Diffusion Models with Transformers, arXiv 2212.09748; SiT: Exploring Flow and Diffusion-based
Generative Models with Scalable Interpolant Transformers, arXiv 2401.08740.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from guidance import predictions, schedules
from guidance.nets import timesteps
from guidance.nets.activations import tanh_gelu
from guidance.nets.attention import attend
from guidance.nets.embeddings import positions, sinusoids
from guidance.nets.normalisation import normalised
from guidance.nets.residual import computed, held
from guidance.types import Array, Denoise, Schedule

TIME_WIDTH = 256
NORM_EPS = 1e-6
SIZES = {"S": (384, 6, 12), "B": (768, 12, 12), "L": (1024, 16, 24), "XL": (1152, 16, 28)}  # width, heads, depth
PATCHES = (2, 4, 8)
TIMESTEPS = timesteps.log_snr_table(timesteps.linear_betas())  # what the published DiTs were trained at

_XAVIER = nn.initializers.xavier_uniform()
_SMALL = nn.initializers.normal(0.02)
_ZERO = nn.initializers.zeros


def _modulated_norm(h: Array, shift: Array, scale: Array, eps: float, dtype) -> Array:
    return normalised(h, eps).astype(h.dtype if dtype is None else dtype) * (1 + scale) + shift


class Block(nn.Module):
    """A transformer block on h [batch, tokens, width], conditioned on c [batch, width].

    (b1, s1, g1, b2, s2, g2) = Linear(SiLU(c)); h <- h + g1 Attention((1 + s1) LN(h) + b1); h <- h + g2 MLP((1 + s2)
    LN(h) + b2). perturb: a function of the attention's logits, None for none.
    """

    heads: int
    mlp_norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, h: Array, c: Array, perturb: Callable[[Array], Array] | None) -> Array:
        width, dtype = h.shape[-1], self.dtype
        modulation = nn.Dense(6 * width, kernel_init=_ZERO, dtype=dtype, name="modulation")(nn.silu(c))
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation[:, None], 6, axis=-1)

        x = _modulated_norm(h, shift1, scale1, NORM_EPS, dtype)
        split = (3, self.heads, width // self.heads)
        qkv = nn.DenseGeneral(split, kernel_init=_XAVIER, dtype=dtype, name="qkv")(x)
        x = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], perturb)
        x = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=_XAVIER, dtype=dtype, name="out")(x)
        h = h + (gate1 * x).astype(h.dtype)

        x = _modulated_norm(h, shift2, scale2, self.mlp_norm_eps, dtype)
        x = tanh_gelu(nn.Dense(4 * width, kernel_init=_XAVIER, dtype=dtype, name="up")(x))
        x = nn.Dense(width, kernel_init=_XAVIER, dtype=dtype, name="down")(x)
        return h + (gate2 * x).astype(h.dtype)


class DiT(nn.Module):
    """(x [batch, H, W, C], timestep [batch], label int32 [batch]) -> [batch, H, W, C or 2C].

    H and W are multiples of `patch`. The label `classes` is the null label. With `learn_sigma` the last C channels of
    the output belong to a variance that no sampler here uses; the denoisers drop them, as SiT's own code does.
    skip: blocks, 0 .. depth - 1, that add nothing; perturb: a function of the attention's logits (such as those of
    `guidance.nets.perturb`) in the blocks `perturb_blocks`. The denoisers take all three by name.

    freq_shift, mlp_norm_eps: (0, 1e-6) in the authors' code of DiT and SiT, (1, 1e-5) in diffusers'
    DiTTransformer2DModel; the time embeddings, and hence the outputs, differ.
    dtype: of the computation, None for what inputs and params promote to. residual: of the residual stream between
    the blocks, None for `dtype`; float32 beside bfloat16 rounds the sum of many blocks less. The output has the dtype
    of x.
    remat: recompute each block in the backward pass instead of storing what it computed.
    Raises ValueError for a width that is not a multiple of `heads`, for H or W that is not one of `patch`, and for
    blocks that are not there.
    Source: Scalable Diffusion Models with Transformers, arXiv 2212.09748, section 3.2 and table 1.
    """

    width: int
    heads: int
    depth: int
    patch: int
    classes: int = 1000
    learn_sigma: bool = True
    freq_shift: int = 0
    mlp_norm_eps: float = NORM_EPS
    dtype: Any = None
    residual: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        timestep: Array,
        label: Array,
        skip: tuple[int, ...] = (),
        perturb: Callable[[Array], Array] | None = None,
        perturb_blocks: tuple[int, ...] = (),
    ) -> Array:
        self._check(x, skip, perturb, perturb_blocks)
        c = self._condition(timestep, label)
        h = self._tokens(x)
        # self is argument 0; what is done to the logits is no array
        block = nn.remat(Block, static_argnums=(3,)) if self.remat else Block
        for i in range(self.depth):
            if i not in skip:
                h = held(h)
                h = block(self.heads, self.mlp_norm_eps, self.dtype, name=f"block_{i}")(
                    h, c, perturb if i in perturb_blocks else None
                )
        return self._pixels(computed(h), c, x)

    def _condition(self, timestep: Array, label: Array) -> Array:
        features = sinusoids(timestep, TIME_WIDTH, self.freq_shift)
        hidden = nn.Dense(self.width, kernel_init=_SMALL, dtype=self.dtype, name="time_in")(features)
        time = nn.Dense(self.width, kernel_init=_SMALL, dtype=self.dtype, name="time_out")(nn.silu(hidden))
        table = nn.Embed(self.classes + 1, self.width, embedding_init=_SMALL, dtype=self.dtype, name="label")
        return time + table(label)

    def _tokens(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        cut = x.reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3).reshape(batch, rows * columns, -1)
        h = nn.Dense(self.width, kernel_init=_XAVIER, dtype=self.dtype, name="patch_embed")(cut)
        h = h + jnp.asarray(positions(rows, columns, self.width), h.dtype)[None]
        return h if self.residual is None else h.astype(self.residual)

    def _pixels(self, h: Array, c: Array, x: Array) -> Array:
        batch, height, width, channels = x.shape
        rows, columns, p = height // self.patch, width // self.patch, self.patch
        channels = 2 * channels if self.learn_sigma else channels
        modulation = nn.Dense(2 * self.width, kernel_init=_ZERO, dtype=self.dtype, name="final_modulation")(nn.silu(c))
        shift, scale = jnp.split(modulation[:, None], 2, axis=-1)
        h = _modulated_norm(h, shift, scale, NORM_EPS, self.dtype)
        h = nn.Dense(p * p * channels, kernel_init=_ZERO, dtype=self.dtype, name="final")(h)
        h = h.reshape(batch, rows, columns, p, p, channels).swapaxes(2, 3)
        return h.reshape(batch, height, width, channels).astype(x.dtype)

    def _check(self, x: Array, skip, perturb, perturb_blocks) -> None:
        if self.width % self.heads:
            raise ValueError(f"the width must be a multiple of the {self.heads} heads, got {self.width}")
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(f"height and width must be multiples of the patch {self.patch}, got {x.shape[1:3]}")
        for name, blocks in (("skip", skip), ("perturb_blocks", perturb_blocks)):
            if not set(blocks) <= set(range(self.depth)):
                raise ValueError(f"{name} names blocks from 0 to {self.depth - 1}, got {blocks}")
        if (perturb is None) != (not perturb_blocks):
            raise ValueError("perturb needs perturb_blocks, the blocks to perturb, and perturb_blocks needs perturb")


def dit(name: str, **fields) -> DiT:
    """The network of a published size, such as "XL/2": S, B, L or XL, then the patch 2, 4 or 8; `fields` as of DiT.

    Raises ValueError naming the known sizes. Source: arXiv 2212.09748, table 1; arXiv 2401.08740, table 1.
    """
    size, _, patch = name.partition("/")
    if size not in SIZES or patch not in map(str, PATCHES):
        known = ", ".join(f"{size}/{patch}" for size in SIZES for patch in PATCHES)
        raise ValueError(f"unknown size {name!r}; known: {known}")
    width, heads, depth = SIZES[size]
    return DiT(width=width, heads=heads, depth=depth, patch=int(patch), **fields)


def dit_denoiser(
    net: DiT,
    params,
    schedule: Schedule | None = None,
    skip: tuple[int, ...] = (),
    perturb: Callable[[Array], Array] | None = None,
    perturb_blocks: tuple[int, ...] = (),
) -> Denoise:
    """A DiT, which predicts eps at the timesteps k = 0 .. 999 of its own diffusion, as a Denoise under any schedule.

    At t the network is asked at the k of equal signal-to-noise ratio, alpha_bar_k / (1 - alpha_bar_k) = alpha^2 /
    sigma^2 (see `guidance.nets.timesteps`), and at x / sqrt(alpha^2 + sigma^2), which has its variance; eps is the
    same there, and x_0 = (x - sigma eps)/alpha. The default schedule, `linear_vp()`, is the continuous limit of the
    network's own. The leaves of the result are the params.
    Source: arXiv 2212.09748, section 3.1; Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 15.
    """
    schedule = schedules.linear_vp() if schedule is None else schedule
    network = timesteps.EpsNetwork(_Ask(net, skip, perturb, perturb_blocks), tuple(TIMESTEPS), schedule)
    return predictions.as_denoise(network, params, "eps", schedule)


def sit_denoiser(
    net: DiT,
    params,
    skip: tuple[int, ...] = (),
    perturb: Callable[[Array], Array] | None = None,
    perturb_blocks: tuple[int, ...] = (),
) -> Denoise:
    """A SiT, which predicts velocity on the linear path, as a Denoise under `schedules.rectified_flow()`.

    SiT's time runs from noise (0) to data (1) and enters the network as it is, in [0, 1]; its velocity v is data minus
    noise. So at our t it is asked at 1 - t, and our velocity is -v: x_0 = x + t v. The leaves are the params.
    Source: arXiv 2401.08740, section 2.1, and the linear path of its code.
    """
    network = _Velocity(_Ask(net, skip, perturb, perturb_blocks))
    return predictions.as_denoise(network, params, "velocity", schedules.rectified_flow())


# The static halves of the denoisers: compared by value, so that wrapping twice does not compile twice.


@dataclasses.dataclass(frozen=True)
class _Ask:
    net: DiT
    skip: tuple[int, ...]
    perturb: Callable[[Array], Array] | None
    perturb_blocks: tuple[int, ...]

    def __call__(self, params, x: Array, timestep: Array, label: Array) -> Array:
        how = (self.skip, self.perturb, self.perturb_blocks)
        return self.net.apply({"params": params}, x, timestep, label, *how)[..., : x.shape[-1]]


@dataclasses.dataclass(frozen=True)
class _Velocity:
    ask: _Ask

    def __call__(self, params, x: Array, t: Array, cond: Array) -> Array:
        return -self.ask(params, x, 1 - t, cond)

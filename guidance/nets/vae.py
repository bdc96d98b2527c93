"""The autoencoder of Stable Diffusion, whose latents DiT and SiT are trained on. Images <-> latents, 8 times smaller.

    net = AutoencoderKL()
    params = from_diffusers(net, arrays)
    z = scale_latents(net.apply({"params": params}, images, method="encode").mean)    # what a diffusion network sees
    images = net.apply({"params": params}, unscale_latents(z), method="decode")

Images are [batch, H, W, 3] with pixels in [-1, 1], latents [batch, H/8, W/8, 4].
Source: High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752, sections 3.1 and 4.3.2, in the
variant of diffusers' AutoencoderKL, which sd-vae-ft-ema and sd-vae-ft-mse are published for.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets.attention import attend
from guidance.nets.convolution import Conv
from guidance.nets.normalisation import GroupNorm
from guidance.nets.published import (
    KERNEL,
    Row,
    assemble,
    check_arrays,
    disassemble,
    layer,
    matrix,
    norm_rows,
    shapes_of,
)
from guidance.shapes import normal_like
from guidance.types import Array

SCALE = 0.18215  # one over the standard deviation of the latents of the first batch its authors encoded
LOG_VAR_RANGE = (-30.0, 20.0)
NORM_EPS = 1e-6


class Posterior(NamedTuple):
    """The normal law of the latents given an image: mean and std, both [batch, H/8, W/8, latent channels]."""

    mean: Array
    std: Array


def draw(keys: Array, posterior: Posterior) -> Array:
    """mean + std * noise with one key per image, `keys` [batch]."""
    return posterior.mean + posterior.std * normal_like(keys, posterior.mean)


def draw_view(keys: Array, posteriors: Posterior) -> Array:
    """Scaled latents for training, from laws of several views of each image: mean, std [batch, views, h, w, channels].

    z = 0.18215 (mean_j + std_j * noise) with j uniform over the views (an image and its mirror image: a random flip)
    and one key per image, `keys` [batch].
    Source: the law is that of arXiv 2112.10752, section 3.1; to keep it for both views is our choice.
    """
    pairs = jax.vmap(jax.random.split)(keys)
    views = posteriors.mean.shape[1]
    chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, views))(pairs[:, 0])
    one = jax.tree.map(lambda a: jax.vmap(lambda row, j: row[j])(a, chosen), posteriors)
    return scale_latents(draw(pairs[:, 1], one))


def scale_latents(latents: Array) -> Array:
    """Latents of the autoencoder -> latents of variance near one, which the diffusion networks are trained on."""
    return SCALE * latents


def unscale_latents(latents: Array) -> Array:
    """Latents of a diffusion network -> latents of the autoencoder; the inverse of `scale_latents`."""
    return latents / SCALE


class _Part(nn.Module):
    """What all parts share: the number of groups of the normalisations, the dtype of the computation."""

    groups: int
    dtype: Any

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, NORM_EPS, self.dtype, name=name)

    def conv(self, channels: int, name: str, size: int = 3, **how) -> nn.Conv:
        return Conv(channels, (size, size), dtype=self.dtype, name=name, **how)


class Residual(_Part):
    """x + Conv(SiLU(GN(Conv(SiLU(GN(x)))))), with a 1x1 convolution on x where the number of channels changes."""

    channels: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.conv(self.channels, "conv1")(nn.silu(self.norm("norm1")(x)))
        h = self.conv(self.channels, "conv2")(nn.silu(self.norm("norm2")(h)))
        if x.shape[-1] != self.channels:
            x = self.conv(self.channels, "shortcut", size=1)(x)
        return x + h


class SelfAttention(_Part):
    """x + Linear(Attention(GN(x))) over all places, with a single head."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        h = self.norm("norm")(x).reshape(batch, height * width, channels)
        qkv = nn.DenseGeneral((3, 1, channels), dtype=self.dtype, name="qkv")(h)
        h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        h = nn.DenseGeneral(channels, axis=(-2, -1), dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape)


class Level(_Part):
    """`layers` residual blocks at one resolution, then a change of it: "half", "double", or None."""

    channels: int
    layers: int
    change: str | None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = Residual(self.groups, self.dtype, self.channels, name=f"residual_{i}")(x)
        if self.change == "half":
            # zeros below and to the right only, as the weights were trained
            x = self.conv(self.channels, "resample", strides=2, padding=((0, 1), (0, 1)))(x)
        if self.change == "double":
            x = self.conv(self.channels, "resample")(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
        return x


class Middle(_Part):
    """A residual block, self-attention, a residual block."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Residual(self.groups, self.dtype, x.shape[-1], name="residual_0")(x)
        x = SelfAttention(self.groups, self.dtype, name="attention")(x)
        return Residual(self.groups, self.dtype, x.shape[-1], name="residual_1")(x)


class Encoder(_Part):
    """images [batch, H, W, C] -> [batch, H/2^(n-1), W/2^(n-1), out] for n = len(widths) levels."""

    widths: tuple[int, ...]
    layers: int
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.widths[0], "conv_in")(x)
        for i, width in enumerate(self.widths):
            change = "half" if i < len(self.widths) - 1 else None
            x = Level(self.groups, self.dtype, width, self.layers, change, name=f"down_{i}")(x)
        x = Middle(self.groups, self.dtype, name="middle")(x)
        return self.conv(self.out, "conv_out")(nn.silu(self.norm("norm_out")(x)))


class Decoder(_Part):
    """[batch, h, w, C] -> images [batch, 2^(n-1) h, 2^(n-1) w, out] for n = len(widths) levels."""

    widths: tuple[int, ...]
    layers: int
    out: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = self.conv(self.widths[-1], "conv_in")(x)
        x = Middle(self.groups, self.dtype, name="middle")(x)
        for i, width in enumerate(reversed(self.widths)):
            change = "double" if i < len(self.widths) - 1 else None
            x = Level(self.groups, self.dtype, width, self.layers + 1, change, name=f"up_{i}")(x)
        return self.conv(self.out, "conv_out")(nn.silu(self.norm("norm_out")(x)))


class AutoencoderKL(nn.Module):
    """images [batch, H, W, channels] in [-1, 1] <-> latents; the defaults are the published network.

    H and W are multiples of 2^(len(widths) - 1). Latents are those of the autoencoder itself: see `scale_latents`.
    dtype: of the computation, None for what inputs and params promote to; outputs have the dtype of the input.
    Source: arXiv 2112.10752, the autoencoder called KL-f8.
    """

    channels: int = 3
    latents: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    groups: int = 32
    dtype: Any = None

    def setup(self):
        shared = {"groups": self.groups, "dtype": self.dtype, "widths": self.widths, "layers": self.layers}
        self.encoder = Encoder(**shared, out=2 * self.latents)
        self.quant = Conv(2 * self.latents, (1, 1), dtype=self.dtype)
        self.post_quant = Conv(self.latents, (1, 1), dtype=self.dtype)
        self.decoder = Decoder(**shared, out=self.channels)

    def encode(self, images: Array) -> Posterior:
        """The law of the latents: [batch, H, W, channels] -> mean and std; log variance is clipped to [-30, 20].

        Raises ValueError for H or W that is not a multiple of the reduction.
        """
        step = 2 ** (len(self.widths) - 1)
        if images.shape[1] % step or images.shape[2] % step:
            raise ValueError(f"height and width must be multiples of {step}, got {images.shape[1:3]}")
        moments = self.quant(self.encoder(images)).astype(images.dtype)
        mean, log_var = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.exp(0.5 * jnp.clip(log_var, *LOG_VAR_RANGE)))

    def decode(self, latents: Array) -> Array:
        """[batch, h, w, latent channels] -> images, which the network does not clip to [-1, 1]."""
        return self.decoder(self.post_quant(latents)).astype(latents.dtype)

    def __call__(self, images: Array) -> Array:
        """The reconstruction from the mean of the latents; what `init` traces."""
        return self.decode(self.encode(images).mean)


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def from_diffusers(net: AutoencoderKL, arrays: Mapping[str, np.ndarray]) -> dict:
    """The params of `net` from the arrays of a diffusers AutoencoderKL; dtypes are kept.

    The files of sd-vae-ft-ema and sd-vae-ft-mse call the attention's layers query, key, value and proj_attn, newer
    ones to_q, to_k, to_v and to_out.0; both are read.
    Raises one ValueError listing every missing or unexpected name, wrong shape or dtype, and array with NaN.
    Source: state_dict of diffusers 0.42, AutoencoderKL, and its renaming of the older names.
    """
    old = re.compile(rf"(.*\.attentions\.\d+\.)({'|'.join(OLD_ATTENTION)})(\..*)")
    renamed = {old.sub(lambda m: m[1] + OLD_ATTENTION[m[2]] + m[3], name): array for name, array in arrays.items()}
    rows, ours = _rows(net), _shapes(net)
    check_arrays("VAE", renamed, shapes_of(rows, ours))
    return assemble("VAE", rows, renamed, ours)


def to_diffusers(net: AutoencoderKL, params) -> dict[str, np.ndarray]:
    """The arrays of a diffusers AutoencoderKL, by the newer names, from params of `net`."""
    return disassemble(_rows(net), params)


def _shapes(net: AutoencoderKL):
    side = 2 ** (len(net.widths) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, net.channels), jnp.float32)
    return jax.eval_shape(net.init, jax.random.key(0), x)["params"]


def _rows(net: AutoencoderKL) -> list[Row]:
    down, up = net.widths, net.widths[::-1]
    rows = [*layer("quant", "quant_conv", KERNEL), *layer("post_quant", "post_quant_conv", KERNEL)]
    for part in ("encoder", "decoder"):
        rows += layer(f"{part}/conv_in", f"{part}.conv_in", KERNEL)
        rows += norm_rows(f"{part}/norm_out", f"{part}.conv_norm_out")
        rows += layer(f"{part}/conv_out", f"{part}.conv_out", KERNEL)
        rows += _middle(f"{part}/middle", f"{part}.mid_block")
    for i in range(len(net.widths)):
        for j in range(net.layers):
            wider = i > 0 and j == 0 and down[i] != down[i - 1]
            rows += _residual(f"encoder/down_{i}/residual_{j}", f"encoder.down_blocks.{i}.resnets.{j}", wider)
        for j in range(net.layers + 1):
            narrower = i > 0 and j == 0 and up[i] != up[i - 1]
            rows += _residual(f"decoder/up_{i}/residual_{j}", f"decoder.up_blocks.{i}.resnets.{j}", narrower)
        if i < len(net.widths) - 1:
            rows += layer(f"encoder/down_{i}/resample", f"encoder.down_blocks.{i}.downsamplers.0.conv", KERNEL)
            rows += layer(f"decoder/up_{i}/resample", f"decoder.up_blocks.{i}.upsamplers.0.conv", KERNEL)
    return rows


def _residual(path: str, name: str, shortcut: bool) -> list[Row]:
    rows = [row for i in (1, 2) for row in norm_rows(f"{path}/norm{i}", f"{name}.norm{i}")]
    rows += [row for i in (1, 2) for row in layer(f"{path}/conv{i}", f"{name}.conv{i}", KERNEL)]
    return rows + (layer(f"{path}/shortcut", f"{name}.conv_shortcut", KERNEL) if shortcut else [])


def _middle(path: str, name: str) -> list[Row]:
    at = f"{name}.attentions.0"
    return [
        *_residual(f"{path}/residual_0", f"{name}.resnets.0", False),
        *norm_rows(f"{path}/attention/norm", f"{at}.group_norm"),
        *layer(f"{path}/attention/qkv", [f"{at}.to_{one}" for one in "qkv"], matrix()),
        *layer(f"{path}/attention/out", f"{at}.to_out.0", matrix(inputs=2)),
        *_residual(f"{path}/residual_1", f"{name}.resnets.1", False),
    ]

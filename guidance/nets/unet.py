"""The U-Net of ADM, for images of some tens of pixels a side: as published for ImageNet at 64x64, and small ones.

Residual blocks, whose second normalisation is scaled and shifted by a vector of timestep and class, at resolutions
that halve on the way down and double on the way up; attention at chosen resolutions; every output of the way down is
handed across to the way up. Change of resolution happens inside a residual block ("resnet" up- and downsampling).

    net = unet("imagenet64", dtype=jnp.bfloat16)
    denoise = adm_denoiser(net, published_unet.from_original(net, arrays))       # the published eps network
    net = unet("small28", classes=10)
    denoise = predictions.as_denoise(network(net), params, "velocity", schedules.rectified_flow())     # our own
    denoise = edm_denoiser(net, params)                                          # our own, in EDM's preconditioning

Source: Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 3 and table 4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from guidance import predictions, schedules
from guidance.nets import timesteps
from guidance.nets.attention import attend
from guidance.nets.convolution import Conv
from guidance.nets.embeddings import sinusoids
from guidance.nets.normalisation import GroupNorm
from guidance.shapes import like
from guidance.types import Array, Denoise, Schedule

NORM_EPS = 1e-5
TIMESTEPS = timesteps.log_snr_table(timesteps.cosine_betas())  # what ADM's ImageNet-64 model was trained at
TIME_SCALE = 1000.0  # our time in [0, 1] enters a network of our own as a timestep of 0 .. 1000
EDM_SIGMAS = (0.002, 80.0)  # the noise levels between which EDM samples

PRESETS = {
    # the class-conditional model at 64x64 of arXiv 2105.05233, table 4, which knows no null class; out: eps, variance
    "imagenet64": {
        "channels": (192, 384, 576, 768),
        "layers": 3,
        "attention": (1, 2, 3),
        "classes": 1000,
        "null": False,
        "learn_sigma": True,
    },
    # our choice, for 28x28 (28, 14, 7) on CPUs
    "small28": {"channels": (32, 64, 64), "layers": 1, "attention": (2,), "head": 32, "groups": 8},
    "base28": {"channels": (64, 128, 128), "layers": 2, "attention": (1, 2), "head": 32, "groups": 8},
}

_ZERO = nn.initializers.zeros


class _Part(nn.Module):
    """What all parts share: groups of the normalisations, width of an attention head, dtype of the computation."""

    groups: int
    head: int
    dtype: Any
    remat: bool

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.groups, NORM_EPS, self.dtype, name=name)

    def conv(self, channels: int, name: str, size: int = 3, **how) -> nn.Conv:
        return Conv(channels, (size, size), dtype=self.dtype, name=name, **how)

    def shared(self) -> tuple:
        return self.groups, self.head, self.dtype, self.remat

    def residual_block(self, channels: int, name: str, change: str | None = None) -> nn.Module:
        block = nn.remat(Residual) if self.remat else Residual
        return block(*self.shared(), channels, change, name=name)

    def attention_block(self, name: str) -> nn.Module:
        # self is argument 0; what is done to the logits is no array
        block = nn.remat(SelfAttention, static_argnums=(2,)) if self.remat else SelfAttention
        return block(*self.shared(), name=name)


class Residual(_Part):
    """x [batch, H, W, C], c [batch, width] -> [batch, H', W', channels]; H' = H, or "half" or "double" of it.

    h = Conv(R(SiLU(GN(x)))); (s, b) = Linear(SiLU(c)); h = Conv(SiLU((1 + s) GN(h) + b)); out = R(x) + h, with R the
    mean of 2x2 pixels, or each pixel four times, and a 1x1 convolution on x where the number of channels changes.
    """

    channels: int
    change: str | None

    @nn.compact
    def __call__(self, x: Array, c: Array) -> Array:
        h = nn.silu(self.norm("norm1")(x))
        h = self.conv(self.channels, "conv1")(_resampled(h, self.change))
        modulation = nn.Dense(2 * self.channels, dtype=self.dtype, name="modulation")(nn.silu(c))
        scale, shift = jnp.split(modulation[:, None, None], 2, axis=-1)
        h = nn.silu(self.norm("norm2")(h) * (1 + scale) + shift)
        h = self.conv(self.channels, "conv2", kernel_init=_ZERO)(h)
        x = _resampled(x, self.change)
        if x.shape[-1] != self.channels:
            x = self.conv(self.channels, "shortcut", size=1)(x).astype(x.dtype)
        return x + h.astype(x.dtype)


class SelfAttention(_Part):
    """x + Linear(Attention(GN(x))) over all places, C / head heads; perturb: a function of the logits, or None."""

    @nn.compact
    def __call__(self, x: Array, perturb: Callable[[Array], Array] | None) -> Array:
        batch, height, width, channels = x.shape
        h = self.norm("norm")(x).reshape(batch, height * width, channels)
        qkv = nn.DenseGeneral((3, channels // self.head, self.head), dtype=self.dtype, name="qkv")(h)
        h = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], perturb)
        h = nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=_ZERO, dtype=self.dtype, name="out")(h)
        return x + h.reshape(x.shape).astype(x.dtype)


class Down(_Part):
    """One resolution on the way down: (x, c, perturb) -> its output and what it hands across, in this order."""

    channels: int
    layers: int
    attends: bool
    last: bool

    @nn.compact
    def __call__(self, x: Array, c: Array, perturb) -> tuple[Array, list[Array]]:
        across = []
        for i in range(self.layers):
            x = self.residual_block(self.channels, f"residual_{i}")(x, c)
            if self.attends:
                x = self.attention_block(f"attention_{i}")(x, perturb)
            across.append(x)
        if not self.last:
            x = self.residual_block(self.channels, "resample", "half")(x, c)
            across.append(x)
        return x, across


class Middle(_Part):
    """A residual block, attention, a residual block."""

    @nn.compact
    def __call__(self, x: Array, c: Array, perturb) -> Array:
        x = self.residual_block(x.shape[-1], "residual_0")(x, c)
        x = self.attention_block("attention")(x, perturb)
        return self.residual_block(x.shape[-1], "residual_1")(x, c)


class Up(_Part):
    """One resolution on the way up: (x, what was handed across, last first, c, perturb) -> its output."""

    channels: int
    attends: bool
    last: bool

    @nn.compact
    def __call__(self, x: Array, across: list[Array], c: Array, perturb) -> Array:
        for i, other in enumerate(across):
            x = self.residual_block(self.channels, f"residual_{i}")(jnp.concatenate([x, other], axis=-1), c)
            if self.attends:
                x = self.attention_block(f"attention_{i}")(x, perturb)
        return x if self.last else self.residual_block(self.channels, "resample", "double")(x, c)


class UNet(nn.Module):
    """(x [batch, H, W, C], timestep [batch], label int32 [batch]) -> [batch, H, W, C or 2C].

    channels: at each resolution, which halves from one to the next; H and W are multiples of 2^(len(channels) - 1).
    layers: residual blocks at each resolution on the way down, one more on the way up. attention: the resolutions, by
    index, whose blocks attend; the middle always does. head: channels of an attention head. groups: of normalisations.
    With `null` the label `classes` is the null label; classes = 0 without null has no embedding of labels at all.
    With `learn_sigma` the last C channels of the output belong to a variance that no sampler here uses.
    freq_shift, sine_first: of the time embedding, 0 and cosines first in ADM's code, 1 and sines first in DDPM's.
    perturb: a function of the attention's logits (see `guidance.nets.perturb`) in the parts `perturb_at`, named
    "down_0", .., "middle", "up_0" (the lowest resolution), ..; the denoisers take both by name.

    dtype: of the computation, None for what inputs and params promote to. residual: of the residual stream, None for
    `dtype`. Params are float32 unless loaded otherwise; the output has the dtype of x.
    remat: recompute each block in the backward pass instead of storing what it computed.
    Raises ValueError for channels that `groups` or `head` do not divide, for H or W that do not halve as often as they
    should, and for resolutions and parts that are not there.
    Source: Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 3, appendix A, and its code.
    """

    channels: tuple[int, ...]
    layers: int
    attention: tuple[int, ...]
    classes: int
    null: bool = True
    head: int = 64
    groups: int = 32
    learn_sigma: bool = False
    freq_shift: int = 0
    sine_first: bool = False
    dtype: Any = None
    residual: Any = None
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        timestep: Array,
        label: Array,
        perturb: Callable[[Array], Array] | None = None,
        perturb_at: tuple[str, ...] = (),
    ) -> Array:
        self._check(x, perturb, perturb_at)
        shared = (self.groups, self.head, self.dtype, self.remat)
        how = {part: perturb for part in perturb_at}
        levels, c = len(self.channels), self._condition(timestep, label)
        h = Conv(self.channels[0], (3, 3), dtype=self.dtype, name="conv_in")(x)
        h = h if self.residual is None else h.astype(self.residual)

        across = [h]
        for i, width in enumerate(self.channels):
            name = f"down_{i}"
            level = Down(*shared, width, self.layers, i in self.attention, i == levels - 1, name=name)
            h, handed = level(h, c, how.get(name))
            across += handed
        h = Middle(*shared, name="middle")(h, c, how.get("middle"))
        for i, width in enumerate(reversed(self.channels)):
            name = f"up_{i}"
            level = Up(*shared, width, levels - 1 - i in self.attention, i == levels - 1, name=name)
            handed = [across.pop() for _ in range(self.layers + 1)]
            h = level(h, handed, c, how.get(name))

        norm = GroupNorm(self.groups, NORM_EPS, self.dtype, name="norm_out")
        out = x.shape[-1] * (2 if self.learn_sigma else 1)
        h = Conv(out, (3, 3), kernel_init=_ZERO, dtype=self.dtype, name="conv_out")(nn.silu(norm(h)))
        return h.astype(x.dtype)

    def _condition(self, timestep: Array, label: Array) -> Array:
        width = 4 * self.channels[0]
        features = sinusoids(timestep, self.channels[0], self.freq_shift)
        if self.sine_first:
            features = jnp.roll(features, self.channels[0] // 2, axis=-1)
        hidden = nn.Dense(width, dtype=self.dtype, name="time_in")(features)
        c = nn.Dense(width, dtype=self.dtype, name="time_out")(nn.silu(hidden))
        rows = self.classes + self.null
        return c + nn.Embed(rows, width, dtype=self.dtype, name="label")(label) if rows else c

    def _check(self, x: Array, perturb, perturb_at) -> None:
        step, levels = 2 ** (len(self.channels) - 1), range(len(self.channels))
        if x.shape[1] % step or x.shape[2] % step:
            raise ValueError(f"height and width must be multiples of {step}, got {x.shape[1:3]}")
        if any(width % self.groups for width in self.channels):
            raise ValueError(f"channels must be multiples of the {self.groups} groups, got {self.channels}")
        if not set(self.attention) <= set(levels):
            raise ValueError(f"attention names resolutions from 0 to {levels[-1]}, got {self.attention}")
        attending = [*(self.channels[i] for i in self.attention), self.channels[-1]]
        if any(width % self.head for width in attending):
            raise ValueError(f"channels that attend must be multiples of the head's {self.head}, got {attending}")
        if (perturb is None) != (not perturb_at):
            raise ValueError("perturb needs perturb_at, the parts to perturb, and perturb_at needs perturb")
        places = sorted({"middle"} | {p for i in self.attention for p in (f"down_{i}", f"up_{levels[-1] - i}")})
        if not set(perturb_at) <= set(places):
            raise ValueError(f"perturb_at names parts that attend: {', '.join(places)}; got {perturb_at}")


def _resampled(x: Array, change: str | None) -> Array:
    if change == "half":
        return nn.avg_pool(x, (2, 2), (2, 2))
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2) if change == "double" else x


def unet(name: str, **fields) -> UNet:
    """The network called `name` in PRESETS; `fields`, as of UNet, add to the preset and override it.

    Raises ValueError naming the presets. Source: of "imagenet64" arXiv 2105.05233, table 4; the others are our choice.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return UNet(**PRESETS[name] | fields)


def network(net: UNet, perturb: Callable[[Array], Array] | None = None, perturb_at: tuple[str, ...] = ()) -> Callable:
    """(params, x, t, cond) -> prediction of a network of our own, asked at the timestep 1000 t.

    What it predicts is for its training to decide; see `predictions.as_denoise`. The factor is our choice: the
    sinusoids' periods run from 6 to 60,000, and t in [0, 1] alone would look the same to most of them.
    """
    return _AtTime(_Ask(net, perturb, perturb_at))


def adm_denoiser(
    net: UNet,
    params,
    schedule: Schedule | None = None,
    perturb: Callable[[Array], Array] | None = None,
    perturb_at: tuple[str, ...] = (),
) -> Denoise:
    """ADM's network, which predicts eps at the timesteps k = 0 .. 999 of a cosine diffusion, under any schedule.

    Asked at equal signal-to-noise ratio and at x / sqrt(alpha^2 + sigma^2); x_0 = (x - sigma eps)/alpha. The default
    schedule is `cosine()`, near the network's own. The leaves of the result are the params.
    Source: arXiv 2105.05233, section 2.1 and appendix; Improved Denoising Diffusion Probabilistic Models,
    arXiv 2102.09672, eq. 17.
    """
    schedule = schedules.cosine() if schedule is None else schedule
    asked = timesteps.EpsNetwork(_Ask(net, perturb, perturb_at), tuple(TIMESTEPS), schedule)
    return predictions.as_denoise(asked, params, "eps", schedule)


def edm_denoiser(
    net: UNet,
    params,
    sigma_data: float = 0.5,
    schedule: Schedule | None = None,
    perturb: Callable[[Array], Array] | None = None,
    perturb_at: tuple[str, ...] = (),
) -> Denoise:
    """EDM's preconditioning of a raw network F as a Denoise under any schedule; the default is `schedules.edm()`.

    D(x; s) = c_skip x + c_out F(c_in x; ln(s)/4), c_skip = d^2/(s^2 + d^2), c_out = s d/sqrt(s^2 + d^2), c_in =
    1/sqrt(s^2 + d^2), at x/alpha and the noise level s = sigma/alpha; d = sigma_data, the standard deviation of the
    data, 0.5 for pixels in [-1, 1]. ln(s) is clipped to EDM's levels, 0.002 to 80. The leaves are the params.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, eq. 7 and table 1.
    """
    schedule = schedules.edm() if schedule is None else schedule
    asked = _Preconditioned(_Ask(net, perturb, perturb_at), float(sigma_data), schedule)
    return predictions.as_denoise(asked, params, "x0", schedule)


# The static halves of the denoisers: compared by value, so that wrapping twice does not compile twice.


@dataclasses.dataclass(frozen=True)
class _Ask:
    net: UNet
    perturb: Callable[[Array], Array] | None
    perturb_at: tuple[str, ...]

    def __call__(self, params, x: Array, timestep: Array, label: Array) -> Array:
        out = self.net.apply({"params": params}, x, timestep, label, self.perturb, self.perturb_at)
        return out[..., : x.shape[-1]]


@dataclasses.dataclass(frozen=True)
class _AtTime:
    ask: _Ask

    def __call__(self, params, x: Array, t: Array, cond: Array) -> Array:
        return self.ask(params, x, TIME_SCALE * t, cond)


@dataclasses.dataclass(frozen=True)
class _Preconditioned:
    ask: _Ask
    sigma_data: float
    schedule: Schedule

    def __call__(self, params, x: Array, t: Array, cond: Array) -> Array:
        # multiplied through by alpha, so that nothing is divided by it where it is zero
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        size = jnp.sqrt(sigma**2 + (alpha * self.sigma_data) ** 2)
        low, high = jnp.log(jnp.asarray(EDM_SIGMAS, t.dtype))
        level = jnp.clip(-self.schedule.log_snr(t) / 2, low, high)
        raw = self.ask(params, x / like(size, x), level / 4, cond)
        skip, out = alpha * self.sigma_data**2 / size**2, sigma * self.sigma_data / size
        return like(skip, x) * x + like(out, x) * raw

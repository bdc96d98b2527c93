"""A small unconditional network for 28x28 images, published at five epochs of one training run.

The network is that of github.com/james-hughes1/diffusion-mnist (MIT): a plain stack of 7x7 convolutions that predicts
the noise. An early epoch beside the last one is a real pair of a weak and a strong denoiser, as `guides.autoguided`
wants: same network, same data, less training. Its pixels run from -1/2 to 1/2 and its time is our time.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets.convolution import Conv
from guidance.nets.published import check_arrays, conv, dense, norm
from guidance.predictions import as_denoise
from guidance.schedules import linear_vp
from guidance.types import Array, Cond, Denoise, Schedule

WIDTHS = (16, 32, 32, 16)
TIME_WIDTHS = (128, 128, 128, WIDTHS[0])
FREQUENCIES = 16
SIDE = 28


def schedule() -> Schedule:
    """What it was trained on: 1000 steps of beta from 1e-4 to 0.02, as the continuous `linear_vp(0.1, 20)`.

    The source multiplies 1 - beta_i, i = 0 .. 1000 t, where the continuous schedule integrates beta: alpha differs by
    less than 0.002, sigma by 0.01 at t = 0 and less elsewhere.
    """
    return linear_vp()


class DdpmCnn(nn.Module):
    """(x [batch, 28, 28, 1], t [batch]) -> eps [batch, 28, 28, 1]; 146,977 parameters, 16 of them frequencies.

    Blocks [conv 7x7, layer norm over the pixels of each channel, GELU] of 16, 32, 32, 16 channels; an MLP of
    [sin(f_k t), cos(f_k t) - 1] is added after the first; conv 3x3 at the end.
    Source: github.com/james-hughes1/diffusion-mnist (the network has no paper).
    """

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        frequencies = self.param("frequencies", nn.initializers.ones, (FREQUENCIES,))
        angles = t[:, None] * frequencies[None]
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles) - 1], axis=-1)
        for i, width in enumerate(TIME_WIDTHS):
            time = nn.Dense(width, name=f"time_{i}")(time if i == 0 else jax.nn.gelu(time, approximate=False))
        for i, width in enumerate(WIDTHS):
            x = Conv(width, (7, 7), name=f"conv_{i}")(x)
            over_pixels = nn.LayerNorm(
                epsilon=1e-5, reduction_axes=(1, 2), feature_axes=(1, 2), use_fast_variance=False, name=f"norm_{i}"
            )
            x = jax.nn.gelu(over_pixels(x), approximate=False)
            if i == 0:
                x = x + time[:, None, None, :]
        return Conv(1, (3, 3), name="out")(x)


def _eps(params, x: Array, t: Array, cond: Cond) -> Array:
    del cond
    return DdpmCnn().apply({"params": params}, x, t)


def denoiser(params) -> Denoise:
    """The network with `params` as a Denoise that ignores its condition; pixels in [-1/2, 1/2]."""
    return as_denoise(_eps, params, "eps", schedule())


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published torch module's arrays."""
    shapes = {"frequencies": (FREQUENCIES,)}
    inputs = (2 * FREQUENCIES, *TIME_WIDTHS)
    for i, (before, after) in enumerate(zip(inputs, TIME_WIDTHS, strict=False)):
        shapes |= {f"time_embed.{2 * i}.weight": (after, before), f"time_embed.{2 * i}.bias": (after,)}
    for i, (before, after) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False)):
        shapes |= {f"blocks.{i}.net.0.weight": (after, before, 7, 7), f"blocks.{i}.net.0.bias": (after,)}
        shapes |= {f"blocks.{i}.net.1.{leaf}": (SIDE, SIDE) for leaf in ("weight", "bias")}
    return shapes | {"blocks.4.weight": (1, WIDTHS[-1], 3, 3), "blocks.4.bias": (1,)}


def from_torch(arrays: dict[str, np.ndarray]) -> dict:
    """The params of DdpmCnn from the arrays of the published torch module, by their torch names.

    Raises one ValueError listing every missing and every unexpected name and every wrong shape.
    Source: github.com/james-hughes1/diffusion-mnist, state_dict of its DDPM's network.
    """
    check_arrays("ddpm_cnn", arrays, torch_shapes())

    def layer(name, convert):
        return convert(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    return {
        "frequencies": jnp.asarray(arrays["frequencies"]),
        "out": layer("blocks.4", conv),
        **{f"time_{i}": layer(f"time_embed.{2 * i}", dense) for i in range(len(TIME_WIDTHS))},
        **{f"conv_{i}": layer(f"blocks.{i}.net.0", conv) for i in range(len(WIDTHS))},
        **{f"norm_{i}": layer(f"blocks.{i}.net.1", norm) for i in range(len(WIDTHS))},
    }

"""A published class-conditional network on latents, DiT or SiT, with the autoencoder of its latents.

Width, depth, patch, classes and the size of the latents are read from the files. The problem has no data, so that
`sample` is the only job for it; `imported_latents` adds data. The word "random" in place of a file makes a tiny
untrained network, to try the commands with.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.files import tensors
from experiments.problems.interface import Model, Problem, refusing
from guidance import schedules
from guidance.nets import published_dit, vae
from guidance.nets.dit import SIZES, DiT, dit_denoiser, sit_denoiser

Arrays = Mapping[str, np.ndarray]

TINY = DiT(width=32, heads=2, depth=1, patch=4, classes=10, learn_sigma=False)
TINY_VAE = vae.AutoencoderKL(widths=(8, 8, 8, 8), layers=1, groups=4)
TINY_SHAPE = (32, 32, 4)
LEVELS = 16  # the most levels of an autoencoder; each halves the side, so that 1 latent is 32,768 x 32,768 pixels

# the arrays of the two layouts whose shapes give the size of the network: patches, classes, output, blocks
ORIGINAL = (
    "x_embedder.proj.weight",
    "y_embedder.embedding_table.weight",
    "final_layer.linear.weight",
    r"blocks\.(\d+)\.",
)
DIFFUSERS = (
    "pos_embed.proj.weight",
    "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight",
    "proj_out_2.weight",
    r"transformer_blocks\.(\d+)\.",
)


def build(config, folder) -> Problem:
    """Returns the problem of a config. Raises ConfigError, in one line, for files that are something else."""
    del folder  # nothing is kept
    settings = config.problem
    if settings.weights == "random":
        net, shape, params = _random_network(settings)
    else:
        net, shape, params = _field("weights", settings.weights, lambda arrays: _network(settings, arrays))
    flow = settings.network == "sit"
    return Problem(
        f"{settings.network}, width {net.width}, depth {net.depth}",
        Model(
            schedules.rectified_flow() if flow else schedules.linear_vp(),
            shape,
            conditions=jnp.arange(net.classes),
            null=net.classes,
            denoise=lambda params: sit_denoiser(net, params) if flow else dit_denoiser(net, params),
            known=params,
            to_images=decoder(settings, shape[-1]),
        ),
    )


def decoder(settings, channels: int) -> Partial:
    """Returns latents of so many channels -> images in [0, 1], by problem.vae, as a pytree. Raises ConfigError."""
    if settings.vae == "random":
        return _decoding(*random_autoencoder(), channels)
    return _field("vae", settings.vae, lambda arrays: _decoder(settings, arrays, channels))


def _field(name: str, path, make: Callable[[Arrays], Any]) -> Any:
    with refusing(f"problem.{name} = {path}"):
        return make(tensors.read_weights(path))


def _random_network(settings) -> tuple[DiT, tuple[int, int, int], dict]:
    side = settings.side or TINY_SHAPE[0]
    shape = (side, side, TINY_SHAPE[-1])
    net = TINY.clone(patch=math.gcd(side, TINY.patch))
    return net, shape, _random_params(net, 0.1, jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))


def random_autoencoder(dtype=None) -> tuple[vae.AutoencoderKL, dict]:
    """Returns a tiny autoencoder that was never trained, and its params: its latents have an eighth of the side."""
    net = TINY_VAE.clone(dtype=dtype)
    return net, _random_params(net, 0.3, jnp.zeros((1, 8, 8, 3)))


def _random_params(net, size: float, *example) -> dict:
    """Draws every param from N(0, size^2), which takes no compilation."""
    shapes, rng = jax.eval_shape(net.init, jax.random.key(0), *example)["params"], np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(size * rng.normal(size=a.shape), a.dtype), shapes)


def _network(settings, arrays: Arrays) -> tuple[DiT, tuple[int, int, int], dict]:
    """Returns the network, the shape of its latents, and its params."""
    original = published_dit.POSITION in arrays
    patches, classes, output, block = ORIGINAL if original else DIFFUSERS
    width, channels, patch, _ = _shape(arrays, patches, 4)
    fields = {
        "width": width,
        "patch": patch,
        "depth": _blocks(arrays, block),
        "classes": _shape(arrays, classes, 2)[0] - 1,
        "learn_sigma": _shape(arrays, output, 2)[0] == 2 * patch * patch * channels,
        "heads": settings.heads or _published_heads(width),
    }
    side = settings.side or _side(arrays, original, patch)
    net = DiT(**fields, **({"dtype": jnp.bfloat16, "residual": jnp.float32} if settings.dtype == "bfloat16" else {}))
    if width % net.heads or side % patch:
        raise ValueError(f"problem.heads and problem.side: allowed: divisors of {width} and multiples of {patch}")
    if original:
        params = published_dit.from_original(net, arrays, side // patch, channels)
    else:
        params = published_dit.from_diffusers(net, arrays, channels)
    return net, (side, side, channels), params


def _shape(arrays: Arrays, name: str, rank: int) -> tuple[int, ...]:
    if name not in arrays or np.ndim(arrays[name]) != rank or 0 in arrays[name].shape:
        raise ValueError(f"no DiT or SiT in a layout that is known: no array {name} of {rank} axes")
    return arrays[name].shape


def _blocks(arrays: Arrays, pattern: str) -> int:
    """Returns the number of distinct blocks in the names; it is not the largest block number, which may be absurd."""
    return len({found[1] for found in (re.match(pattern, name) for name in arrays) if found})


def _published_heads(width: int) -> int:
    known = {width: heads for width, heads, _ in SIZES.values()}
    if width not in known:
        raise ValueError(f"problem.heads is needed: no published network has width {width}")
    return known[width]


def _side(arrays: Arrays, original: bool, patch: int) -> int:
    if not original:
        raise ValueError("problem.side is needed: files in diffusers' layout do not say how large their latents are")
    _, tokens, _ = _shape(arrays, published_dit.POSITION, 3)
    return math.isqrt(tokens) * patch


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Decodes latents to images in [0, 1]. It is the static part of a pytree, compared by value."""

    net: vae.AutoencoderKL

    def __call__(self, params, latents):
        return (self.net.apply({"params": params}, vae.unscale_latents(latents), method="decode") + 1) / 2


def _decoder(settings, arrays: Arrays, channels: int) -> Partial:
    at = "encoder.down_blocks"
    levels = _blocks(arrays, at.replace(".", r"\.") + r"\.(\d+)\.")
    names = ["encoder.conv_in.weight", "post_quant_conv.weight"]
    names += [f"{at}.{i}.resnets.0.conv1.weight" for i in range(levels)]
    missing = [name for name in names if name not in arrays or np.ndim(arrays[name]) != 4 or 0 in arrays[name].shape]
    if missing or not levels:
        raise ValueError(
            f"no autoencoder in a layout that is known: no array {(missing or [f'{at}.0.'])[0]} of 4 axes"
        )
    if levels > LEVELS:
        raise ValueError(f"{levels} levels of {at}; no autoencoder has more than {LEVELS}")
    net = vae.AutoencoderKL(
        channels=arrays[names[0]].shape[1],
        latents=arrays[names[1]].shape[0],
        widths=tuple(arrays[name].shape[0] for name in names[2:]),
        layers=_blocks(arrays, rf"{at}.0.resnets\.(\d+)\."),
        groups=settings.vae_groups,
    )
    uneven = [width for width in net.widths if width % net.groups]
    if uneven:
        raise ValueError(f"problem.vae_groups = {net.groups} does not divide its widths {net.widths}")
    return _decoding(net, vae.from_diffusers(net, arrays), channels)


def _decoding(net: vae.AutoencoderKL, params, channels: int) -> Partial:
    if net.latents != channels:
        raise ValueError(f"latents of {net.latents} channels; the network's have {channels}")
    return Partial(_Decode(net), params)

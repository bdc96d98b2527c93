"""Compares the autoencoder of Stable Diffusion with diffusers' AutoencoderKL, level by level."""

import jax
import numpy as np

from experiments.parity import Case, Reference, torch_side
from guidance.nets.vae import AutoencoderKL, Level, Middle, from_diffusers

# three widths, of which two are equal: levels with and without a change of width, both ways
SMALL = {"widths": (8, 16, 16), "layers": 2, "groups": 4, "latents": 2, "side": 16, "batch": 2}
FULL = {
    "SD VAE, 64 px": {"widths": (128, 256, 512, 512), "layers": 2, "groups": 32, "latents": 4, "side": 64, "batch": 1}
}


def published(config: dict):
    """Returns diffusers' network."""
    torch_side.torch()
    from diffusers import AutoencoderKL as Theirs

    levels = len(config["widths"])
    return Theirs(
        block_out_channels=config["widths"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config["layers"],
        latent_channels=config["latents"],
        norm_num_groups=config["groups"],
    ).eval()


def theirs(config: dict) -> Case:
    """Runs diffusers' network with random weights: it encodes random images and decodes random latents."""
    model = published(config)
    torch_side.randomize(model, seed=0)
    rng = np.random.default_rng(0)
    side, batch = config["side"], config["batch"]
    small = side // 2 ** (len(config["widths"]) - 1)
    inputs = {
        "images": rng.uniform(-1, 1, size=(batch, side, side, 3)).astype(np.float32),
        "latents": rng.normal(size=(batch, small, small, config["latents"])).astype(np.float32),
    }
    parts = {"encoder/middle": model.encoder.mid_block, "decoder/middle": model.decoder.mid_block}
    parts |= {f"encoder/down_{i}": block for i, block in enumerate(model.encoder.down_blocks)}
    parts |= {f"decoder/up_{i}": block for i, block in enumerate(model.decoder.up_blocks)}
    watch = torch_side.Watch(parts)
    law = model.encode(torch_side.nchw(inputs["images"])).latent_dist
    image = model.decode(torch_side.nchw(inputs["latents"])).sample
    outputs = watch.seen | {"mean": law.mean, "std": law.std, "image": image}
    return Case(torch_side.arrays_of(model), inputs, {name: torch_side.nhwc(out) for name, out in outputs.items()})


def ours(config: dict, weights: dict, inputs: dict) -> dict:
    """Returns the outputs of `guidance.nets.vae` for the same weights and inputs."""
    net = AutoencoderKL(**{name: config[name] for name in ("widths", "layers", "groups", "latents")})
    params = from_diffusers(net, weights)

    @jax.jit
    def apply(params, images, latents):
        seeing = {"capture_intermediates": lambda m, _: isinstance(m, Level | Middle), "mutable": "intermediates"}
        law, encoding = net.apply({"params": params}, images, method="encode", **seeing)
        image, decoding = net.apply({"params": params}, latents, method="decode", **seeing)
        inner = {
            f"{part}/{name}": held["__call__"][0]
            for seen in (encoding, decoding)
            for part, blocks in seen["intermediates"].items()
            for name, held in blocks.items()
        }
        return inner | {"mean": law.mean, "std": law.std, "image": image}

    return {name: np.asarray(out) for name, out in apply(params, inputs["images"], inputs["latents"]).items()}


REFERENCE = Reference(SMALL, FULL, theirs, ours)

"""Compares the U-Net of ADM with diffusers' UNet2DModel, configured as ADM's, part by part."""

import jax
import numpy as np

from experiments.parity import Case, Reference, torch_side
from guidance.nets.published_unet import from_diffusers
from guidance.nets.unet import PRESETS, Down, Middle, UNet, Up

# widths that change and that do not, resolutions with attention and without, several heads, a variance, 12 -> 6 -> 3
SMALL = {
    "channels": (8, 16, 16),
    "layers": 1,
    "attention": (1,),
    "classes": 5,
    "null": True,
    "head": 8,
    "groups": 4,
    "learn_sigma": True,
    "freq_shift": 0,
    "sine_first": False,
    "side": 12,
    "batch": 3,
}
# consistency models are of this size, with one channel of output for each of input
FULL = {
    "ADM, ImageNet 64 px": {
        "head": 64,
        "groups": 32,
        "freq_shift": 0,
        "sine_first": False,
        "side": 64,
        "batch": 1,
        **PRESETS["imagenet64"],
    }
}


def theirs(config: dict) -> Case:
    """Runs diffusers' network with random weights, at fractional timesteps and labels that include the last class."""
    torch = torch_side.torch()
    from diffusers import UNet2DModel

    levels, classes = len(config["channels"]), config["classes"] + config["null"]
    attends = [i in config["attention"] for i in range(levels)]
    model = UNet2DModel(
        in_channels=3,
        out_channels=6 if config["learn_sigma"] else 3,
        block_out_channels=config["channels"],
        layers_per_block=config["layers"],
        down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=config["head"],
        norm_num_groups=config["groups"],
        attn_norm_num_groups=config["groups"],
        num_class_embeds=classes,
        freq_shift=config["freq_shift"],
        flip_sin_to_cos=not config["sine_first"],
    ).eval()
    torch_side.randomize(model, seed=0)
    rng = np.random.default_rng(0)
    side, batch = config["side"], config["batch"]
    inputs = {
        "x": rng.normal(size=(batch, side, side, 3)).astype(np.float32),
        "timestep": np.linspace(250.5, 999, batch, dtype=np.float32),
        "label": np.linspace(classes - 1, 0, batch, dtype=np.int32),
    }
    parts = {"middle": model.mid_block}
    parts |= {f"down_{i}": block for i, block in enumerate(model.down_blocks)}
    parts |= {f"up_{i}": block for i, block in enumerate(model.up_blocks)}
    watch = torch_side.Watch(parts)
    timestep, label = torch.from_numpy(inputs["timestep"]), torch.from_numpy(inputs["label"]).long()
    out = model(torch_side.nchw(inputs["x"]), timestep, label).sample
    # a block of the way down also returns its skip connections
    inner = {name: seen[0] if isinstance(seen, tuple) else seen for name, seen in watch.seen.items()}
    outputs = {name: torch_side.nhwc(tensor) for name, tensor in (inner | {"output": out}).items()}
    return Case(torch_side.arrays_of(model), inputs, outputs)


def ours(config: dict, weights: dict, inputs: dict) -> dict:
    """Returns the outputs of `guidance.nets.unet` for the same weights and inputs."""
    net = UNet(**{name: value for name, value in config.items() if name not in ("side", "batch")})
    params = from_diffusers(net, weights)

    @jax.jit
    def apply(params, x, timestep, label):
        seeing = {"capture_intermediates": lambda m, _: isinstance(m, Down | Middle | Up), "mutable": "intermediates"}
        out, seen = net.apply({"params": params}, x, timestep, label, **seeing)
        inner = {name: calls["__call__"][0] for name, calls in seen["intermediates"].items()}
        inner = {name: value[0] if isinstance(value, tuple) else value for name, value in inner.items()}
        return inner | {"output": out}

    outputs = apply(params, inputs["x"], inputs["timestep"], inputs["label"])
    return {name: np.asarray(out) for name, out in outputs.items()}


REFERENCE = Reference(SMALL, FULL, theirs, ours)

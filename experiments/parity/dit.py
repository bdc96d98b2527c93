"""Compares DiT with diffusers' DiTTransformer2DModel, block by block.

diffusers gives every block a separate embedding of timestep and class. The published weights have equal copies there,
so we make the copies equal too. SiT is the same network, and diffusers does not implement it.
"""

import jax
import numpy as np

from experiments.parity import Case, Reference, torch_side
from guidance.nets.dit import SIZES, Block, DiT
from guidance.nets.published_dit import from_diffusers

SMALL = {"width": 32, "heads": 4, "depth": 2, "patch": 2, "classes": 5, "side": 8, "channels": 3, "batch": 3}


def _published(name: str, batch: int = 1) -> dict:
    width, heads, depth = SIZES[name]
    latents = {"patch": 2, "classes": 1000, "side": 32, "channels": 4, "batch": batch}
    return {"width": width, "heads": heads, "depth": depth, **latents}


FULL = {f"DiT-{size}/2": _published(size) for size in ("S", "B", "XL")}


def theirs(config: dict) -> Case:
    """Runs diffusers' network with random weights, at fractional timesteps and labels that include the null class."""
    torch = torch_side.torch()
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=config["heads"],
        attention_head_dim=config["width"] // config["heads"],
        in_channels=config["channels"],
        out_channels=2 * config["channels"],
        num_layers=config["depth"],
        sample_size=config["side"],
        patch_size=config["patch"],
        num_embeds_ada_norm=config["classes"],
    ).eval()
    torch_side.randomize(model, seed=0)
    first = model.transformer_blocks[0].norm1.emb
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first.state_dict())
    rng = np.random.default_rng(0)
    side, batch = config["side"], config["batch"]
    inputs = {
        "x": rng.normal(size=(batch, side, side, config["channels"])).astype(np.float32),
        "timestep": np.linspace(250.5, 999, batch, dtype=np.float32),
        "label": np.linspace(config["classes"], 0, batch, dtype=np.int32),
    }
    watch = torch_side.Watch({f"block_{i}": block for i, block in enumerate(model.transformer_blocks)})
    timestep, label = torch.from_numpy(inputs["timestep"]), torch.from_numpy(inputs["label"]).long()
    out = model(torch_side.nchw(inputs["x"]), timestep, label).sample
    inner = {name: tensor.numpy() for name, tensor in watch.seen.items()}
    return Case(torch_side.arrays_of(model), inputs, inner | {"output": torch_side.nhwc(out)})


def ours(config: dict, weights: dict, inputs: dict) -> dict:
    """Returns the outputs of `guidance.nets.dit` for the same weights and inputs."""
    fields = {name: config[name] for name in ("width", "heads", "depth", "patch", "classes")}
    net = DiT(**fields, freq_shift=1, mlp_norm_eps=1e-5)
    params = from_diffusers(net, weights, channels=config["channels"])

    @jax.jit
    def apply(params, x, timestep, label):
        seeing = {"capture_intermediates": lambda module, _: isinstance(module, Block), "mutable": "intermediates"}
        return net.apply({"params": params}, x, timestep, label, **seeing)

    out, seen = apply(params, inputs["x"], inputs["timestep"], inputs["label"])
    inner = {name: np.asarray(calls["__call__"][0]) for name, calls in seen["intermediates"].items()}
    return inner | {"output": np.asarray(out)}


REFERENCE = Reference(SMALL, FULL, theirs, ours)

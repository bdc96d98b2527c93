"""Published weights of DiT and SiT: our params from the arrays of a file, and back.

Two layouts are known. The original one, that of the .pt files of DiT and SiT, stores the embedding of places and joins
query, key and value. That of diffusers' DiTTransformer2DModel splits them, and repeats the embeddings of timestep and
class in every block; a file whose copies differ is another network than ours, and is refused.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets.dit import DiT
from guidance.nets.embeddings import positions
from guidance.nets.published import (
    SAME,
    Row,
    assemble,
    check_arrays,
    disassemble,
    layer,
    matrix,
    patches,
    shapes_of,
)

POSITION = "pos_embed"
# Sines and cosines rounded at most to bfloat16, whatever the dtype of the file: the DiT weights came from JAX on TPUs.
# An embedding of another convention is off by order one.
POSITION_TOLERANCE = 1e-2


def from_original(net: DiT, arrays: Mapping[str, np.ndarray], grid: int = 16, channels: int = 4) -> dict:
    """The params of `net` from the arrays of a DiT or SiT file by its authors; dtypes are kept.

    grid: tokens along a side of the image the file is for; 16 for 256x256 pixels at patch 2, 32 for 512x512.
    channels: of the latents. The network must have the fields of the file: `learn_sigma`, `classes`, and the default
    freq_shift and mlp_norm_eps, which are those of the authors' code.
    Raises one ValueError listing every missing or unexpected name, wrong shape or dtype, and array with NaN; or saying
    that the stored embedding of places is not the fixed one.
    Source: state_dict of github.com/facebookresearch/DiT and github.com/willisma/SiT, models.py.
    """
    rows, ours = _original(net), _shapes(net, channels)
    check_arrays("DiT", arrays, shapes_of(rows, ours) | {POSITION: (1, grid * grid, net.width)})
    stored = np.asarray(arrays[POSITION][0])
    error = np.abs(stored.astype(np.float64) - positions(grid, grid, net.width)).max()
    if error > POSITION_TOLERANCE:
        raise ValueError(f"DiT weights: {POSITION} is not the fixed sine and cosine embedding (off by {error:.1g})")
    return assemble("DiT", rows, arrays, ours)


def to_original(net: DiT, params, grid: int = 16) -> dict[str, np.ndarray]:
    """The arrays of the authors' file from params of `net`; the inverse of `from_original`."""
    stored = positions(grid, grid, net.width)[None].astype(np.float32)
    return {POSITION: stored} | disassemble(_original(net), params)


def from_diffusers(net: DiT, arrays: Mapping[str, np.ndarray], channels: int = 4) -> dict:
    """The params of `net` from the arrays of a diffusers DiTTransformer2DModel; dtypes are kept.

    channels: of the latents. diffusers computes with freq_shift=1 and mlp_norm_eps=1e-5; the authors' weights, which
    were only converted to this layout, belong to 0 and 1e-6, the defaults, all the same.
    Raises one ValueError listing every missing or unexpected name, wrong shape or dtype, and array with NaN; or every
    block whose embedding of timestep or class differs from that of the first.
    Source: state_dict of diffusers 0.42, DiTTransformer2DModel.
    """
    rows, ours = _diffusers(net), _shapes(net, channels)
    check_arrays("DiT", arrays, shapes_of(rows, ours))
    return assemble("DiT", rows, arrays, ours)


def to_diffusers(net: DiT, params) -> dict[str, np.ndarray]:
    """The arrays of a diffusers DiTTransformer2DModel from params of `net`; the inverse of `from_diffusers`."""
    return disassemble(_diffusers(net), params)


def _shapes(net: DiT, channels: int):
    x = jnp.zeros((1, net.patch, net.patch, channels))
    return jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]


def _original(net: DiT) -> list[Row]:
    rows = [
        *layer("patch_embed", "x_embedder.proj", patches(net.patch)),
        *layer("time_in", "t_embedder.mlp.0", matrix()),
        *layer("time_out", "t_embedder.mlp.2", matrix()),
        Row("label/embedding", ("y_embedder.embedding_table.weight",), SAME),
        *layer("final_modulation", "final_layer.adaLN_modulation.1", matrix()),
        *layer("final", "final_layer.linear", matrix()),
    ]
    for i in range(net.depth):
        at = f"blocks.{i}"
        rows += layer(f"block_{i}/modulation", f"{at}.adaLN_modulation.1", matrix())
        rows += layer(f"block_{i}/qkv", f"{at}.attn.qkv", matrix())
        rows += layer(f"block_{i}/out", f"{at}.attn.proj", matrix(inputs=2))
        rows += layer(f"block_{i}/up", f"{at}.mlp.fc1", matrix())
        rows += layer(f"block_{i}/down", f"{at}.mlp.fc2", matrix())
    return rows


def _diffusers(net: DiT) -> list[Row]:
    rows = [
        *layer("patch_embed", "pos_embed.proj", patches(net.patch)),
        *layer("final_modulation", "proj_out_1", matrix()),
        *layer("final", "proj_out_2", matrix()),
    ]
    for i in range(net.depth):
        at = f"transformer_blocks.{i}"
        rows += layer("time_in", f"{at}.norm1.emb.timestep_embedder.linear_1", matrix())
        rows += layer("time_out", f"{at}.norm1.emb.timestep_embedder.linear_2", matrix())
        rows += [Row("label/embedding", (f"{at}.norm1.emb.class_embedder.embedding_table.weight",), SAME)]
        rows += layer(f"block_{i}/modulation", f"{at}.norm1.linear", matrix())
        rows += layer(f"block_{i}/qkv", [f"{at}.attn1.to_{one}" for one in "qkv"], matrix())
        rows += layer(f"block_{i}/out", f"{at}.attn1.to_out.0", matrix(inputs=2))
        rows += layer(f"block_{i}/up", f"{at}.ff.net.0.proj", matrix())
        rows += layer(f"block_{i}/down", f"{at}.ff.net.2", matrix())
    return rows

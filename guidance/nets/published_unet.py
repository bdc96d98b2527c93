"""Published weights of ADM's U-Net: our params from the arrays of a file, and back, in two layouts.

The original one is that of the .pt files of guided-diffusion and of consistency models, such as 64x64_diffusion.pt;
that of diffusers' UNet2DModel splits query, key and value. The file of a UNet2DModel belongs to a `UNet` where its
config says resnet_time_scale_shift="scale_shift", downsample_type=upsample_type="resnet", attn_norm_num_groups =
norm_num_groups (else its middle attention has no normalisation) and norm_eps=1e-5, with blocks called
ResnetDownsampleBlock2D and ResnetUpsampleBlock2D, or AttnDownBlock2D and AttnUpBlock2D where there is attention.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets.published import (
    KERNEL,
    SAME,
    Layout,
    Row,
    assemble,
    check_arrays,
    disassemble,
    layer,
    matrix,
    norm_rows,
    shapes_of,
)
from guidance.nets.unet import UNet


def from_original(net: UNet, arrays: Mapping[str, np.ndarray], channels: int = 3) -> dict:
    """The params of `net` from the arrays of a file of ADM or consistency models; dtypes are kept.

    channels: of the images. The model must have been trained with its options resblock_updown, use_scale_shift_norm
    and use_new_attention_order, as ADM's at 64x64 was: without the last, heads lie otherwise in query, key and value,
    which no shape tells.
    Raises one ValueError listing every missing or unexpected name, wrong shape or dtype, and array with NaN.
    Source: state_dict of github.com/openai/guided-diffusion, unet.py.
    """
    return _read(net, ORIGINAL, arrays, channels)


def to_original(net: UNet, params) -> dict[str, np.ndarray]:
    """The arrays of the authors' file from params of `net`; the inverse of `from_original`."""
    return disassemble(_rows(net, params, ORIGINAL), params)


def from_diffusers(net: UNet, arrays: Mapping[str, np.ndarray], channels: int = 3) -> dict:
    """The params of `net` from the arrays of a diffusers UNet2DModel; see the module for its config.

    channels: of the images. Dtypes are kept.
    Raises one ValueError listing every missing or unexpected name, wrong shape or dtype, and array with NaN.
    Source: state_dict of diffusers 0.42, UNet2DModel.
    """
    return _read(net, DIFFUSERS, arrays, channels)


def to_diffusers(net: UNet, params) -> dict[str, np.ndarray]:
    """The arrays of a diffusers UNet2DModel from params of `net`; the inverse of `from_diffusers`."""
    return disassemble(_rows(net, params, DIFFUSERS), params)


class Names(NamedTuple):
    """How a layout calls the layers of a block and those outside of blocks, and lays out an attention's matrices."""

    residual: dict[str, str]  # ours to theirs
    norm: str  # of an attention
    qkv: tuple[str, ...]
    out: str
    projection: Callable[[int], Layout]  # by the number of our axes of input
    top: dict[str, str]  # ours to theirs


def _conv1d(inputs: int = 1) -> Layout:
    """A torch Conv1d's weight [out, in, 1], otherwise as `matrix`."""
    plain = matrix(inputs)
    return Layout(lambda a, shape: plain.ours(a[..., 0], shape), lambda a: plain.theirs(a)[..., None])


ORIGINAL = Names(
    residual={
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "modulation": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "shortcut": "skip_connection",
    },
    norm="norm",
    qkv=("qkv",),
    out="proj_out",
    projection=_conv1d,
    top={
        "time_in": "time_embed.0",
        "time_out": "time_embed.2",
        "label": "label_emb",
        "conv_in": "input_blocks.0.0",
        "norm_out": "out.0",
        "conv_out": "out.2",
    },
)
DIFFUSERS = Names(
    residual={
        "norm1": "norm1",
        "conv1": "conv1",
        "modulation": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "shortcut": "conv_shortcut",
    },
    norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    out="to_out.0",
    projection=matrix,
    top={
        "time_in": "time_embedding.linear_1",
        "time_out": "time_embedding.linear_2",
        "label": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    },
)


def _read(net: UNet, names: Names, arrays, channels: int) -> dict:
    side = 2 ** (len(net.channels) - 1)
    x = jnp.zeros((1, side, side, channels))
    ours = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]
    rows = _rows(net, ours, names)
    check_arrays("U-Net", arrays, shapes_of(rows, ours))
    return assemble("U-Net", rows, arrays, ours)


def _rows(net: UNet, ours, names: Names) -> list[Row]:
    rows = [row for one in ("time_in", "time_out") for row in layer(one, names.top[one], matrix())]
    rows += [row for one in ("conv_in", "conv_out") for row in layer(one, names.top[one], KERNEL)]
    rows += norm_rows("norm_out", names.top["norm_out"])
    if "label" in ours:
        rows.append(Row("label/embedding", (f"{names.top['label']}.weight",), SAME))
    for part, block, original, diffusers in _blocks(net):
        at = original if names is ORIGINAL else diffusers
        if block.startswith("attention"):
            rows += _attention(f"{part}/{block}", at, names)
        else:
            rows += _residual(f"{part}/{block}", at, names, "shortcut" in ours[part][block])
    return rows


def _blocks(net: UNet) -> Iterator[tuple[str, str, str, str]]:
    """(our part, our block in it, the original name, that in diffusers) of every block.

    The original counts what is handed across on the way down, `input_blocks`, and the blocks that take it on the way
    up, `output_blocks`; a change of resolution is of the former its own, of the latter the last layer of a block.
    """
    levels, place = len(net.channels), 1
    for i in range(levels):
        for j in range(net.layers):
            yield f"down_{i}", f"residual_{j}", f"input_blocks.{place}.0", f"down_blocks.{i}.resnets.{j}"
            if i in net.attention:
                yield f"down_{i}", f"attention_{j}", f"input_blocks.{place}.1", f"down_blocks.{i}.attentions.{j}"
            place += 1
        if i < levels - 1:
            yield f"down_{i}", "resample", f"input_blocks.{place}.0", f"down_blocks.{i}.downsamplers.0"
            place += 1
    yield "middle", "residual_0", "middle_block.0", "mid_block.resnets.0"
    yield "middle", "attention", "middle_block.1", "mid_block.attentions.0"
    yield "middle", "residual_1", "middle_block.2", "mid_block.resnets.1"
    for i in range(levels):
        attends = levels - 1 - i in net.attention
        for j in range(net.layers + 1):
            place = i * (net.layers + 1) + j
            yield f"up_{i}", f"residual_{j}", f"output_blocks.{place}.0", f"up_blocks.{i}.resnets.{j}"
            if attends:
                yield f"up_{i}", f"attention_{j}", f"output_blocks.{place}.1", f"up_blocks.{i}.attentions.{j}"
        if i < levels - 1:
            yield f"up_{i}", "resample", f"output_blocks.{place}.{1 + attends}", f"up_blocks.{i}.upsamplers.0"


def _residual(path: str, at: str, names: Names, shortcut: bool) -> list[Row]:
    theirs = {ours: f"{at}.{name}" for ours, name in names.residual.items()}
    rows = [row for one in ("norm1", "norm2") for row in norm_rows(f"{path}/{one}", theirs[one])]
    rows += layer(f"{path}/modulation", theirs["modulation"], matrix())
    convolutions = ("conv1", "conv2", "shortcut") if shortcut else ("conv1", "conv2")
    return rows + [row for one in convolutions for row in layer(f"{path}/{one}", theirs[one], KERNEL)]


def _attention(path: str, at: str, names: Names) -> list[Row]:
    return [
        *norm_rows(f"{path}/norm", f"{at}.{names.norm}"),
        *layer(f"{path}/qkv", [f"{at}.{one}" for one in names.qkv], names.projection(1)),
        *layer(f"{path}/out", f"{at}.{names.out}", names.projection(2)),
    ]

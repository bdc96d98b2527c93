"""Inception-v3 as the Frechet inception distance uses it: 2048 pooled features, spatial ones, and 1008 classes.

The network of TensorFlow's 2015-12-05 graph, in the torch port whose weights the community shares
(pt_inception-2015-12-05-6726825d.pth of github.com/mseitzer/pytorch-fid). It differs from torchvision's: average
pools do not count the padding, and the last block pools by the maximum. A layer is a convolution without bias, batch
normalisation by stored statistics and a ReLU; the importer folds the first two into one convolution with bias.

Images enter in one of the conventions of `PREPARE`, which change every number computed from the features.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets import convolution
from guidance.nets.published import check_arrays, dense
from guidance.nets.resize import bilinear
from guidance.types import Array

SIDE = 299
FEATURES = 2048
CLASSES = 1008  # 1000 of ImageNet and 8 that are never used
SPATIAL = ("Mixed_6d.branch1x1", 7)  # layer and channels; called mixed_6/conv in TensorFlow's graph
EPSILON = 1e-3  # of the batch normalisation
LEAVES = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
COUNTER = "bn.num_batches_tracked"  # in some copies of the file; says nothing


class Reading(NamedTuple):
    """What the metrics use of one batch of images."""

    features: Array  # [batch, 2048], non-negative: pool_3, for FID, KID, precision and recall
    spatial: Array  # [batch, 17 * 17 * 7 = 2023], non-negative: for sFID
    logits: Array  # [batch, 1008]
    unbiased_logits: Array  # [batch, 1008], without the bias: for the inception score of the evaluation suites


class Conv(NamedTuple):
    """A layer by its name in torch, relative to its block."""

    name: str
    channels: int
    size: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"


def average_pool(x: Array) -> Array:
    """3x3 means at stride 1 over what lies inside the image."""
    inside = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    return convolution.pool3(x, jnp.add, fill=0) / convolution.pool3(inside, jnp.add, fill=0)


def max_pool(x: Array) -> Array:
    """3x3 maxima at stride 1."""
    return convolution.pool3(x, jnp.maximum, fill=-jnp.inf)


def halve(x: Array) -> Array:
    """3x3 maxima at stride 2 of whole windows."""
    return convolution.pool3(x, jnp.maximum, stride=2)


# A block is a list of branches whose outputs are concatenated, a branch a tuple of layers in a row: convolutions,
# pools, or a list of branches again.
def block_a(pooled: int) -> list:
    """35x35: 64 + 64 + 96 + `pooled` channels."""
    return [
        (Conv("branch1x1", 64, (1, 1)),),
        (Conv("branch5x5_1", 48, (1, 1)), Conv("branch5x5_2", 64, (5, 5))),
        (Conv("branch3x3dbl_1", 64, (1, 1)), Conv("branch3x3dbl_2", 96, (3, 3)), Conv("branch3x3dbl_3", 96, (3, 3))),
        (average_pool, Conv("branch_pool", pooled, (1, 1))),
    ]


def block_b() -> list:
    """35x35 -> 17x17: 384 + 96 + 288 channels."""
    return [
        (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
        (
            Conv("branch3x3dbl_1", 64, (1, 1)),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ),
        (halve,),
    ]


def block_c(inner: int) -> list:
    """17x17: 4 x 192 channels, by way of `inner`."""
    return [
        (Conv("branch1x1", 192, (1, 1)),),
        (
            Conv("branch7x7_1", inner, (1, 1)),
            Conv("branch7x7_2", inner, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", inner, (1, 1)),
            Conv("branch7x7dbl_2", inner, (7, 1)),
            Conv("branch7x7dbl_3", inner, (1, 7)),
            Conv("branch7x7dbl_4", inner, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        (average_pool, Conv("branch_pool", 192, (1, 1))),
    ]


def block_d() -> list:
    """17x17 -> 8x8: 320 + 192 + 768 channels."""
    return [
        (Conv("branch3x3_1", 192, (1, 1)), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
        (
            Conv("branch7x7x3_1", 192, (1, 1)),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ),
        (halve,),
    ]


def block_e(pool: Callable[[Array], Array]) -> list:
    """8x8: 320 + 2 x 384 + 2 x 384 + 192 channels."""
    return [
        (Conv("branch1x1", 320, (1, 1)),),
        (
            Conv("branch3x3_1", 384, (1, 1)),
            [(Conv("branch3x3_2a", 384, (1, 3)),), (Conv("branch3x3_2b", 384, (3, 1)),)],
        ),
        (
            Conv("branch3x3dbl_1", 448, (1, 1)),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            [(Conv("branch3x3dbl_3a", 384, (1, 3)),), (Conv("branch3x3dbl_3b", 384, (3, 1)),)],
        ),
        (pool, Conv("branch_pool", 192, (1, 1))),
    ]


STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    halve,
    Conv("Conv2d_3b_1x1", 80, (1, 1)),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    halve,
)

BLOCKS = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": block_b(),
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": block_d(),
    "Mixed_7b": block_e(average_pool),
    "Mixed_7c": block_e(max_pool),  # the graph that everybody compares with pools by the maximum here
}


class InceptionV3(nn.Module):
    """images [batch, 299, 299, 3] from one of `PREPARE` -> Reading. Params are called by their torch names.

    Source: Rethinking the Inception Architecture for Computer Vision, arXiv 1512.00567, in the variant of the module.
    Spatial features: Generating Images with Sparse Representations, arXiv 2103.03841, as the ADM evaluation suite
    (github.com/openai/guided-diffusion, evaluations/) takes them: mixed_6/conv[..., :7] after its ReLU, and mixed_6 is
    the torch port's Mixed_6d.
    """

    @nn.compact
    def __call__(self, images: Array) -> Reading:
        exact = jax.lax.Precision.HIGHEST  # the default on accelerators rounds factors to 8 or 11 bits
        outputs = {}

        def through(x, layer, prefix):
            if isinstance(layer, tuple) and not isinstance(layer, Conv):
                for part in layer:
                    x = through(x, part, prefix)
                return x
            if isinstance(layer, list):
                return jnp.concatenate([through(x, branch, prefix) for branch in layer], axis=-1)
            if not isinstance(layer, Conv):
                return layer(x)
            name = prefix + layer.name
            stride = (layer.stride, layer.stride)
            how = {"precision": exact, "name": name}
            outputs[name] = nn.relu(convolution.Conv(layer.channels, layer.size, stride, layer.padding, **how)(x))
            return outputs[name]

        h = through(images, STEM, "")
        for name, block in BLOCKS.items():
            h = through(h, block, f"{name}.")
        features = jnp.mean(h, axis=(1, 2))
        layer, channels = SPATIAL
        spatial = outputs[layer][..., :channels].reshape(images.shape[0], -1)
        unbiased = nn.Dense(CLASSES, use_bias=False, precision=exact, name="fc")(features)
        bias = self.param("fc.bias", nn.initializers.zeros, (CLASSES,))
        return Reading(features, spatial, unbiased + bias[None, :], unbiased)


def read(params, images: Array) -> Reading:
    """Features and logits of prepared images [batch, 299, 299, 3] under `params`; see InceptionV3."""
    return InceptionV3().apply({"params": params}, images)


def prepare_tensorflow(images: Array) -> Array:
    """Images [batch, H, W, 3], 0..255 -> [batch, 299, 299, 3] as TensorFlow's own graph does it.

    Bilinear between corner-aligned pixels (see `bilinear_matrix`, not centred), not averaged, then (x - 128)/128.
    Source: the graph behind the published reference statistics, arXiv 1706.08500 and the ADM evaluation suite.
    """
    return normalise(bilinear(images, SIDE, centred=False))


def prepare_torch(images: Array) -> Array:
    """Images [batch, H, W, 3], 0..255 -> [batch, 299, 299, 3] as pytorch-fid does it.

    Bilinear between pixel centres, not averaged, of x/255, then 2 x - 1.
    Source: github.com/mseitzer/pytorch-fid, inception.py.
    """
    return 2 * bilinear(images / 255, SIDE) - 1


def normalise(images: Array) -> Array:
    """(x - 128)/128 of images, 0..255, that already have 299 x 299 pixels."""
    return (images - 128) / 128


PREPARE = {"tensorflow": prepare_tensorflow, "torch": prepare_torch}


@functools.cache  # it traces the network, for a second
def torch_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published torch module's arrays, the counters aside."""
    images = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    params = jax.eval_shape(InceptionV3().init, jax.random.key(0), images)["params"]
    shapes = {"fc.weight": (CLASSES, FEATURES), "fc.bias": (CLASSES,)}
    for name in sorted(params.keys() - {"fc", "fc.bias"}):
        height, width, below, above = params[name]["kernel"].shape
        for leaf in LEAVES:
            shapes[f"{name}.{leaf}"] = (above, below, height, width) if leaf == "conv.weight" else (above,)
    return shapes


def from_torch(arrays: dict[str, np.ndarray]) -> dict:
    """The params of InceptionV3 from the arrays of the published torch module, by their torch names.

    kernel = w g / sqrt(v + 1e-3), bias = b - m g / sqrt(v + 1e-3), folded in float64. Counters of batches are ignored.
    Raises one ValueError listing missing names, unexpected names, wrong shapes and dtypes that are not
    floating. Source: github.com/mseitzer/pytorch-fid, state_dict of its fid_inception_v3.
    """
    arrays = {name: array for name, array in arrays.items() if not name.endswith(COUNTER)}
    shapes = torch_shapes()
    check_arrays("inception", arrays, shapes)

    def folded(name):
        weight, gain, shift, mean, variance = (arrays[f"{name}.{leaf}"].astype(np.float64) for leaf in LEAVES)
        gain = gain / np.sqrt(variance + EPSILON)
        kernel = np.transpose(weight, (2, 3, 1, 0)) * gain[None, None, None, :]
        return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(shift - mean * gain, jnp.float32)}

    layers = [name.removesuffix(".conv.weight") for name in shapes if name.endswith(".conv.weight")]
    fc = dense(*(arrays[f"fc.{leaf}"].astype(np.float32) for leaf in ("weight", "bias")))
    return {name: folded(name) for name in layers} | {"fc": {"kernel": fc["kernel"]}, "fc.bias": fc["bias"]}

"""LeNet-5, the classifier of MNIST whose 84 features give the Frechet distance of the MNIST experiment.

The published network (github.com/abdulfatir/gan-metrics-pytorch, Apache-2.0) reads 32x32 images with pixels in [0, 1],
not normalised; 28x28 images are enlarged bilinearly first.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from guidance.nets.convolution import Conv
from guidance.nets.published import check_arrays, conv, dense
from guidance.nets.resize import bilinear
from guidance.types import Array

SIDE = 32
CLASSES = 10
LEAVES = ("weight", "bias")


class Reading(NamedTuple):
    """features [batch, 84] in (-1, 1); logits [batch, 10]."""

    features: Array
    logits: Array


class LeNet5(nn.Module):
    """images [batch, H, W, 1] in [0, 1], H and W at most 32 -> Reading.

    [conv 5x5, tanh, max-pool 2] twice (6 and 16 channels), conv 5x5 to 120, tanh, 84, tanh (the features), 10.
    Pooling comes before tanh here, which is the same because tanh increases, and takes a quarter of the tanhs.
    Source: Gradient-Based Learning Applied to Document Recognition, LeCun et al. 1998, in the variant of
    github.com/abdulfatir/gan-metrics-pytorch.
    """

    @nn.compact
    def __call__(self, images: Array) -> Reading:
        h = bilinear(images, SIDE)
        for name, channels in (("c1", 6), ("c3", 16)):
            h = Conv(channels, (5, 5), padding="VALID", name=name)(h)
            batch, height, width, _ = h.shape
            h = jnp.tanh(h.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4)))
        # the third convolution sees its whole input at once: a matrix
        h = jnp.tanh(nn.Dense(120, name="c5")(h.reshape(h.shape[0], -1)))
        features = jnp.tanh(nn.Dense(84, name="f6")(h))
        return Reading(features, nn.Dense(CLASSES, name="f7")(features))


def read(params, images: Array) -> Reading:
    """Features and logits of images [batch, 28, 28, 1] in [0, 1] under `params`; see LeNet5."""
    return LeNet5().apply({"params": params}, images)


def torch_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published torch module's arrays."""
    weights = {
        "convnet.c1": (6, 1, 5, 5),
        "convnet.c3": (16, 6, 5, 5),
        "convnet.c5": (120, 16, 5, 5),
        "fc.f6": (84, 120),
        "fc.f7": (CLASSES, 84),
    }
    return {f"{name}.{leaf}": s if leaf == "weight" else s[:1] for name, s in weights.items() for leaf in LEAVES}


def from_torch(arrays: dict[str, np.ndarray]) -> dict:
    """The params of LeNet5 from the arrays of the published torch module, by their torch names.

    Raises one ValueError listing every missing and every unexpected name and every wrong shape.
    Source: github.com/abdulfatir/gan-metrics-pytorch, state_dict of its LeNet5.
    """
    check_arrays("lenet", arrays, torch_shapes())

    def layer(name, convert):
        return convert(arrays[f"{name}.weight"], arrays[f"{name}.bias"])

    return {
        "c1": layer("convnet.c1", conv),
        "c3": layer("convnet.c3", conv),
        "c5": layer("convnet.c5", _whole_conv),
        "f6": layer("fc.f6", dense),
        "f7": layer("fc.f7", dense),
    }


def _whole_conv(weight: np.ndarray, bias: np.ndarray) -> dict:
    """A convolution as large as its input, as the matrix on the flattened [H, W, in]."""
    kernel = conv(weight, bias)["kernel"]
    return {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": jnp.asarray(bias)}

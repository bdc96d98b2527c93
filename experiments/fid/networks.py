"""Feature networks: from uint8 images to the features, and where there are any the class probabilities, of a batch.

A user's own network is a `Network` as well. For DINOv2, write a module that can be imported, say mydino.py, with

    def build(weights, resizer):
        arrays = ...                           # read from the path `weights`
        apply = jax.jit(lambda images: {"features": ...})    # uint8 [batch, H, W, 3] -> [batch, d]
        return Network("dinov2_vitl14", hash_arrays(arrays), "bicubic224", on_all_devices(apply))

and say `--features mydino:build`. All metrics but sfid and is then work on its features; those two want "spatial" and
"probabilities" beside "features". Name, hash and resizer go into every reference and every result, and a reference is
only compared with samples read by the same three.
"""

import functools
import hashlib
import importlib
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.fid import BadInput
from experiments.files import tensors
from experiments.runtime import mesh
from guidance.nets import inception, lenet


class Network(NamedTuple):
    """`read` takes uint8 [batch, H, W, C] to arrays by name: "features" [batch, d], and where the network has them
    "spatial" [batch, d'] and "probabilities" [batch, classes]. The batch is a multiple of `mesh.places()`."""

    name: str
    sha256: str  # of the weights, by `hash_arrays`; empty where there are none
    resizer: str  # how images reach the network's size; empty where it takes them as they are
    read: Callable[[np.ndarray], dict[str, np.ndarray]]

    def about(self) -> dict[str, str]:
        """What a reference and a result say of it."""
        return {"name": self.name, "sha256": self.sha256, "resizer": self.resizer}


def build(name: str, weights: str | None, resizer: str | None) -> Network:
    """The network called `name`, or module:function. Raises BadInput."""
    if ":" in name:
        module, _, function = name.partition(":")
        try:
            return getattr(importlib.import_module(module), function)(weights, resizer)
        except (ModuleNotFoundError, AttributeError) as error:
            raise BadInput(f"--features {name}: {error}") from None
    if name not in NETWORKS:
        raise BadInput(f"--features {name}: expected {', '.join(NETWORKS)} or module:function")
    try:
        return NETWORKS[name](weights, resizer)
    except (OSError, ValueError) as error:
        named = str(weights) in str(error)
        raise BadInput(f"--weights: {error}" if named else f"--weights {weights}: {error}") from None


def hash_arrays(arrays: dict[str, np.ndarray]) -> str:
    """sha256 of names, types, shapes and bytes in the order of the names: whatever the file around them."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def on_all_devices(apply: Callable) -> Callable:
    """A jitted function of [batch, H, W, C] in data parallel: each device of the mesh computes its rows."""
    return lambda images: mesh.whole(apply(mesh.cut(images)))


def _inception(weights, resizer) -> Network:
    """2048 pooled and 2023 spatial features; probabilities without the classifier's bias, as the ADM suite has it."""
    resizer = resizer or "tensorflow"
    if resizer not in (*inception.PREPARE, "clean"):
        raise BadInput(f"--resizer {resizer}: expected {', '.join([*inception.PREPARE, 'clean'])}")
    arrays = _given(weights, "inception")
    params = mesh.shard(inception.from_torch(arrays))
    prepare = inception.normalise if resizer == "clean" else inception.PREPARE[resizer]

    @jax.jit
    def apply(params, images):
        reading = inception.read(params, prepare(images.astype(jnp.float32)))
        probabilities = jax.nn.softmax(reading.unbiased_logits)
        return {"features": reading.features, "spatial": reading.spatial, "probabilities": probabilities}

    in_parts = on_all_devices(functools.partial(apply, params))

    def read(images):
        images = in_channels(images, 3)
        return in_parts(clean(images, inception.SIDE) if resizer == "clean" else images)

    counted = {name: array for name, array in arrays.items() if not name.endswith(inception.COUNTER)}
    return Network("inception", hash_arrays(counted), resizer, read)


def _lenet(weights, resizer) -> Network:
    """84 features of grey images of at most 32 pixels a side, enlarged inside the network."""
    _none(resizer, "lenet")
    arrays = _given(weights, "lenet")
    params = mesh.shard(lenet.from_torch(arrays))

    @jax.jit
    def apply(params, images):
        with jax.default_matmul_precision("highest"):
            reading = lenet.read(params, images.astype(jnp.float32) / 255)
        return {"features": reading.features, "probabilities": jax.nn.softmax(reading.logits)}

    in_parts = on_all_devices(functools.partial(apply, params))

    def read(images):
        if max(images.shape[1:3]) > lenet.SIDE:
            raise BadInput(f"--features lenet: images are {images.shape[1:3]}, expected at most {lenet.SIDE} a side")
        return in_parts(in_channels(images, 1))

    return Network("lenet", hash_arrays(arrays), "", read)


def _pixels(weights, resizer) -> Network:
    """The pixels themselves in [0, 1], flattened: for toys and tests."""
    _none(resizer, "pixels")
    if weights is not None:
        raise BadInput("--weights: pixels have none")
    return Network("pixels", "", "", lambda images: {"features": images.reshape(len(images), -1) / np.float32(255)})


def _random(weights, resizer) -> Network:
    """16 features and 10 probabilities of a small network that nothing was trained for: to see that all runs."""
    _none(resizer, "random")
    if weights is not None:
        raise BadInput("--weights: the random network has none")
    rng = np.random.default_rng(0)

    @jax.jit
    def apply(images):
        x = images.astype(jnp.float32) / 127.5 - 1
        x = jax.image.resize(x, (x.shape[0], 4, 4, x.shape[-1]), "linear").reshape(x.shape[0], -1)
        features = jnp.tanh(x @ first / 2)
        return {"features": features, "probabilities": jax.nn.softmax(4 * features @ second)}

    first, second = rng.normal(size=(48, 16)).astype(np.float32), rng.normal(size=(16, 10)).astype(np.float32)
    in_parts = on_all_devices(apply)
    return Network("random", "", "", lambda images: in_parts(in_channels(images, 3)))


NETWORKS = {"inception": _inception, "lenet": _lenet, "pixels": _pixels, "random": _random}


def in_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """Grey images repeated to three channels, or three equal channels as one. Raises BadInput where they differ."""
    if images.shape[-1] == channels:
        return images
    if channels == 1 and np.any(images != images[..., :1]):
        raise BadInput("these features are of grey images, and the images have colour")
    return np.repeat(images[..., :1], channels, axis=-1)


def clean(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 [batch, H, W, C] -> float32 [batch, side, side, C] in 0..255: bicubic, averaging where it shrinks.

    Each channel in floating point, clipped, not rounded. Source: On Aliased Resizing and Surprising Subtleties in GAN
    Evaluation, arXiv 2104.11222, in its authors' implementation (github.com/GaParmar/clean-fid).
    """
    resize = functools.partial(Image.Image.resize, size=(side, side), resample=Image.Resampling.BICUBIC)
    planes = np.moveaxis(images, -1, 1).astype(np.float32)
    resized = [[np.asarray(resize(Image.fromarray(plane))) for plane in image] for image in planes]
    return np.moveaxis(np.clip(np.asarray(resized), 0, 255), 1, -1)


def _given(weights, name: str) -> dict[str, np.ndarray]:
    if weights is None:
        raise BadInput(f"--weights: --features {name} needs a .safetensors or .npz with its published weights")
    return tensors.read_weights(weights)


def _none(resizer, name: str) -> None:
    if resizer is not None:
        raise BadInput(f"--resizer {resizer}: {name} takes images as they are")

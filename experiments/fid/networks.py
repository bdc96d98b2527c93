"""Feature networks: they map a batch of uint8 images to features, and some of them to class probabilities.

You may bring your own network. For DINOv2, write a module that can be imported, say mydino.py, with

    def build(weights, resizer):
        arrays = ...                           # read from the path `weights`
        apply = jax.jit(lambda images: {"features": ...})    # uint8 [batch, H, W, 3] -> [batch, d]
        return Network("dinov2_vitl14", hash_arrays(arrays), "bicubic224", on_all_devices(apply))

and pass `--features mydino:build`. All metrics except sfid and is need only "features"; sfid also needs "spatial", and
is needs "probabilities". References and results store the network's name, hash and resizer; samples are compared only
with a reference that has the same three.
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
    """A feature network. `read` maps uint8 [batch, H, W, C] to arrays by name: "features" [batch, d], and optionally
    "spatial" [batch, d'] and "probabilities" [batch, classes]; the batch is a multiple of `mesh.places()`."""

    name: str
    sha256: str  # the `hash_arrays` of the weights; empty if it has none
    resizer: str  # the method that resizes images to the network's size; empty if it does not resize
    read: Callable[[np.ndarray], dict[str, np.ndarray]]

    def about(self) -> dict[str, str]:
        """Returns the description that references and results store."""
        return {"name": self.name, "sha256": self.sha256, "resizer": self.resizer}


def build(name: str, weights: str | None, resizer: str | None) -> Network:
    """Builds the network called `name`, or the one that module:function returns. Raises BadInput."""
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
    """Returns the SHA-256 of all names, types, shapes and bytes; it does not depend on the format of their file."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def on_all_devices(apply: Callable) -> Callable:
    """Makes a jitted function of [batch, H, W, C] data-parallel: each device computes some rows; returns numpy."""
    return lambda images: mesh.whole(apply(mesh.cut(images)))


def _inception(weights, resizer) -> Network:
    """Returns Inception: 2048 features, 2023 spatial ones, and probabilities without the bias, as in the ADM suite."""
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
    """Returns LeNet: 84 features and 10 probabilities of grey images of at most 32 x 32 pixels."""
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
    """Returns a network without weights whose features are the pixels in [0, 1]: for toys and tests."""
    _none(resizer, "pixels")
    if weights is not None:
        raise BadInput("--weights: pixels have none")
    return Network("pixels", "", "", lambda images: {"features": images.reshape(len(images), -1) / np.float32(255)})


def _random(weights, resizer) -> Network:
    """Returns a small untrained network with 16 features and 10 probabilities, to try the commands with."""
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
    """Repeats grey images to three channels, or keeps one of three equal ones. Raises BadInput if these differ."""
    if images.shape[-1] == channels:
        return images
    if channels == 1 and np.any(images != images[..., :1]):
        raise BadInput("these features are of grey images, and the images have colour")
    return np.repeat(images[..., :1], channels, axis=-1)


def clean(images: np.ndarray, side: int) -> np.ndarray:
    """Resizes uint8 [batch, H, W, C] to float32 [batch, side, side, C] in 0..255 by an antialiased bicubic filter.

    It filters each channel in floating point, and clips but does not round. Source: On Aliased Resizing and Surprising
    Subtleties in GAN Evaluation, arXiv 2104.11222, in its authors' implementation (github.com/GaParmar/clean-fid).
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

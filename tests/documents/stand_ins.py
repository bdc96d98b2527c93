"""Stands in for the files that a reader downloads: of the published names, with tiny random networks in them."""

import contextlib
import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import latents
from experiments.files import tensors, weight_files
from guidance import schedules, weights
from guidance.learning import training
from guidance.nets import dit, inception, published_dit, published_unet, unet, vae
from tests.documents.reading import REPOSITORY, python

VAE = {"widths": (32, 32, 32, 32), "layers": 1}
UNET = {"channels": (64, 64), "layers": 1, "attention": (1,)}
SIZE = (384, 6, 1)  # width, heads, depth: a published width, so that the heads are known
SHARED = {
    "data/mnist": ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"),
    "data/weights": (
        "mnist_cfg_flow_vit.npz",
        "mnist_lenet5.npz",
        *(f"mnist_ddpm_cnn_epoch{epoch:04}.npz" for epoch in (0, 20, 60, 200, 400)),
    ),
}


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    """Makes the networks called "XL/2" and "imagenet64", and `AutoencoderKL()`, those of the stand-ins."""
    with (
        mock.patch.dict(dit.SIZES, {"XL": SIZE}),
        mock.patch.dict(unet.PRESETS, {"imagenet64": unet.PRESETS["imagenet64"] | UNET}),
        mock.patch.object(vae, "AutoencoderKL", functools.partial(vae.AutoencoderKL, **VAE)),
    ):
        yield


def _random(net, *example) -> dict:
    """Params of the right shapes, which takes no compilation."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(net.init, jax.random.key(0), *example)["params"]
    return jax.tree.map(lambda a: jnp.asarray(0.02 * rng.normal(size=a.shape), a.dtype), shapes)


def _transformer():
    with small_networks():
        net = dit.dit("XL/2")
    return published_dit.to_original(net, _random(net, jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, int)))


def _unet():
    with small_networks():
        net = unet.unet("imagenet64")
    x = jnp.zeros((1, 64, 64, 3))
    return published_unet.to_original(net, _random(net, x, jnp.zeros(1), jnp.zeros(1, int)))


def _autoencoder():
    with small_networks():
        net = vae.AutoencoderKL()
    return vae.to_diffusers(net, _random(net, jnp.zeros((1, 8, 8, 3))))


def _inception():
    rng = np.random.default_rng(0)
    # positive weights that average, so that features stay finite through ninety layers
    sizes = {name: 1 / np.prod(shape[1:]) for name, shape in inception.torch_shapes().items()}
    return {
        name: np.abs(size * rng.standard_normal(inception.torch_shapes()[name], np.float32)).astype(np.float32)
        for name, size in sizes.items()
    }


PUBLISHED: dict[str, Callable[[], dict]] = {
    "DiT-XL-2-256x256.pt": _transformer,
    "SiT-XL-2-256x256.pt": _transformer,
    "64x64_diffusion.pt": _unet,
    "pt_inception-2015-12-05-6726825d.pth": _inception,
    "diffusion_pytorch_model.safetensors": _autoencoder,
    "checkpoint.pt": lambda: {"ema": {"a": np.zeros(3, np.float32)}, "model": {"a": np.ones(3, np.float32)}},
}
# what every page calls the file that is made of a published one
CONVERTED = {
    "DiT-XL-2-256x256.pt": "weights/dit-xl-2-256.safetensors",
    "SiT-XL-2-256x256.pt": "weights/sit-xl-2-256.safetensors",
    "64x64_diffusion.pt": "weights/adm-64.safetensors",
    "pt_inception-2015-12-05-6726825d.pth": "weights/inception.safetensors",
    "diffusion_pytorch_model.safetensors": "weights/sd-vae-ft-mse.safetensors",
}
STATISTICS = ("VIRTUAL_imagenet256_labeled.npz", "VIRTUAL_imagenet64_labeled.npz")
CONVERTING = ("docs/walkthrough.md", "docs/weights.md")  # these begin with what is published, other pages with both


def names(page: str) -> list[str]:
    """The files that a reader of a page has before its first command."""
    here = [*PUBLISHED, *STATISTICS]
    if page not in CONVERTING:
        here += [*CONVERTED.values(), *(f"references/{name}" for name in STATISTICS)]
    return here


def touch(folder: pathlib.Path, page: str) -> None:
    """Makes the files of a page, empty, and those of the folder `shared` beside the clone."""
    shared = [f"../shared/{path}/{name}" for path, files in SHARED.items() for name in files]
    for name in [*names(page), *(f"{name}-ubyte.gz" if "idx" in name else name for name in shared)]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(folder: pathlib.Path, page: str) -> None:
    """Makes the files of a page that one of its words names, and a link to the folder `shared` where there is one."""
    if (REPOSITORY.parent / "shared").is_dir():
        (folder.parent / "shared").symlink_to(REPOSITORY.parent / "shared")
    for name in names(page):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if path.name in STATISTICS:
            _write_statistics(path)
        else:
            origin = next((old for old, new in CONVERTED.items() if new == name), name)
            write_weights(path, origin)


@functools.cache
def _arrays(origin: str) -> dict:
    return PUBLISHED[origin]()


def write_weights(path: pathlib.Path, origin: str) -> None:
    """Writes the stand-in for a published file, as PyTorch's or as safetensors."""
    arrays = _arrays(origin)
    if path.suffix == ".safetensors":
        tensors.write_safetensors(path, {name: np.asarray(a) for name, a in arrays.items()}, {})
        return
    import torch

    torch.save(jax.tree.map(lambda a: torch.from_numpy(np.array(a)), dict(arrays)), path)


def _write_statistics(path: pathlib.Path) -> None:
    """Images and their statistics under the names of the ADM suite; the numbers are random."""
    rng = np.random.default_rng(0)
    arrays = {"arr_0": rng.integers(0, 256, (12, 256, 256, 3), np.uint8)}
    for mu, sigma, d in (("mu", "sigma", 2048), ("mu_s", "sigma_s", 2023)):
        arrays |= {mu: rng.normal(size=d), sigma: np.eye(d)}
    np.savez(path, **arrays)


def write_for_python(folder: pathlib.Path, page: str) -> None:
    """Makes the files under `weights`, `latents` and `runs` that the Python of a page reads."""
    text = "".join(block.text for block in python(page))
    for origin, name in CONVERTED.items():
        if name in text:
            (folder / name).parent.mkdir(exist_ok=True)
            write_weights(folder / name, origin)
    for name in re.findall(r'"(runs/.*?\.safetensors)"', text):
        _write_learned(folder / name)
    for name in re.findall(r'"(latents/.*?)"', text):
        _write_latents(folder / name)


def _write_learned(path: pathlib.Path) -> None:
    net = weights.GuidanceNet(num_classes=10, width=8, depth=1, time_width=8, cond_width=8)
    weight = weights.learned(net, training.initial(jax.random.key(0), net, jnp.arange(10)), schedules.linear_vp())
    facts = {"problem": "none", "objective": "rollout@10", "rule": "cfg", "steps": 10, "null": 10, "training": {}}
    weight_files.write(path, weight, **facts)


def _write_latents(folder: pathlib.Path) -> None:
    """20 latents of 2 x 2 numbers, as the preset smoke of configs/encode.py writes them."""
    about = latents.About("none", "random", "float32", 20, 20, 2, (2, 2, 4), 10)
    folder.mkdir(parents=True)
    latents.describe(folder, about)
    laws = np.ones((20, 2, 2, *about.shape), np.float32)
    latents.write_shard(latents.shard_path(folder, about, 0), laws, [i % 10 for i in range(20)])

"""Images a second through the two networks that read whole data sets, ours against PyTorch's at the same weights.

    python -m benchmarks.throughput [vae] [inception] [--batch 4] [--side 256] [--repeats 5] [--small]

vae: images -> mean and standard deviation of their latents, against diffusers' AutoencoderKL. inception: images -> the
2048 features of the Frechet distance, resizing included, against pytorch-fid's InceptionV3 in full float32, as ours
is. PyTorch runs eager and compiled, in the faster of its two layouts of images. Random weights, float32 or, for the
autoencoder, bfloat16. Wall time, medians; the contenders take turns. On a GPU, where PyTorch wants memory as well, set
XLA_PYTHON_CLIENT_PREALLOCATE=false. Without PyTorch (the extra `parity`) only ours is timed.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import dits
from benchmarks.timing import alternated, neighbours, taken
from experiments.parity import inception as inception_parity
from experiments.parity import torch_side
from experiments.parity import vae as vae_parity
from experiments.runtime.launch import keep_freed_memory
from guidance.nets import inception, vae

PUBLISHED = vae_parity.FULL["SD VAE, 64 px"]


class Contenders(NamedTuple):
    """Calls without arguments; the outputs of theirs are tensors [batch, channels, ...], of ours arrays."""

    ours: Callable[[], Any]
    theirs: dict[str, Callable[[], Any]]


def main(arguments: list[str] | None = None) -> None:
    cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"{' or '.join(NETWORKS)} (all)")
    parser.add_argument("--batch", type=int, default=4 if cpu else 64)
    parser.add_argument("--side", type=int, default=256, help="pixels a side (256)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", choices=dits.PRECISIONS, default="float32", help="of the autoencoder")
    parser.add_argument("--small", action="store_true", help="a tiny autoencoder, two small images, nothing compiled")
    options = parser.parse_args(arguments)
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"unknown network {', '.join(sorted(unknown))}; known: {', '.join(NETWORKS)}")
    if options.small:
        options.batch, options.side, options.repeats = 2, 32, 1
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, batch {options.batch}, {options.side} px")
    for name in options.networks or NETWORKS:
        report(name, NETWORKS[name](options), options)


def report(name: str, contenders: Contenders, options) -> None:
    """Prints one line for each contender."""
    turns = alternated({"ours": contenders.ours, **contenders.theirs}, options.repeats)
    median = {name: np.median(each) for name, each in turns.seconds.items()}
    ours = np.asarray(turns.first.pop("ours"))
    print(f"{name}, {options.precision if name == 'vae' else 'float32'}")
    print(f"  {'ours':24s} {options.batch / median['ours']:8.2f} images/s")
    for other, tensor in turns.first.items():
        off = np.abs(np.moveaxis(tensor.float().cpu().numpy(), 1, -1) - ours).max() / np.abs(ours).max()
        rate, ratio = options.batch / median[other], median[other] / median["ours"]
        print(f"  {other:24s} {rate:8.2f} images/s, ours is {ratio:.2f} times as fast, largest difference {off:.1e}")
    print(neighbours(turns))


def encoder(options) -> Contenders:
    """The encoder of the autoencoder, images in [-1, 1] -> mean and std side by side."""
    config = vae_parity.SMALL if options.small else PUBLISHED
    fields = {name: config[name] for name in ("widths", "layers", "groups", "latents")}
    half = options.precision == "bfloat16"
    net = vae.AutoencoderKL(**fields, dtype=jnp.bfloat16 if half else None)
    images = np.random.default_rng(0).uniform(-1, 1, (options.batch, options.side, options.side, 3))
    x = jnp.asarray(images, jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), x[:1, :16, :16])["params"]
    held = jax.tree.map(lambda a: a.astype(net.dtype or a.dtype), params)
    run = jax.jit(lambda params, x: jnp.concatenate(net.apply({"params": params}, x, method="encode"), axis=-1))
    torch = _torch("diffusers")
    if torch is None:
        return Contenders(lambda: run(held, x), {})
    _allow_tf32(torch, True)  # JAX's default too
    model = vae_parity.published(config)
    model.load_state_dict({name: torch.tensor(array) for name, array in vae.to_diffusers(net, params).items()})

    def encode(x):
        law = model.encode(x).latent_dist
        return torch.cat([law.mean, law.std], dim=1)

    dtype = torch.bfloat16 if half else torch.float32
    return Contenders(lambda: run(held, x), _eager_and_compiled(torch, model, encode, x, dtype, options.small))


def features(options) -> Contenders:
    """The network of the Frechet distance, images -> 2048 features."""
    arrays = inception_parity.random_arrays()
    params = inception.from_torch(arrays)
    shape = (options.batch, options.side, options.side, 3)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, shape), jnp.float32)
    run = jax.jit(lambda params, x: inception.read(params, inception.prepare_torch(x)).features)
    torch = _torch("pytorch_fid")
    if torch is None:
        return Contenders(lambda: run(params, x), {})
    _allow_tf32(torch, False)
    model = inception_parity.published(torch, arrays).InceptionV3().eval()
    read = lambda x: model(x)[0][:, :, 0, 0]  # noqa: E731
    return Contenders(
        lambda: run(params, x), _eager_and_compiled(torch, model, read, x / 255, torch.float32, options.small)
    )


NETWORKS = {"vae": encoder, "inception": features}


def _torch(package: str):
    """PyTorch if it and the package are installed, else None."""
    return torch_side.torch() if all(importlib.util.find_spec(name) for name in ("torch", package)) else None


def _allow_tf32(torch, allowed: bool) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = allowed


def _eager_and_compiled(torch, model, function, x, dtype, small: bool) -> dict[str, Callable[[], Any]]:
    """Calls of `function` on x [batch, H, W, 3] as it is and compiled, in the layout that is faster as it is."""
    cuda = torch.cuda.is_available()
    model.to("cuda" if cuda else "cpu")
    if dtype != torch.float32:
        model.to(dtype)
    images = torch_side.nchw(np.asarray(x)).to("cuda" if cuda else "cpu", dtype)

    def timed(layout) -> float:
        model.to(memory_format=layout)
        placed = images.to(memory_format=layout)
        return min(taken(call(function, placed)).wall for _ in range(3))

    def call(function, placed):
        def run():
            out = function(placed)
            if cuda:
                torch.cuda.synchronize()
            return out

        return run

    layouts = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    name = min(layouts, key=lambda name: timed(layouts[name]))
    model.to(memory_format=layouts[name])
    placed = images.to(memory_format=layouts[name])
    calls = {f"eager, {name}": call(function, placed)}
    return calls if small else calls | {f"compiled, {name}": call(torch.compile(function), placed)}


if __name__ == "__main__":
    keep_freed_memory()
    main()

"""Job `encode`: images of any source -> the laws of their latents, in files that `data.Latents` reads.

A shard is finished when its file is there, whole; a run that was stopped or killed goes on at the first that is
missing, and loses what it had done of one shard. Images are read ahead by threads while the devices compute.
"""

import collections
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, launch, mesh, progress, tensors
from experiments.config import ConfigError
from experiments.data import latents
from experiments.problems import imported
from guidance.nets import vae

AHEAD, THREADS = 2, 4  # batches and threads that read
COLOURS = 3


def run(config, workdir) -> None:
    """Writes the shards that are missing and prints how many images a second it took.

    Raises ConfigError, in one line, for a source, an image or weights that cannot be used and for latents that are not
    finite; `progress.Stopped` when asked to stop.
    """
    if launch.several():
        raise ConfigError("job = encode: allowed: one process (with all devices of its machine)")
    with _in_one_line():
        source = data.chosen(config.problem)
        net, params, digest = _autoencoder(config.problem.vae, config.encode.precision)
        about = _about(config, source, net, digest)
        latents.describe(workdir, about)
    missing = [k for k in range(len(about.rows())) if not latents.shard_path(workdir, about, k).exists()]
    encode, batch = _encoder(net, config.encode.mirrored), config.encode.batch
    params = mesh.shard(params)
    batches = sum(-(-len(about.rows()[k]) // batch) for k in missing)
    clock = _Clock()
    with ThreadPoolExecutor(THREADS, "encode") as pool, progress.counting("encoding", batches) as shown:
        for k in missing:
            parts, labels = [], []
            for rows, images, of_rows in _batches(source, about.rows()[k], batch, pool):
                if progress.stop_requested():
                    raise progress.Stopped
                part = np.asarray(encode(params, images))[: len(rows)]
                _check(source, rows, part)
                parts.append(part)
                labels += of_rows
                clock.count(len(rows))
                shown.advance()
            with _in_one_line():
                latents.write_shard(latents.shard_path(workdir, about, k), np.concatenate(parts), labels)
    done = f"{len(missing)} of {len(about.rows())} shards written, {about.views} views of each image"
    print(f"{workdir}: {about.count} images; {done}{clock.rate()}")


def _about(config, source, net: vae.AutoencoderKL, digest: str) -> latents.About:
    side = config.problem.size // 2 ** (len(net.widths) - 1)
    return latents.About(
        source=source.name,
        autoencoder=digest,
        precision=config.encode.precision,
        count=min(config.problem.images or len(source), len(source)),
        shard=config.encode.shard,
        views=1 + config.encode.mirrored,
        shape=(side, side, net.latents),
        classes=source.classes,
    )


def _autoencoder(path: str, precision: str) -> tuple[vae.AutoencoderKL, dict, str]:
    """The network, its params, and what tells its weights from others."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else None
    if path == "random":
        net, params = imported.random_autoencoder(dtype)
        return net, params, "random"
    net = vae.AutoencoderKL(dtype=dtype)
    return net, vae.from_diffusers(net, tensors.read_safetensors(path)), tensors.sha256(path)


def _encoder(net: vae.AutoencoderKL, mirrored: bool):
    """(params, uint8 [batch, H, W, 3]) -> float32 [batch, views, 2, h, w, channels]: mean and std of each view."""

    @jax.jit
    def encode(params, images):
        x = mesh.spread(images).astype(jnp.float32) / 127.5 - 1
        views = [x, x[:, :, ::-1]] if mirrored else [x]
        laws = [net.apply({"params": params}, view, method="encode") for view in views]
        return jnp.stack([jnp.stack(law, axis=1) for law in laws], axis=1)

    return encode


def _batches(source, rows: range, batch: int, pool) -> Iterator[tuple[range, np.ndarray, list[int]]]:
    """(rows, images [batch, H, W, 3], labels [rows]) of one shard; the last batch is filled up with its last image."""
    cuts = collections.deque(rows[start : start + batch] for start in range(0, len(rows), batch))
    reading = collections.deque()
    while cuts or reading:
        while cuts and len(reading) <= AHEAD:
            cut = cuts.popleft()
            reading.append((cut, [pool.submit(source.__getitem__, i) for i in cut]))
        cut, futures = reading.popleft()
        with _in_one_line():
            examples = [future.result() for future in futures]
            for i, example in zip(cut, examples, strict=True):
                if example["image"].shape[-1] != COLOURS:
                    shape = example["image"].shape
                    raise ValueError(f"{source.name}[{i}]: image of shape {shape}; the autoencoder takes 3 channels")
        images = np.stack([example["image"] for example in examples])
        filled = np.concatenate([images, images[-1:].repeat(batch - len(images), axis=0)])
        yield cut, filled, [example.get("label", -1) for example in examples]


def _check(source, rows: range, posteriors: np.ndarray) -> None:
    finite = np.isfinite(posteriors).reshape(len(posteriors), -1).all(axis=1)
    if not finite.all():
        worst = rows[int(np.flatnonzero(~finite)[0])]
        raise ConfigError(f"the latents of {source.name}[{worst}] are not finite; is problem.vae what it should be?")


@contextmanager
def _in_one_line():
    """Around what fails because of a user's files, whose one line then ends the run."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from None


class _Clock:
    """Images a second, from the end of the first batch on: before it the compiler works."""

    def __init__(self):
        self.began, self.done = None, 0

    def count(self, images: int) -> None:
        if self.began is None:
            self.began = time.monotonic()
        else:
            self.done += images

    def rate(self) -> str:
        """The end of a sentence."""
        if not self.done:
            return ""
        return f", {self.done / (time.monotonic() - self.began):.1f} images/s"

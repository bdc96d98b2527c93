"""Job `encode`: encodes the images of a source, and writes the means and deviations of their latents.

`data.Latents` reads the files. Each file appears only once it is complete. A run that was stopped or killed goes on at
the first missing file. Threads read images ahead while the devices compute. Every process reads the part of a batch
that its devices encode; the first process writes.
"""

import collections
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.config import ConfigError
from experiments.data import latents
from experiments.files import tensors
from experiments.problems.interface import refusing
from experiments.problems.latents import imported
from experiments.runtime import launch, mesh, progress
from guidance.nets import vae

AHEAD, THREADS = 2, 4  # batches and threads that read
COLOURS = 3


def run(config, workdir) -> None:
    """Writes the shards that are missing, and prints how many images a second it encoded.

    Raises ConfigError, in one line, for a source, an image or weights that cannot be used and for latents that are not
    finite. Raises `progress.Stopped` when a stop was requested.
    """
    with refusing():
        source = data.chosen(config.problem)
        net, params, digest = _autoencoder(config.problem.vae, config.encode.precision)
        about = _about(config, source, net, digest)
        launch.first(lambda: latents.describe(workdir, about))
    missing = launch.first(
        lambda: [k for k in range(len(about.rows())) if not latents.shard_path(workdir, about, k).exists()]
    )
    encode, params = _encoder(net, config.encode.mirrored), mesh.shard(params)
    batch = mesh.rounded(min(config.encode.batch, len(about.rows()[0])))  # no shard has more rows than the first
    batches = sum(-(-len(about.rows()[k]) // batch) for k in missing)
    clock = _Clock()
    with ThreadPoolExecutor(THREADS, "encode") as pool, progress.counting("encoding", batches) as shown:
        for k in missing:
            parts = []
            for rows, examples in _batches(source, about.rows()[k], batch, mesh.share(batch), pool):
                if progress.stop_requested():
                    raise progress.Stopped
                placed = mesh.place(examples, batch)
                encoded = mesh.whole((encode(params, placed["image"]), placed["label"]))
                posteriors, labels = (values[: len(rows)] for values in encoded)
                _check(source, rows, posteriors)
                parts.append((posteriors, labels))
                clock.count(len(rows))
                shown.advance()
            with refusing():
                launch.first(lambda k=k, parts=parts: _write(latents.shard_path(workdir, about, k), parts))
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
        names=source.names,
    )


def _autoencoder(path: str, precision: str) -> tuple[vae.AutoencoderKL, dict, str]:
    """Returns the network, its params, and the digest of their file."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else None
    if path == "random":
        net, params = imported.random_autoencoder(dtype)
        return net, params, "random"
    net = vae.AutoencoderKL(dtype=dtype)
    with refusing(f"problem.vae = {path}"):
        return net, vae.from_diffusers(net, tensors.read_weights(path)), tensors.sha256(path)


def _encoder(net: vae.AutoencoderKL, mirrored: bool):
    """Returns a function (params, uint8 [batch, H, W, 3]) -> float32 [batch, views, 2, h, w, channels].

    It encodes each view of an image to the mean and the standard deviation of its latents, the axis of length 2.
    """

    @jax.jit
    def encode(params, images):
        x = images.astype(jnp.float32) / 127.5 - 1
        views = [x, x[:, :, ::-1]] if mirrored else [x]
        laws = [net.apply({"params": params}, view, method="encode") for view in views]
        return jnp.stack([jnp.stack(law, axis=1) for law in laws], axis=1)

    return encode


def _batches(source, rows: range, batch: int, part: tuple[int, int], pool) -> Iterator[tuple[range, dict]]:
    """Yields (the rows of a batch, this process's part of it) for each batch of one shard.

    The part is {"image": uint8 [n, H, W, 3], "label": int32 [n]}. The last batch is filled up with its last image.
    """
    index, size = part[0], batch // part[1]
    cuts = collections.deque(rows[start : start + batch] for start in range(0, len(rows), batch))
    reading = collections.deque()
    while cuts or reading:
        while cuts and len(reading) <= AHEAD:
            cut = cuts.popleft()
            numbers = [cut[min(i, len(cut) - 1)] for i in range(index * size, (index + 1) * size)]
            futures = {i: pool.submit(source.__getitem__, i) for i in dict.fromkeys(numbers)}
            reading.append((cut, numbers, futures))
        cut, numbers, futures = reading.popleft()
        with refusing():
            examples = {i: future.result() for i, future in futures.items()}
            for i, example in examples.items():
                if example["image"].shape[-1] != COLOURS:
                    shape = example["image"].shape
                    raise ValueError(f"{source.name}[{i}]: image of shape {shape}; the autoencoder takes 3 channels")
        labels = [examples[i].get("label", -1) for i in numbers]
        yield cut, {"image": np.stack([examples[i]["image"] for i in numbers]), "label": np.asarray(labels, np.int32)}


def _write(path, parts) -> None:
    """Writes a shard from (posteriors, labels) of its batches."""
    latents.write_shard(path, *(np.concatenate(of) for of in zip(*parts, strict=True)))


def _check(source, rows: range, posteriors: np.ndarray) -> None:
    finite = np.isfinite(posteriors).reshape(len(posteriors), -1).all(axis=1)
    if not finite.all():
        worst = rows[int(np.flatnonzero(~finite)[0])]
        raise ConfigError(f"the latents of {source.name}[{worst}] are not finite; is problem.vae what it should be?")


class _Clock:
    """Counts images a second from the end of the first batch on: before it the compiler works."""

    def __init__(self):
        self.began, self.done = None, 0

    def count(self, images: int) -> None:
        if self.began is None:
            self.began = time.monotonic()
        else:
            self.done += images

    def rate(self) -> str:
        """Returns the end of a sentence; empty if the rate is not known."""
        if not self.done:
            return ""
        return f", {self.done / (time.monotonic() - self.began):.1f} images/s"

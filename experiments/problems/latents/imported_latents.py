"""An imported network with latents of real images, from which guidance is learned, and the FID of decoded samples.

The job `encode` wrote the latents with the same autoencoder. The laws of `problem.images` of them, chosen at random,
are kept in memory in float16: mean and deviation of each image and its mirror image, 32 KB for 256 x 256 pixels, 3.3
GB for 100,000. A draw is mean + deviation * noise of a random view, scaled as the network takes it. A bounded pool in
place of a stream from the disk is our choice: the weights see no image, only how far steps miss.

The job `sample` needs no latents: its problem is that of `imported`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.files import tensors
from experiments.problems.images import inception, judge
from experiments.problems.interface import Data, Problem, refusing, shares
from experiments.problems.latents import imported
from experiments.runtime import launch, mesh, progress
from guidance import pools
from guidance.nets import vae
from guidance.pools import Pool

SEED = 0
SYNTHETIC = 4  # latents of each class


def build(config, folder) -> Problem:
    """Returns the problem of a config. Raises ConfigError, in one line, for files that are something else."""
    problem = imported.build(config, folder)
    return problem if config.job == "sample" else with_data(problem, config, stored(config.problem, folder))


def stored(settings, folder) -> data.Latents | None:
    """Returns the labelled latents of problem.latents, by the autoencoder problem.vae; None for synthetic ones.

    The names of their classes are kept in the run's folder. Raises ConfigError, in one line.
    """
    if settings.latents == "synthetic":
        return None
    with refusing(f"problem.latents = {settings.latents}"):
        found = data.Latents(settings.latents)
        digest = "random" if settings.vae == "random" else tensors.sha256(settings.vae)
        if found.about.autoencoder != digest:
            raise ValueError("latents of another autoencoder than problem.vae")
        if found.classes is None:
            raise ValueError("latents without labels")
        launch.first(lambda: data.keep_names(folder, found.names))
        return found


def with_data(problem: Problem, config, latents: data.Latents | None, feed=None) -> Problem:
    """Returns the problem with these latents as training data and as reference (None: random latents)."""
    settings, model = config.problem, problem.model
    with refusing(f"problem.latents = {settings.latents}"):
        laws = _synthetic(model) if latents is None else _laws(model, latents, settings.images)
        judge.check_classes(laws[1], len(model.conditions), latents and latents.names)
        pool = judge.pool(*laws, len(model.conditions))

    def show(axes, samples):
        judge.picture(axes, samples, _in_blocks(model.to_images), latents and latents.names)

    means = vae.scale_latents(np.asarray(pool.x0[:, 0, 0], np.float32))
    decode = mesh.shard(model.to_images)
    meter = inception.load(settings, inception.as_images("decoded latents", means, decode))
    true = lambda key, k, conditions: real(key, pool, k, conditions)  # noqa: E731
    of_floor, _ = shares(model.conditions, config.eval.samples)
    return problem._replace(
        name=f"{problem.name}, FID of {config.eval.samples} samples",
        data=Data(draw, real, pool, feed, latents and latents.names),
        instrument=inception.instrument(meter, decode, true, of_floor, show),
    )


def draw(key, pool: Pool, n: int):
    """Draws n pairs (latents, label) with replacement."""
    row_key, view_key = jax.random.split(key)
    laws, labels = pools.draw(row_key, pool, n)
    return views(jax.random.split(view_key, n), laws), labels


def real(key, pool: Pool, k: int, conditions):
    """Draws latents of k images of each condition, [K, k, h, w, channels]."""
    row_key, view_key = jax.random.split(key)
    laws = pools.draw_each(row_key, pool, k, conditions)
    flat = laws.reshape(-1, *laws.shape[2:])
    return views(jax.random.split(view_key, len(flat)), flat).reshape(*laws.shape[:2], *laws.shape[4:])


def views(keys, laws):
    """Draws a latent from each of the laws [n, views, 2, h, w, channels], scaled as the network takes it; keys [n]."""
    laws = laws.astype(jnp.float32)
    return vae.draw_view(keys, vae.Posterior(laws[:, :, 0], laws[:, :, 1]))


def _in_blocks(to_images):
    """Returns to_images for a few samples at a time: the activations of an autoencoder are large."""
    one = jax.jit(to_images)
    return lambda samples: np.concatenate([np.asarray(one(row[None])) for row in jnp.asarray(samples)])


def _synthetic(model) -> tuple[np.ndarray, np.ndarray]:
    """Returns random laws and labels, as `_laws` returns them."""
    labels = np.arange(SYNTHETIC * len(model.conditions)) % len(model.conditions)
    means = np.random.default_rng(SEED).normal(size=(len(labels), 1, 1, *model.shape)) / vae.SCALE
    return np.concatenate([means, 0.1 * np.ones_like(means)], axis=2).astype(np.float16), labels


def _laws(model, stored: data.Latents, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads `count` laws (0: all), float16 [n, views, 2, h, w, channels], and labels [n].

    Raises ValueError for latents that do not fit the network.
    """
    classes = len(model.conditions)
    if stored.about.shape != model.shape:
        raise ValueError(f"latents of shape {stored.about.shape}, the network's have {model.shape}")
    rows = np.sort(np.random.default_rng(SEED).permutation(len(stored))[: count or None])
    laws = np.empty((len(rows), stored.about.views, 2, *stored.about.shape), np.float16)
    labels = np.empty(len(rows), np.int32)
    for place, row in enumerate(progress.track(rows, f"reading {stored.name}")):
        example = stored[row]
        with np.errstate(over="ignore"):  # what float16 cannot hold is refused in the next line
            laws[place], labels[place] = example["image"], example["label"]
        if not np.isfinite(laws[place]).all():
            raise ValueError(f"the latents of image {row} are not finite")
        if not 0 <= labels[place] < classes:
            raise ValueError(f"image {row} has label {labels[place]}; the network's are 0 to {classes - 1}")
    return laws, labels

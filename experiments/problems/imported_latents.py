"""An imported network with the latents of real images: what guidance is learned from, and the FID of decoded samples.

The latents are those that job `encode` wrote with the same autoencoder. Of `problem.images` of them, chosen at random,
the laws are kept in memory in float16 (mean and deviation of each image and its mirror image: 32 KB for 256 x 256
pixels, 3.3 GB for 100,000); what is drawn is a view at random, mean + deviation * noise, scaled as the network wants
it. A bounded pool and no stream from disk is our choice: the weights see no image, only how far steps miss.

For the job `sample` there is no need of latents, and the problem is that of `imported`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data, mesh, progress, tensors
from experiments.config import ConfigError
from experiments.problems import Problem, images, imported, inception, shares
from guidance.nets import vae

SEED = 0
SYNTHETIC = 4  # latents of each class


def build(config) -> Problem:
    """The problem of a config on files. Raises ConfigError, in one line, for files that are something else."""
    problem = imported.build(config)
    return problem if config.job == "sample" else with_data(problem, config, stored(config.problem))


def stored(settings) -> data.Latents | None:
    """The labelled latents of problem.latents, by the autoencoder problem.vae; None for synthetic ones.

    Raises ConfigError.
    """
    if settings.latents == "synthetic":
        return None
    try:
        found = data.Latents(settings.latents)
        own = "random" if settings.vae == "random" else tensors.sha256(settings.vae)
        if found.about.autoencoder != own:
            raise ValueError("latents of another autoencoder than problem.vae")
        if found.classes is None:
            raise ValueError("latents without labels")
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise ConfigError(f"problem.latents = {settings.latents}: {error}") from None
    return found


def with_data(problem: Problem, config, latents: data.Latents | None) -> Problem:
    """The same network with the latents that it learns from and is measured by (None: random). Raises ConfigError."""
    settings = config.problem
    try:
        laws = _synthetic(problem) if latents is None else _laws(problem, latents, settings.images)
        pool = images.pool(*laws, len(problem.conditions))
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise ConfigError(f"problem.latents = {settings.latents}: {error}") from None

    def show(axes, samples):
        known = real(pool, jax.random.key(0), images.ROWS, problem.conditions[: images.COLUMNS])
        images.picture(axes, known if samples is None else samples, _in_blocks(problem.to_images))

    means = vae.scale_latents(np.asarray(pool.images[:, 0, 0], np.float32))
    decode = mesh.shard(problem.to_images)
    instrument = inception.load(settings, inception.as_images("decoded latents", means, decode))
    of_floor, _ = shares(problem.conditions, config.eval.samples)
    return problem._replace(
        name=f"{problem.name}, FID of {config.eval.samples} samples",
        draw=draw,
        real=real,
        picture=show,
        data=pool,
        **inception.judged(instrument, decode, real, pool, of_floor),
    )


def draw(pool: images.Pool, key, n: int):
    """n pairs (latents, label)."""
    row_key, view_key = jax.random.split(key)
    laws, labels = images.draw(pool, row_key, n)
    return views(jax.random.split(view_key, n), laws), labels


def real(pool: images.Pool, key, k: int, conditions):
    """Latents of k images of each condition, [K, k, h, w, channels]."""
    row_key, view_key = jax.random.split(key)
    laws = images.draw_each(pool, row_key, k, conditions)
    flat = laws.reshape(-1, *laws.shape[2:])
    return views(jax.random.split(view_key, len(flat)), flat).reshape(*laws.shape[:2], *laws.shape[4:])


def views(keys, laws):
    """A latent from each of these laws [n, views, 2, h, w, channels], as the network wants it; keys [n]."""
    laws = laws.astype(jnp.float32)
    return vae.draw_view(keys, vae.Posterior(laws[:, :, 0], laws[:, :, 1]))


def _in_blocks(to_images):
    """to_images a few at a time: the activations of an autoencoder are large."""
    one = jax.jit(to_images)
    return lambda samples: np.concatenate([np.asarray(one(row[None])) for row in jnp.asarray(samples)])


def _synthetic(problem) -> tuple[np.ndarray, np.ndarray]:
    """What `_laws` gives, of random latents."""
    labels = np.arange(SYNTHETIC * len(problem.conditions)) % len(problem.conditions)
    means = np.random.default_rng(SEED).normal(size=(len(labels), 1, 1, *problem.shape)) / vae.SCALE
    return np.concatenate([means, 0.1 * np.ones_like(means)], axis=2).astype(np.float16), labels


def _laws(problem, stored: data.Latents, count: int) -> tuple[np.ndarray, np.ndarray]:
    """float16 [n, views, 2, h, w, channels] and labels [n] of latents that belong to the network; count 0: all."""
    classes = len(problem.conditions)
    if stored.about.shape != problem.shape:
        raise ValueError(f"latents of shape {stored.about.shape}, the network's have {problem.shape}")
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

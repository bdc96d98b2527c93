"""A network that is trained here on the latents of images, where `imported_latents` has one that comes in a file.

The job `encode` wrote the latents, and they are read from disk while the network is trained: every image, in an order
that depends on the seed alone, each time with another draw from the law of one of its views. Guidance is learned from,
and measured by, the pool of `imported_latents`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments import data
from experiments.config import ConfigError
from experiments.problems.chain_fields import multiple
from experiments.problems.images import labelled
from experiments.problems.interface import Model, Network, Problem
from experiments.problems.latents import imported, imported_latents
from guidance import predictions, schedules
from guidance.shapes import row_keys


def build(config, folder) -> Problem:
    """Returns the problem of a config. Raises ConfigError, in one line, for files that are something else."""
    settings, base = config.problem, config.base
    stored = imported_latents.stored(settings, folder)
    if stored is None:
        shape, classes = imported.TINY_SHAPE, imported.TINY.classes
    else:
        shape, classes = stored.about.shape, stored.classes
    _fits(base, shape[0])
    net, schedule = labelled.NETWORKS[base.network](base, classes), schedules.by_name(settings.schedule)
    example = jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    problem = Problem(
        f"{base.network} on latents, width {base.width}, {base.steps} updates",
        Model(
            schedule,
            shape,
            conditions=jnp.arange(classes),
            null=classes,
            denoise=lambda params: predictions.as_denoise(net.apply, params, "velocity", schedule),
            network=Network(lambda key: net.init(key, *example), net.apply, "velocity"),
            to_images=imported.decoder(settings, shape[-1]),
        ),
    )
    return imported_latents.with_data(problem, config, stored, stored and _feed(stored))


def _fits(base, side: int) -> None:
    """Raises ConfigError for a network that latents of this side cannot enter."""
    step = multiple(base)
    if side % step:
        name = "patch" if base.network == "dit" else "network"
        raise ConfigError(f"base.{name} = {base[name]}: the latents are {side} a side, no multiple of {step}")


def _feed(stored: data.Latents):
    """Returns `Data.feed` of all latents, read ahead. A row's draw follows from the seed, the update and its place."""

    @jax.jit
    def drawn(seed, i, rows, laws):
        key = jax.random.fold_in(jax.random.key(seed), i)
        return imported_latents.views(row_keys(key, rows), laws)

    def feed(batch: int, part, seed: int):
        loader = data.Loader(stored, batch, seed, part)
        read = loader.in_order()

        def at(i):
            found = read(i)
            return np.asarray(drawn(seed, i, loader.rows, found["image"])), found["label"]

        return at

    return feed

"""The instrument of published numbers: Inception's features of uint8 images, and the FID to reference statistics.

The network is a file of converted weights (or "random", a tiny one, to see that everything runs). The reference is a
file that `python -m experiments.tools.fid ref` or the ADM suite wrote, or images that were set apart. Nothing is
learned in the space of these features: a space of measurements is no target.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config import ConfigError
from experiments.fid import BadInput, networks
from experiments.fid.images import Images
from experiments.fid.measure import KID_BLOCKS, PAIRED, same_network, survey
from experiments.fid.references import KEYS, Reference, read_reference
from experiments.problems.images.judge import NEIGHBOURS, to_pixels
from experiments.problems.interface import Instrument
from experiments.runtime import mesh
from guidance import metrics
from guidance.types import Array

BATCH = 64  # images that a device reads at a time
ROWS = 10_000  # rows of the reference that KID, precision and the like see, at most


class Meter(NamedTuple):
    """A feature network, the law of its features on real images, and some of those features."""

    network: networks.Network
    stats: dict[str, Any]  # by the names of experiments.fid.references.KEYS
    rows: np.ndarray | None  # [n, d]; None where the reference has no images


def load(settings, apart: Images) -> Meter:
    """Returns the meter of `problem.instrument` and `problem.reference`.

    apart: images of the kind that will be measured; they are the reference where the config names none. Raises
    ConfigError, in one line, for files that are something else.
    """
    name = "random" if settings.instrument == "random" else "inception"
    weights = None if name == "random" else settings.instrument
    try:
        network = networks.build(name, weights, None)
    except BadInput as error:
        raise ConfigError(f"problem.instrument = {settings.instrument}: {error}") from None
    try:
        usual = Reference(apart.path, None, {}, apart, {})
        return _against(network, read_reference(settings.reference) if settings.reference else usual, apart.shape)
    except BadInput as error:
        raise ConfigError(f"problem.reference = {settings.reference!r}: {error}") from None


def _against(network: networks.Network, reference: Reference, shape) -> Meter:
    same_network(network, reference)
    read = network.read(np.zeros((mesh.places() * BATCH, *shape), np.uint8))
    known = {name: values.shape[1] for name, values in read.items() if name in KEYS}
    if reference.images is None:
        rows, stats = None, reference.stats
    else:
        lacking = [name for name in known if name not in reference.stats]
        seen = survey(network, reference.images, BATCH, stats=lacking, rows=["features"])
        rows, stats = seen.rows["features"][:ROWS], reference.stats | seen.stats
    for name, width in known.items():
        if name in stats and len(stats[name].mean) != width:
            raise BadInput(f"{reference.path} has {len(stats[name].mean)} {name} a row, the network {width}")
    if "features" not in stats:
        raise BadInput(f"{reference.path} has no statistics of features (mu and sigma), and no images")
    return Meter(network, {name: stats[name] for name in known if name in stats}, rows)


def measure(meter: Meter, to_images: Callable, samples: Array, full: bool) -> dict[str, float]:
    """Returns the FID of samples [G, n, ...]; `full` adds what else the network and the reference allow.

    That is sfid, inception_score, kid, precision, recall, density and coverage. Distances of fewer samples than
    features are computed all the same: they are large, and comparable with those of equally many samples only. Samples
    that are not finite have an infinite FID.
    """
    flat = mesh.whole(samples).reshape(-1, *samples.shape[2:])
    if not np.isfinite(flat).all():
        return {"fid": float("inf")}
    paired = full and meter.rows is not None
    stats = list(meter.stats) if full else ["features"]
    rows = ["features"] * paired + ["probabilities"] * full
    seen = survey(meter.network, as_images("samples", flat, to_images), BATCH, stats=stats, rows=rows)
    found = {
        name: metrics.frechet_distance(seen.stats[part], meter.stats[part], few=True)
        for name, part in (("fid", "features"), ("sfid", "spatial"))
        if part in stats
    }
    if full:
        found["inception_score"] = metrics.inception_score(seen.rows["probabilities"])[0]
    least = min(len(flat), len(meter.rows)) if paired else 0
    for name, needed in (("kid", 2 * KID_BLOCKS), ("prdc", NEIGHBOURS + 1)):
        if least >= needed:
            found |= PAIRED[name](seen.rows["features"], meter.rows, NEIGHBOURS)[0]
    return found


def instrument(meter: Meter, to_images: Callable, real: Callable, conditions: Array, picture: Callable) -> Instrument:
    """Returns the instrument that judges by FID. Nothing is matched in the space of its features.

    to_images: samples -> images in [0, 1], a pytree. real: (key, n, conditions) -> true samples. conditions: those
    that the floor draws true samples for, as many as the samples have.
    """
    return Instrument(
        measure=lambda key, samples, full: measure(meter, to_images, samples, full),
        floor=lambda key, n, full: measure(meter, to_images, real(key, n, conditions), full),
        tuned=("fid",),
        picture=picture,
    )


@jax.jit
def _pixels(to_images, samples):
    return to_pixels(to_images(samples))


def as_images(name: str, samples: Array, to_images: Callable) -> Images:
    """Returns samples [n, ...] as images that are made block by block, some rows of a block on each device.

    The last block is filled up, not compiled anew. to_images: a pytree that lies on the mesh.
    """
    shape = jax.eval_shape(to_images, jax.ShapeDtypeStruct((1, *samples.shape[1:]), jnp.float32)).shape[1:]

    def blocks(size):
        for start in range(0, len(samples), size):
            rows = np.minimum(np.arange(start, start + size), len(samples) - 1)
            yield mesh.whole(_pixels(to_images, mesh.cut(samples[rows])))[: len(samples) - start]

    return Images(name, len(samples), shape, blocks, {})

"""Reads images through a feature network once, and computes the metrics from their features."""

import contextlib
import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.fid import BadInput
from experiments.fid.images import Images
from experiments.fid.networks import Network
from experiments.fid.references import KEYS, Reference, write_reference
from experiments.runtime import mesh, progress
from guidance import metrics

KID_BLOCK = 1000  # rows in a block, or fewer if there are not enough for KID_BLOCKS
KID_BLOCKS = 10  # the least number of blocks, which makes the standard error meaningful
SCORE_SPLIT = 5000  # images in a split of the inception score, as in the ADM suite
BUFFER = 4096  # rows to collect before an update of the d x d statistics, whose cost hardly depends on the rows
FRECHET = {"fid": "features", "sfid": "spatial"}
NEEDED_BY = {"features": "everything but is", "spatial": "sfid", "probabilities": "is"}
PACKAGES = ("numpy", "jax", "flax", "pillow")

_blocks = jax.jit(metrics.kernel_inception_distance, static_argnames="block")
_balls = jax.jit(metrics.precision_recall_density_coverage, static_argnames="k")


class Stream:
    """Accumulates the mean and covariance, in float64, of rows that come block by block."""

    def __init__(self):
        self.stats: metrics.GaussianStats | None = None
        self.waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= BUFFER:
            self.read()

    def read(self) -> metrics.GaussianStats:
        """Returns the statistics of all rows so far."""
        if self.waiting:
            rows = metrics.gaussian_stats(np.concatenate(self.waiting))
            self.stats = metrics.merge_stats(self.stats or metrics.empty_stats(len(rows.mean)), rows)
            self.waiting = []
        return self.stats


class Survey(NamedTuple):
    """The result of `survey`; `stats` and `rows` are by name of the network's output."""

    stats: dict[str, metrics.GaussianStats]
    rows: dict[str, np.ndarray]
    kept: np.ndarray | None  # the images with the indices `keep`
    sha256: str  # of all pixels


def survey(
    network: Network,
    images: Images,
    batch: int,
    stats: Sequence[str] | None = (),
    rows: Sequence[str] = (),
    keep: np.ndarray | None = None,
    check: Callable[[dict[str, int]], None] = lambda widths: None,
) -> Survey:
    """Reads all images once, `batch` per data-parallel device at a time, and collects the outputs of the network.

    stats: the outputs whose mean and covariance are returned; None: those that a reference stores. rows: the outputs
    that are returned for every image, as float32. keep: the indices of images to return. check: called after the first
    batch with the width of each output; it may raise. The last batch is filled up with copies of its last image.
    """
    collected = {name: [] for name in rows}
    kept, digest, done = [], hashlib.sha256(), 0
    size = min(mesh.places() * batch, mesh.rounded(images.count))
    total = math.ceil(images.count / size)
    for block in progress.track(images.blocks(size), f"{network.name} features of {images.path}", total):
        digest.update(block.tobytes())
        full = np.concatenate([block, np.repeat(block[-1:], size - len(block), axis=0)])
        with progress.waiting(f"compiling {network.name}") if done == 0 else contextlib.nullcontext():
            outputs = {name: np.asarray(values)[: len(block)] for name, values in network.read(full).items()}
        if done == 0:
            streams = {name: Stream() for name in ([n for n in KEYS if n in outputs] if stats is None else stats)}
            for name in {*streams, *collected} - outputs.keys():
                raise BadInput(f"--features {network.name} has no {name}, which {NEEDED_BY[name]} needs")
            check({name: values.shape[1] for name, values in outputs.items()})
        for name in {*streams, *collected}:
            if not np.isfinite(outputs[name]).all():
                raise BadInput(f"{images.path}: {name} of images {done} to {done + len(block) - 1} are not finite")
        for name, stream in streams.items():
            stream.add(outputs[name])
        for name, parts in collected.items():
            parts.append(outputs[name].astype(np.float32))
        if keep is not None:
            kept.append(block[np.isin(np.arange(done, done + len(block)), keep)])
        done += len(block)
    return Survey(
        {name: stream.read() for name, stream in streams.items()},
        {name: np.concatenate(parts) for name, parts in collected.items()},
        np.concatenate(kept) if kept else None,
        digest.hexdigest(),
    )


def write_ref(network: Network, images: Images, batch: int, keep: int, out) -> dict[str, Any]:
    """Computes a reference, writes it to `out` and returns its `about`. It includes `keep` images, drawn with seed 0.

    We draw them because the first images of a folder may all be of one class.
    """
    drawn = np.random.default_rng(0).choice(images.count, min(keep, images.count), replace=False)
    seen = survey(network, images, batch, stats=None, keep=drawn)
    about = {"network": network.about(), "images": describe(images, seen), "kept": len(drawn), "versions": versions()}
    write_reference(out, seen.stats, seen.kept if keep else None, about)
    return about


def calculate(
    network: Network, images: Images, reference: Reference, wanted: Sequence[str], batch: int, k: int, few: bool
) -> dict[str, Any]:
    """Returns the metrics `wanted`, with everything that their values depend on. k: the neighbours of prdc."""
    distances = {name: FRECHET[name] for name in wanted if name in FRECHET}
    computed = [part for part in distances.values() if part not in reference.stats]
    paired = [name for name in PAIRED if name in wanted]
    same_network(network, reference)
    _enough_images(images, reference, computed, paired, k)
    rows = ["features"] if paired else []
    widths = {}

    def check(found):
        widths.update(found)
        for name, part in distances.items():
            _enough_rows(name, found[part], images, reference, part in computed, few)

    def check_truth(found):
        if found != widths:  # with the network `pixels`, images of another size
            raise BadInput(f"{reference.path} gives {found} numbers an image, {images.path} {widths}")

    scores = ["probabilities"] if "is" in wanted else []
    sample = survey(network, images, batch, list(distances.values()), rows + scores, check=check)
    truth = None
    if paired or computed:
        truth = survey(network, reference.images, batch, computed, rows, check=check_truth)
    values, settings = {}, {}
    for name, part in distances.items():
        other = truth.stats[part] if part in computed else reference.stats[part]
        with progress.waiting(f"computing {name}"):
            values[name] = metrics.frechet_distance(sample.stats[part], other, few=few)
        settings[name] = {"statistics": "computed from the images" if part in computed else "stored"}
    for name in paired:
        with progress.waiting(f"computing {name}"):
            pair, settings[name] = PAIRED[name](sample.rows["features"], truth.rows["features"], k)
        values |= pair
    if scores:
        score, spread = metrics.inception_score(sample.rows["probabilities"], SCORE_SPLIT)
        values |= {"is": score, "is_std_of_splits": spread}
        settings["is"] = {"split": SCORE_SPLIT}
    compared = {"path": reference.path, "sha256": reference.sha256, "about": reference.about or None}
    return {
        "metrics": values,
        "settings": settings,
        "images": describe(images, sample),
        "reference": compared | {"images": describe(reference.images, truth) if truth else None},
        "network": network.about(),
        "versions": versions(),
    }


def describe(images: Images, seen: Survey) -> dict[str, Any]:
    """Returns the path, count, shape and pixel digest of images, with the ranges of their ids or seeds if stored."""
    facts = {"path": images.path, "count": images.count, "shape": list(images.shape), "pixels_sha256": seen.sha256}
    return facts | images.ids


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that the numbers depend on, and the name of the device."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "device": jax.devices()[0].device_kind}


def _kid(sample: np.ndarray, truth: np.ndarray, k: int) -> tuple[dict, dict]:
    del k
    least = min(len(sample), len(truth))
    block = min(KID_BLOCK, least // KID_BLOCKS)
    estimate = _blocks(jax.random.key(0), jnp.asarray(sample), jnp.asarray(truth), block=block)
    values = {"kid": float(estimate.value), "kid_standard_error": float(estimate.standard_error)}
    return values, {"block": block, "blocks": least // block, "seed": 0}


def _prdc(sample: np.ndarray, truth: np.ndarray, k: int) -> tuple[dict, dict]:
    manifold = _balls(jnp.asarray(truth), jnp.asarray(sample), k=k)
    return {name: float(value) for name, value in manifold._asdict().items()}, {"neighbours": k}


PAIRED = {"kid": _kid, "prdc": _prdc}


def _enough_images(images: Images, reference: Reference, computed: list[str], paired: list[str], k: int) -> None:
    if reference.images is None and (paired or computed):
        lacking = "images (arr_0)" if paired else " and ".join(KEYS[computed[0]])
        raise BadInput(f"{reference.path} has no {lacking}, which {', '.join(paired) or NEEDED_BY[computed[0]]} needs")
    for side in (images, reference.images) if paired else ():
        for name, least in (("kid", 2 * KID_BLOCKS), ("prdc", k + 1)):
            if name in paired and side.count < least:
                raise BadInput(f"{side.path} has {side.count} images; {name} needs at least {least}")


def _enough_rows(name: str, d: int, images: Images, reference: Reference, computed: bool, few: bool) -> None:
    """Raises BadInput if a Frechet distance of d features needs more images than either side has."""
    part = FRECHET[name]
    if not computed and len(reference.stats[part].mean) != d:
        raise BadInput(f"{reference.path} has {len(reference.stats[part].mean)} {part} a row, the network here {d}")
    known = reference.images.count if computed else reference.about.get("images", {}).get("count")
    for path, count in ((images.path, images.count), (reference.path, known)):
        if count is not None and count <= d and not few:
            raise BadInput(
                f"{path} has {count} images: {name.upper()} with n < {d + 1} is biased (a singular covariance); "
                "--few computes it all the same"
            )


def same_network(network: Network, reference: Reference) -> None:
    """Raises BadInput for a reference that was made by another network."""
    stored = reference.about.get("network")
    for field, value in network.about().items():
        if stored is not None and stored.get(field) != value:
            raise BadInput(
                f"{reference.path} was made with {field} {stored.get(field)!r}, here it is {value!r}; "
                "expected the network and resizer of the reference"
            )

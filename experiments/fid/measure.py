"""One pass over images, and the metrics computed from what it leaves."""

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

KID_BLOCK = 1000  # rows, where there are enough
KID_BLOCKS = 10  # at least so many, for a standard error that means something
SCORE_SPLIT = 5000  # images a split of the inception score: the convention of the ADM suite
BUFFER = 4096  # rows that wait before the statistics are brought up to date: a d x d update costs the same for one
FRECHET = {"fid": "features", "sfid": "spatial"}
NEEDED_BY = {"features": "everything but is", "spatial": "sfid", "probabilities": "is"}
PACKAGES = ("numpy", "jax", "flax", "pillow")

_blocks = jax.jit(metrics.kernel_inception_distance, static_argnames="block")
_balls = jax.jit(metrics.precision_recall_density_coverage, static_argnames="k")


class Stream:
    """Mean and covariance, in float64, of rows that come block by block."""

    def __init__(self):
        self.stats: metrics.GaussianStats | None = None
        self.waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        self.waiting.append(rows)
        if sum(map(len, self.waiting)) >= BUFFER:
            self.read()

    def read(self) -> metrics.GaussianStats:
        """The statistics of all rows so far."""
        if self.waiting:
            rows = metrics.gaussian_stats(np.concatenate(self.waiting))
            self.stats = metrics.merge_stats(self.stats or metrics.empty_stats(len(rows.mean)), rows)
            self.waiting = []
        return self.stats


class Survey(NamedTuple):
    """What a pass leaves: statistics and rows by the names that were asked for, and a digest of every pixel."""

    stats: dict[str, metrics.GaussianStats]
    rows: dict[str, np.ndarray]
    kept: np.ndarray | None  # the images at `keep`
    sha256: str


def survey(
    network: Network,
    images: Images,
    batch: int,
    stats: Sequence[str] | None = (),
    rows: Sequence[str] = (),
    keep: np.ndarray | None = None,
    check: Callable[[dict[str, int]], None] = lambda widths: None,
) -> Survey:
    """Reads all images once, `batch` for each place of the mesh at a time, the last batch filled up with copies of its
    last image.

    `stats` and `rows` name outputs of the network, None all that a reference holds; rows are kept as float32, so ask
    only for those that are needed. `check` is told how many numbers each output has after the first batch, and may
    raise before the others are read.
    """
    held = {name: [] for name in rows}
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
            for name in {*streams, *held} - outputs.keys():
                raise BadInput(f"--features {network.name} has no {name}, which {NEEDED_BY[name]} needs")
            check({name: values.shape[1] for name, values in outputs.items()})
        for name in {*streams, *held}:
            if not np.isfinite(outputs[name]).all():
                raise BadInput(f"{images.path}: {name} of images {done} to {done + len(block) - 1} are not finite")
        for name, stream in streams.items():
            stream.add(outputs[name])
        for name, parts in held.items():
            parts.append(outputs[name].astype(np.float32))
        if keep is not None:
            kept.append(block[np.isin(np.arange(done, done + len(block)), keep)])
        done += len(block)
    return Survey(
        {name: stream.read() for name, stream in streams.items()},
        {name: np.concatenate(parts) for name, parts in held.items()},
        np.concatenate(kept) if kept else None,
        digest.hexdigest(),
    )


def write_ref(network: Network, images: Images, batch: int, keep: int, out) -> dict[str, Any]:
    """Computes and writes a reference; returns what it says about itself. `keep` images go along, drawn with seed 0.

    They are drawn because a folder in the order of its classes has no fair first part.
    """
    drawn = np.random.default_rng(0).choice(images.count, min(keep, images.count), replace=False)
    seen = survey(network, images, batch, stats=None, keep=drawn)
    about = {"network": network.about(), "images": describe(images, seen), "kept": len(drawn), "versions": versions()}
    write_reference(out, seen.stats, seen.kept if keep else None, about)
    return about


def calculate(
    network: Network, images: Images, reference: Reference, wanted: Sequence[str], batch: int, k: int, few: bool
) -> dict[str, Any]:
    """The metrics called `wanted`, with everything that their values depend on. `k`: neighbours of prdc."""
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
        if found != widths:  # images of another size under `pixels`
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
    """What was read: path, count, shape, the digest of its pixels in order, and ids or seeds where they are stored."""
    facts = {"path": images.path, "count": images.count, "shape": list(images.shape), "pixels_sha256": seen.sha256}
    return facts | images.ids


def versions() -> dict[str, str]:
    """Of what the numbers depend on, and the device they were computed on."""
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
    """Of both sides, as far as their counts are known, before more than a batch is read."""
    part = FRECHET[name]
    if not computed and len(reference.stats[part].mean) != d:
        raise BadInput(f"{reference.path} has {len(reference.stats[part].mean)} {part} a row, the network here {d}")
    behind = reference.images.count if computed else reference.about.get("images", {}).get("count")
    for path, count in ((images.path, images.count), (reference.path, behind)):
        if count is not None and count <= d and not few:
            raise BadInput(
                f"{path} has {count} images: {name.upper()} with n < {d + 1} is biased (a singular covariance); "
                "--few computes it all the same"
            )


def same_network(network: Network, reference: Reference) -> None:
    """Raises BadInput for a reference that was made by another network."""
    theirs = reference.about.get("network")
    for field, ours in network.about().items():
        if theirs is not None and theirs.get(field) != ours:
            raise BadInput(
                f"{reference.path} was made with {field} {theirs.get(field)!r}, here it is {ours!r}; "
                "expected the network and resizer of the reference"
            )

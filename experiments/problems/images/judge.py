"""Shared by problems on labelled images: checks of their classes, metrics in a classifier's features, pictures."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance import metrics, pools
from guidance.pools import Pool
from guidance.types import Array

NEIGHBOURS = 5
TUNED = ("frechet_distance", "energy_distance")  # the metrics that hand-made weights are tuned on
COLUMNS, ROWS = 10, 6  # the most classes in a picture, and samples of each
MANIFOLD = 2000  # the most held-out images for precision, recall, density and coverage, whose cost is quadratic


def check_classes(
    labels: np.ndarray, classes: int, names: tuple[str, ...] | None = None, least: int = 1, use: str = "in this split"
) -> None:
    """Raises ValueError, naming the class, unless each of these classes, and no other, has `least` labels.

    Memory goes with the number of labels, not with that of classes, which may be a mistake.
    """
    present, counts = np.unique(labels, return_counts=True)
    strange = present[(present < 0) | (present >= classes)]
    if len(strange):
        raise ValueError(f"label {strange[0]} is outside 0..{classes - 1}")
    gaps = np.append(present, classes) != np.arange(len(present) + 1)
    if gaps.any():
        lacking, count = int(np.argmax(gaps)), 0
    elif counts.min() < least:
        lacking, count = int(np.argmin(counts)), int(counts.min())
    else:
        return
    name = f"class {lacking} ({names[lacking]})" if names else f"class {lacking}"
    number = f"{count} image{'s' * (count > 1)}" if count else "no image"
    raise ValueError(f"{name} has {number} {use}" + f"; expected {least} or more" * (least > 1))


def pool(images: np.ndarray, labels: np.ndarray, classes: int) -> Pool:
    """Sorts images by label. Raises ValueError if a class is empty or a label is outside 0 .. classes - 1."""
    check_classes(labels, classes)
    return pools.pool(images, labels, np.arange(classes))


class Meter(NamedTuple):
    """The classifier that reads features and classes, and the held-out images that samples are compared with."""

    read: Callable[[Array], tuple[Array, Array]]  # images [n, H, W, C] -> (features [n, d], logits [n, G]), jitted
    features: np.ndarray  # of the held-out images [N, d]
    labels: np.ndarray  # [N]
    stats: metrics.GaussianStats
    pixels: np.ndarray  # the held-out images, flat [N, D]


def meter(read, images: np.ndarray, labels: np.ndarray) -> Meter:
    """Returns the meter that compares with these held-out images [N, H, W, C] of these labels [N]."""
    features, _ = in_batches(read, images)
    return Meter(read, features, labels, metrics.gaussian_stats(features), images.reshape(len(images), -1))


def in_batches(read, images, batch: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Reads any number of images, `batch` at a time, into NumPy."""
    parts = [read(jnp.asarray(images[i : i + batch])) for i in range(0, len(images), batch)]
    return tuple(np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2))


_energy = jax.jit(lambda x, y: metrics.energy_distance(x, y).value)
_kernel = jax.jit(lambda x, y: metrics.mmd_squared(metrics.polynomial_kernel(3), x, y).value)
_manifold = jax.jit(lambda real, fake: metrics.precision_recall_density_coverage(real, fake, NEIGHBOURS))


def measure(meter: Meter, samples: Array, full: bool) -> dict[str, float]:
    """Returns metrics of samples [G, n, H, W, C] against the held-out images, by name.

    They are the Frechet distance of all classes together, the energy distance averaged over classes, and the share of
    samples that the classifier reads as their class. `full` adds the kernel distance of the features (unbiased, all
    pairs), their precision, recall, density and coverage, the energy distance of pixels, and the mean pixel.
    """
    groups, n = samples.shape[:2]
    classes = np.arange(groups) * (meter.labels.max() + 1) // groups  # as interface.shares chooses them
    images = samples.reshape(groups * n, *samples.shape[2:])
    features, logits = in_batches(meter.read, images)
    values = {
        "frechet_distance": _frechet(meter, features),
        "energy_distance": _class_energy(meter, classes, features.reshape(groups, n, -1), meter.features),
        "class_agreement": float(np.mean(np.argmax(logits, -1) == np.repeat(classes, n))),
    }
    if full:
        values["kernel_distance"] = float(_kernel(jnp.asarray(features), jnp.asarray(meter.features)))
        manifold = _manifold(jnp.asarray(meter.features[:MANIFOLD]), jnp.asarray(features))
        values |= {name: float(value) for name, value in manifold._asdict().items()}
        pixels = np.clip(np.asarray(samples).reshape(groups, n, -1), 0, 1)
        values["pixel_energy_distance"] = _class_energy(meter, classes, pixels, meter.pixels)
        values["mean_pixel"] = float(pixels.mean())
    return values


def frechet(meter: Meter, samples: Array) -> float:
    """Returns the Frechet distance alone, for samples without labels."""
    return _frechet(meter, in_batches(meter.read, samples.reshape(-1, *samples.shape[2:]))[0])


def _frechet(meter: Meter, features: np.ndarray) -> float:
    # few: presets that only show that everything runs draw fewer images than there are features
    return metrics.frechet_distance(metrics.gaussian_stats(features), meter.stats, few=True)


def _class_energy(meter: Meter, classes, x: np.ndarray, held_out: np.ndarray) -> float:
    """Returns the mean over classes of the energy distance of x [G, n, d] to the rows of held_out of that class."""
    pairs = zip(classes, x, strict=True)
    parts = [_energy(jnp.asarray(x), jnp.asarray(held_out[meter.labels == c])) for c, x in pairs]
    return float(np.mean([float(part) for part in parts]))


def picture(
    axes, samples: Array, to_images: Callable[[Array], Array] = jnp.asarray, names: Sequence[str] | None = None
) -> None:
    """Draws samples [G, n, ...]: one column for each class, ROWS samples each, with its name or number below.

    Where there are more than COLUMNS classes with fewer samples each, every image is of another class. `to_images`
    turns the few samples that are shown into images in [0, 1]. names: of the classes, in the order of their labels.
    """
    groups, n = samples.shape[:2]
    mixed = groups > COLUMNS and n < ROWS
    if mixed:
        columns = max(1, min(COLUMNS, groups * n // ROWS))
        samples = samples.reshape(groups * n, *samples.shape[2:])[: columns * ROWS]
        samples = samples.reshape(columns, -1, *samples.shape[1:])
    samples = samples[:COLUMNS, :ROWS]
    images = np.clip(np.asarray(to_images(samples.reshape(-1, *samples.shape[2:]))), 0, 1)
    columns, rows, (height, width, channels) = *samples.shape[:2], images.shape[1:]
    # a white line of a pixel or more below and to the right of every image
    gap = max(1, height // 16)
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=float(channels > 1))
    sheet = images.reshape(columns, rows, height + gap, width + gap, channels).transpose(1, 2, 0, 3, 4)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), channels)[:-gap, :-gap]
    axes.imshow(sheet[..., 0] if channels == 1 else sheet, cmap="gray_r", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    if not mixed and n > 1:  # with one sample per class, only some classes may be drawn
        labels = (names or [str(c) for c in range(groups)])[:columns]
        turned = max(map(len, labels)) > 6
        axes.set_xticks(np.arange(columns) * (width + gap) + width / 2 - 0.5, labels, rotation=90 * turned, fontsize=7)
        axes.tick_params(axis="x", length=0)


def to_pixels(images: Array) -> Array:
    """Rounds images in [0, 1], perhaps beyond, to the nearest of 256 values, uint8, as published samplers do."""
    return jnp.floor(255 * jnp.clip(images, 0, 1) + 0.5).astype(jnp.uint8)

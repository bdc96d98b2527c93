"""What is measured on images, number by number against NumPy and SciPy: in a classifier's features and as FID.

The feature networks here are simple enough to be computed by hand: means of halves of a picture, or the small random
network read on its own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.tree_util import Partial
from ml_collections import config_dict
from scipy.spatial.distance import cdist

from experiments.fid import images as fid_images
from experiments.fid import networks
from experiments.problems import interface
from experiments.problems.images import inception, judge
from experiments.runtime import drawing
from guidance.metrics import inception_score

SIDE = 4


def halves(x):
    """Features: mean of the left half, of the right half, and their product; logits favour the brighter half."""
    left, right = jnp.mean(x[:, :, :2, 0], axis=(1, 2)), jnp.mean(x[:, :, 2:, 0], axis=(1, 2))
    return jnp.stack([left, right, left * right], -1), jnp.stack([left, right, 0 * left - 9], -1)


def halves_numpy(x):
    left, right = x[..., :2, 0].mean((-1, -2)), x[..., 2:, 0].mean((-1, -2))
    return np.stack([left, right, left * right], -1)


def pictures(n, seed):
    return np.random.default_rng(seed).uniform(size=(n, SIDE, SIDE, 1)).astype(np.float32)


def frechet(x, y):
    s, t = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(s @ t).real
    return np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s + t - 2 * root)


def energy(x, y):
    """2 E|x - y| - E|x - x'| - E|y - y'| over pairs of different rows."""

    def others(z):
        return cdist(z, z).sum() / (len(z) * (len(z) - 1))

    return 2 * cdist(x, y).mean() - others(x) - others(y)


def kernel_distance(x, y):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def others(a):
        return (kernel(a, a).sum() - np.trace(kernel(a, a))) / (len(a) * (len(a) - 1))

    return others(x) + others(y) - 2 * kernel(x, y).mean()


def balls(real, fake, k=5):
    """Precision, recall, density and coverage from the definitions."""
    reach = [np.sort(cdist(z, z), axis=1)[:, k, None] for z in (real, fake)]
    in_real, in_fake = cdist(real, fake) < reach[0], cdist(fake, real) < reach[1]
    return {
        "precision": in_real.any(0).mean(),
        "recall": in_fake.any(0).mean(),
        "density": in_real.sum() / (k * len(fake)),
        "coverage": in_real.any(1).mean(),
    }


@pytest.fixture(scope="module")
def held():
    """Held-out pictures of three classes, not sorted, not equally many."""
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [9, 14, 11]))
    return pictures(34, 0), labels


@pytest.fixture(scope="module")
def meter(held):
    return judge.meter(jax.jit(halves), *held)


def test_every_number_of_the_classifier(held, meter):
    """Samples [G, n, ...], some beyond [0, 1]: the networks see them as they are, pixels are clipped."""
    samples = 1.3 * np.stack([pictures(8, 10 + c) for c in range(3)]) - 0.1
    values = judge.measure(meter, jnp.asarray(samples), True)
    real, labels = held
    ours, theirs = halves_numpy(samples.astype(np.float64)), halves_numpy(real.astype(np.float64))
    flat = ours.reshape(-1, 3)
    brighter = np.where(flat[:, 0] >= flat[:, 1], 0, 1)
    pixels, held_pixels = np.clip(samples.reshape(3, 8, -1), 0, 1), real.reshape(len(real), -1)
    expected = {
        "frechet_distance": frechet(flat, theirs),
        "energy_distance": np.mean([energy(ours[c], theirs[labels == c]) for c in range(3)]),
        "class_agreement": np.mean(brighter == np.repeat(np.arange(3), 8)),
        "kernel_distance": kernel_distance(flat, theirs),
        **balls(theirs, flat),
        "pixel_energy_distance": np.mean([energy(pixels[c], held_pixels[labels == c]) for c in range(3)]),
        "mean_pixel": pixels.mean(),
    }
    assert values.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=2e-4, abs=2e-6), name
    lead = ("frechet_distance", "energy_distance", "class_agreement")
    quick = judge.measure(meter, jnp.asarray(samples), False)
    assert quick == pytest.approx({name: expected[name] for name in lead}, rel=2e-4, abs=2e-6)
    assert judge.frechet(meter, jnp.asarray(samples)) == pytest.approx(expected["frechet_distance"], rel=2e-4)


@pytest.mark.parametrize("samples, classes, each", [(34, range(10), 3), (10, range(10), 1), (4, (0, 2, 5, 7), 1)])
def test_which_conditions_samples_are_of(samples, classes, each):
    """Every class equally often; of more classes than samples, one sample of every so many."""
    conditions, n = interface.shares(jnp.arange(10), samples)
    assert conditions.tolist() == list(classes) and n == each


def test_fewer_samples_than_classes_are_compared_with_their_own_classes():
    """Four samples of ten classes are of 0, 2, 5 and 7: agreement and energies are those of these classes."""
    labels = np.repeat(np.arange(10), 3)
    levels = (labels / 20 + np.tile([0, 0.01, 0.02], 10)).astype(np.float32)
    held = np.broadcast_to(levels[:, None, None, None], (30, SIDE, SIDE, 1))

    def by_level(x):
        level = jnp.mean(x, axis=(1, 2, 3))
        return level[:, None], -((20 * level[:, None] - jnp.arange(10.0)[None]) ** 2)

    meter = judge.meter(by_level, held, labels)
    shown = np.array([0, 2, 5, 7])
    samples = np.stack([held[labels == c][[0, 2]] for c in shown])
    values = judge.measure(meter, jnp.asarray(samples), False)
    assert values["class_agreement"] == 1.0
    expected = np.mean([energy(samples[i, :, 0, 0], levels[labels == c][:, None]) for i, c in enumerate(shown)])
    assert values["energy_distance"] == pytest.approx(expected, abs=1e-6)


def test_pixels_are_rounded_to_the_nearest_level():
    levels = jnp.asarray([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 100.6 / 255, 254.6 / 255, 1.0, 1.4])
    assert judge.to_pixels(levels).tolist() == [0, 0, 0, 1, 100, 101, 255, 255, 255]


# ---- FID


def settings(reference=""):
    return config_dict.ConfigDict({"instrument": "random", "reference": reference})


def half(x):
    """Samples in [-1, 1] -> images in [0, 1]."""
    return (x + 1) / 2


def features(x):
    """(features, probabilities) of uint8 images by the random network, read by itself."""
    read = networks.build("random", None, None).read(np.repeat(x, 3, axis=-1))
    return [np.asarray(read[name], np.float64) for name in ("features", "probabilities")]


def test_every_number_of_the_fid():
    """Against images that were set apart; KID in ten blocks of pairs is unbiased for the one of all pairs."""
    real = (255 * pictures(64, 20)).astype(np.uint8)
    apart = fid_images.Images(
        "apart", 64, real.shape[1:], lambda size: [real[i : i + size] for i in range(0, 64, size)], {}
    )
    instrument = inception.load(settings(), apart)
    samples = 1.6 * np.stack([pictures(10, 30 + c) for c in range(4)]) - 0.8
    seen = np.floor(255 * np.clip(half(samples.reshape(-1, SIDE, SIDE, 1)), 0, 1) + 0.5).astype(np.uint8)
    (theirs, _), (ours, probabilities) = features(real), features(seen)
    values = inception.measure(instrument, Partial(half), jnp.asarray(samples), True)
    expected = {"fid": frechet(ours, theirs), "inception_score": inception_score(probabilities)[0]}
    expected |= balls(theirs, ours)
    assert values.keys() == {*expected, "kid", "kid_standard_error"}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-4), name
    assert abs(values["kid"] - kernel_distance(ours, theirs)) < 5 * values["kid_standard_error"]
    quick = inception.measure(instrument, Partial(half), jnp.asarray(samples), False)
    assert quick == pytest.approx({"fid": expected["fid"]}, rel=1e-4)
    broken = jnp.asarray(samples).at[1, 2, 0, 0, 0].set(jnp.nan)
    assert inception.measure(instrument, Partial(half), broken, True) == {"fid": float("inf")}


@pytest.mark.parametrize("size", [1, 7, 40, 64])
def test_samples_become_images_in_their_order_whatever_the_block(size):
    """40 samples, each of a level of its own; the last block is filled up and what fills it up is left out."""
    levels = np.arange(40)
    samples = jnp.asarray(np.broadcast_to(levels[:, None, None, None], (40, SIDE, SIDE, 1)) / 127.5 - 1, jnp.float32)
    found = inception.as_images("samples", samples, Partial(half))
    assert (found.count, found.shape) == (40, (SIDE, SIDE, 1))
    np.testing.assert_array_equal(np.concatenate(list(found.blocks(size)))[:, 0, 0, 0], levels)


LEVEL_AND_LINE = np.pad(np.ones((2, 3)), ((0, 1), (0, 1)))


@pytest.mark.parametrize(
    "groups, n, columns, rows, number",
    [
        (3, 2, 3, 2, lambda column, row: 2 * column + row),
        (12, 8, 10, 6, lambda column, row: 8 * column + row),
        (24, 2, 8, 6, lambda column, row: 6 * column + row),  # many classes, few of each: one after the other
    ],
)
def test_a_sheet_has_a_column_for_each_class(groups, n, columns, rows, number):
    """Image j of class c has level c n + j, two pixels high and three wide; the columns have the names of classes."""
    levels, names = np.arange(groups * n).reshape(groups, n), [f"n{c}" for c in range(groups)]
    _, axes = drawing.subplots()
    judge.picture(axes, np.broadcast_to(levels[..., None, None, None] / 200, (groups, n, 2, 3, 1)), names=names)
    sheet = axes.get_images()[0].get_array()
    assert sheet.shape == (3 * rows - 1, 4 * columns - 1)  # with a white line between images
    expected = np.array([[number(column, row) for column in range(columns)] for row in range(rows)])
    np.testing.assert_allclose(200 * sheet, np.kron(expected, LEVEL_AND_LINE)[:-1, :-1], atol=1e-4)
    shown = dict(zip((label.get_text() for label in axes.get_xticklabels()), axes.get_xticks(), strict=True))
    assert shown == ({} if groups == 24 else {names[c]: 4 * c + 1 for c in range(columns)})  # centres of the columns

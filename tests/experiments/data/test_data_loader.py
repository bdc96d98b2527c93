"""The loader: an order that hosts, threads and restarts do not change, every example once an epoch."""

import contextlib
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import data
from experiments.data import pictures


def numbered(n: int, **more) -> data.Source:
    """A source whose image i is filled with i, with label i mod 3."""

    def read(i):
        return {"image": np.full((2, 4, 1), i, np.uint8), "label": i % 3} | {k: v(i) for k, v in more.items()}

    return data.Source("numbers", n, read, 3)


def seen(batch) -> np.ndarray:
    return batch["image"][:, 0, 0, 0]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 9))
def test_every_example_once_an_epoch(n, count, per_part, seed):
    """The rows of consecutive steps, laid end to end and cut every n, are permutations of 0..n-1."""
    loader = data.Loader(numbered(n), batch=count * per_part, seed=seed)
    steps = -(-3 * n // loader.batch)
    rows = np.concatenate([loader.where(step)[1] for step in range(steps)])
    epochs = np.concatenate([loader.where(step)[0] for step in range(steps)])
    for e in range(3):
        assert sorted(rows[e * n : (e + 1) * n]) == list(range(n))
        assert (epochs[e * n : (e + 1) * n] == e).all()


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 100))
def test_the_parts_of_a_batch_are_the_batch(n, count, per_part, step):
    batch = count * per_part
    whole = data.Loader(numbered(n), batch, seed=1, flip=True).at(step)
    parts = [data.Loader(numbered(n), batch, seed=1, part=(i, count), flip=True).at(step) for i in range(count)]
    for name in ("image", "label"):
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])
    np.testing.assert_array_equal(whole["label"], seen(whole) % 3)
    assert whole["label"].dtype == np.int32


def test_epochs_and_seeds_have_orders_of_their_own():
    """Orders of 100 examples agree in about one place by chance; ten agreements have probability 1e-7."""
    orders = [data.Loader(numbered(100), 100, seed=s).where(step)[1] for s in (0, 1) for step in (0, 1)]
    for i, a in enumerate(orders):
        for b in [np.arange(100), *orders[:i]]:
            assert (a == b).sum() < 10


def test_a_permutation_is_uniform():
    """Over 3,000 seeds each of the 24 orders of four examples comes 125 times, chi-square below its 1e-4 quantile."""
    counts = {}
    for seed in range(3000):
        order = tuple(data.Loader(numbered(4), 4, seed=seed).where(0)[1])
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((c - 125) ** 2 / 125 for c in counts.values()) < 56


def test_flips_are_fair_and_fresh_in_each_epoch():
    """Half of 2,000 images within 4.5 sigma; each epoch flips others; a flipped image is mirrored, not changed."""
    ramp = np.arange(4, dtype=np.uint8)[None, :, None]
    loader = data.Loader(data.Source("ramp", 2000, lambda i: {"image": ramp}), 2000, flip=True)
    flips = []
    for epoch in range(2):
        rows = loader.at(epoch)["image"][:, 0, :, 0]
        flipped = (rows == ramp[0, ::-1, 0]).all(1)
        assert (flipped | (rows == ramp[0, :, 0]).all(1)).all()
        assert abs(flipped.mean() - 0.5) < 4.5 * 0.5 / 2000**0.5
        flips.append(flipped[np.argsort(loader.where(epoch)[1])])
    assert abs((flips[0] == flips[1]).mean() - 0.5) < 4.5 * 0.5 / 2000**0.5
    np.testing.assert_array_equal(pictures.mirrored(ramp), ramp[:, ::-1])
    unflipped = data.Loader(data.Source("ramp", 2000, lambda i: {"image": ramp}), 2000).at(0)["image"]
    assert (unflipped == ramp).all()


def test_each_epoch_draws_a_caption():
    source = numbered(50, captions=lambda i: tuple(f"{i} {k}" for k in range(5)))
    loader = data.Loader(source, 50)
    drawn = [dict(caption.split() for caption in loader.at(epoch)["caption"]) for epoch in range(100)]
    for i in range(50):
        assert {caption[str(i)] for caption in drawn} == set("01234")  # probability to miss any: 250 (4/5)^100, 5e-8
    np.testing.assert_array_equal([int(c.split()[0]) for c in loader.at(3)["caption"]], seen(loader.at(3)))


def test_a_stream_is_what_at_says_from_any_step():
    loader = data.Loader(numbered(10), 4, flip=True)
    for start in (0, 7):
        with contextlib.closing(loader.stream(start)) as batches:
            for step in range(start, start + 9):
                np.testing.assert_array_equal(next(batches)["image"], loader.at(step)["image"])


def test_a_stream_reads_ahead_but_not_without_bound():
    reads = []
    source = data.Source("counted", 100, lambda i: reads.append(i) or {"image": np.zeros((1, 1, 1), np.uint8)})
    with contextlib.closing(data.Loader(source, 1).stream(ahead=3, threads=2)) as batches:
        next(batches)
        deadline = time.monotonic() + 10
        while len(reads) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert len(reads) == 4  # the one that was taken, and three more


def test_an_error_surfaces_at_its_step_and_threads_end():
    before = threading.active_count()
    loader = data.Loader(data.Source("bad", 10, lambda i: {"image": np.zeros((1, 1, 1 + (i == 6)), np.uint8)}), 1)
    step = next(s for s in range(10) if loader.where(s)[1][0] == 6)
    batches = loader.stream(ahead=3)
    for _ in range(step):
        next(batches)
    with pytest.raises(ValueError, match=r"bad\[6\]: image is uint8 \(1, 1, 2\)"):
        next(batches)
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(batches)
    left = data.Loader(numbered(10), 1).stream()
    next(left)
    left.close()
    assert threading.active_count() == before


def test_images_of_several_shapes_name_the_index():
    source = data.Source("mixed", 4, lambda i: {"image": np.zeros((5, 5 + i // 3, 3), np.uint8)})
    with pytest.raises(ValueError, match=r"mixed\[\d\]: image of shape .* in a batch of .*; crop the source"):
        data.Loader(source, 4).at(0)
    assert data.Loader(data.cropped(source, 4), 4).at(0)["image"].shape == (4, 4, 4, 3)


@pytest.mark.parametrize("part", [(0, 3), (2, 2), (-1, 2)])
def test_parts_that_cannot_be_are_refused(part):
    with pytest.raises(ValueError, match="has no part"):
        data.Loader(numbered(10), 4, part=part)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="numbers has no examples"):
        data.Loader(numbered(0), 4)

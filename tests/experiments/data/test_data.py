"""Reading data files: what is read equals what was written, and what is wrong is said in one line."""

import gzip
import pathlib
import struct
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import data


def write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    raw = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: pathlib.Path, suffix: str = ".gz", labels: int = 3):
    rng = np.random.default_rng(0)
    written = {}
    for part, n in (("train", 3), ("t10k", 2)):
        written[part] = rng.integers(0, 256, (n, 28, 28)).astype(np.uint8), np.arange(min(n, labels), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", written[part][0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", written[part][1])
    return written


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, suffix):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    write_idx(tmp_path / f"a{suffix}", array)
    np.testing.assert_array_equal(data.read_idx(tmp_path / f"a{suffix}"), array)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.gz", b"not gzip", "not a readable gzip"),
        ("a.gz", gzip.compress(b"\0\0\x08\1\0\0\0\2ab", mtime=0)[:-9], "not a readable gzip"),
        ("a.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20, "not a readable gzip"),
        ("a", b"", "not an idx file"),
        ("a", b"\0\0\x0d\1\0\0\0\1abcd", "not an idx file of uint8"),
        ("a", b"\0\0\x08\2\0\0\0\1", "not an idx file"),
        ("a", b"\0\0\x08\1\0\0\0\3ab", r"announces shape \(3,\) but holds 2 bytes"),
    ],
)
def test_bad_idx_is_one_line_with_the_path(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as error:
        data.read_idx(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_npz_round_trip_and_refusal_to_unpickle(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.eye(3), b=np.arange(2))
    arrays = data.read_npz(tmp_path / "a.npz")
    assert arrays.keys() == {"w", "b"}
    np.testing.assert_array_equal(arrays["w"], np.eye(3))
    np.savez(tmp_path / "pickled.npz", w=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "lone.npy", np.eye(2))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("pickled.npz", "lone.npy", "text.npz", "cut.npz", "empty.npz"):
        with pytest.raises(ValueError, match="not a whole .npz file of plain arrays") as error:
            data.read_npz(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", [data.read_idx, data.read_npz])
def test_missing_file_names_path_and_expectation(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="absent.* does not exist; expected an"):
        read(tmp_path / "absent")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_its_four_files(tmp_path, suffix):
    written = write_mnist(tmp_path, suffix)
    for (images, labels, *_), part in zip(data.mnist(tmp_path), ("train", "t10k"), strict=True):
        np.testing.assert_array_equal(images[..., 0], written[part][0])
        np.testing.assert_array_equal(labels, written[part][1])
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)


def test_mnist_names_the_missing_file_and_mismatched_labels(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        data.mnist(tmp_path)
    write_mnist(tmp_path, labels=1)
    with pytest.raises(ValueError, match=r"holds shape \(3, 28, 28\) and .* \(1,\)"):
        data.mnist(tmp_path)


def test_mnist_itself(shared):
    """60,000 + 10,000 images; the mean pixel of the training images is 0.1307 (the usual constant)."""
    train, test = data.mnist(shared / "data/mnist")
    assert train.images.shape == (60_000, 28, 28, 1)
    assert test.images.shape == (10_000, 28, 28, 1)
    assert data.to_unit(train.images).mean() == pytest.approx(0.1307, abs=5e-5)
    np.testing.assert_array_equal(train.labels[:5], [5, 0, 4, 1, 9])


def test_digits_are_those_of_scikit_learn():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    images, labels, *_ = data.digits()
    assert images.shape == (1797, 8, 8, 1)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    assert (images.min(), images.max()) == (0, 1)
    np.testing.assert_array_equal(images.reshape(1797, 64) * 16, load_digits().data)
    np.testing.assert_array_equal(labels, load_digits().target)


def test_missing_packages_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"^[^\n]*pip install 'learn-to-guide\[data\]'$"):
        data.open_source("mnist")
    with pytest.raises(ModuleNotFoundError, match=r"^[^\n]*pip install scikit-learn$"):
        data.digits()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 200), st.lists(st.integers(1, 10), min_size=1, max_size=5), st.integers(1, 3))
def test_split_is_disjoint_sized_and_repeatable(n, parts, slack):
    fractions = [p / (slack * sum(parts)) for p in parts]
    indices = data.split(n, fractions, seed=1)
    together = np.concatenate(indices)
    assert len(set(together.tolist())) == len(together)
    assert ((together >= 0) & (together < n)).all()
    assert all(abs(len(i) - n * f) <= 1 for i, f in zip(indices, fractions, strict=True))
    if slack == 1:
        assert len(together) == n
    for a, b in zip(indices, data.split(n, fractions, seed=1), strict=True):
        np.testing.assert_array_equal(a, b)


def test_split_depends_on_the_seed():
    assert (data.split(100, [0.5], seed=1)[0] != data.split(100, [0.5], seed=2)[0]).any()


@pytest.mark.parametrize("fractions", [[], [0.5, 0.6], [0.5, 0.0], [-0.1]])
def test_split_refuses_bad_fractions(fractions):
    with pytest.raises(ValueError, match="fractions must be positive"):
        data.split(10, fractions, seed=0)

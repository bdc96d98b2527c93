"""`Source`: images by index. `open_source` opens one from a published set, a folder, an archive or a file."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.data import files, folders, pictures, published
from experiments.files import names, npz
from experiments.files.opening import one_line
from guidance.words import listed


@dataclasses.dataclass(frozen=True)
class Source:
    """Images by index: source[i] is {"image": uint8 [H, W, 1 or 3]} with "label" (int) or "captions" (tuple of str).

    classes: labels are in [0, classes); None: unlabelled. size: images are cropped to [size, size, C] by
    `pictures.centre_crop`; None: not cropped. names: the names of the classes, in the order of the labels, if known.
    `read(i)` reads an example, which indexing then checks and crops. Several threads may index a source.
    Raises IndexError for i outside [0, len(source)), and ValueError, which names the source and the index, for an
    example that cannot be read or is not as described here.
    """

    name: str
    count: int
    read: Callable[[int], dict[str, Any]]
    classes: int | None = None
    size: int | None = None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < self.count:
            raise IndexError(f"{self.name} has no example {i}: it has {self.count}")
        try:
            example = self.read(int(i))
            self._check(example)
        except Exception as error:  # archives, array_record and decoders raise errors of their own
            raise ValueError(f"{self.name}[{i}]: {one_line(error)}") from None
        if self.size is not None:
            example["image"] = pictures.centre_crop(example["image"], self.size)
        return example

    def _check(self, example: dict[str, Any]) -> None:
        image, label = example["image"], example.get("label")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in pictures.MODES or 0 in image.shape:
            raise ValueError(f"image is {image.dtype} {image.shape}; expected uint8 [H, W, 1 or 3]")
        if label is not None and not 0 <= label < self.classes:
            raise ValueError(f"label {label} is outside 0..{self.classes - 1}")


def open_source(
    name: str, split: str | None = None, folder=None, classes: int | None = None, channels: int = 3
) -> Source:
    """Opens the published set, or the path, called `name`.

    A published set (experiments.data.published.SETS) may be followed by an attribute, as in celeb_a/Smiling. It must
    be prepared by `python -m experiments.tools.prepare`, in `folder` (default: the folder of tensorflow_datasets). Its
    default split is "train".

    A path is an .npz with `images` or `arr_0` and optional `labels`, `arr_1` or `captions`; a folder with the four idx
    files of MNIST, with the splits "train" and "test"; or a folder or .zip of pictures. Pictures are read with
    `channels` 1 or 3 and labelled by sub-folder (`folders.classes`); their split is a sub-folder. classes: the number
    of classes of a path, if it has more classes than its labels show.

    Raises FileNotFoundError or ValueError, in one line that names what is missing and how to get it.
    """
    if name.partition("/")[0] in published.SETS:
        found = published.read(name, split or "train", folder)
        return Source(*found)
    path = pathlib.Path(name)
    if path.suffix == ".npz":
        return _from_npz(path, classes)
    if os.path.isdir(path) and any(path.glob("*-images-idx3-ubyte*")):
        part = {None: 0, "train": 0, "test": 1}.get(split)
        if part is None:
            raise ValueError(f"{path} has no split {split!r}: allowed: train, test")
        return from_arrays(str(path), *files.mnist(path)[part], classes=classes)
    if os.path.isdir(path) or path.suffix == ".zip":
        return _from_pictures(path, split, classes, channels)
    if os.path.exists(path):
        raise ValueError(f"{path} is neither a folder nor an .npz or .zip")
    close = difflib.get_close_matches(name, published.SETS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"published sets: {', '.join(published.SETS)}"
    raise FileNotFoundError(f"{name} is neither a folder, .npz or .zip nor a published set; {hint}")


def cropped(source: Source, size: int) -> Source:
    """Returns the source with every image cropped to [size, size, C] by `pictures.centre_crop`."""
    return dataclasses.replace(source, size=size)


def synthetic(count: int, size: int) -> Source:
    """Returns images of 4 x 4 random colours with the labels i mod 10, for trials. Raises ValueError for count 0."""
    if count == 0:
        raise ValueError("problem.images = 0: synthetic images have no end; allowed: how many")
    colours = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    images = colours.repeat(size // 4, axis=1).repeat(size // 4, axis=2)
    return from_arrays("synthetic", images, np.arange(count) % 10, classes=10)


def chosen(settings) -> Source:
    """Opens the source that a config's `problem` describes by source, split ("all": no split), size and images."""
    if settings.source == "synthetic":
        return synthetic(settings.images, settings.size)
    return cropped(open_source(settings.source, None if settings.split == "all" else settings.split), settings.size)


def from_arrays(
    name: str, images, labels=None, captions: Sequence[str] | None = None, classes: int | None = None
) -> Source:
    """Returns a source of arrays in memory: images uint8 [n, H, W] or [n, H, W, 1, 3 or 4], with labels or captions.

    labels: integers [n]. RGBA images are laid on white. classes: defaults to the largest label + 1. Raises ValueError
    for any other arrays; it names the first label outside [0, classes).
    """
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3, 4) or 0 in images.shape:
        raise ValueError(f"{name}: images are {images.dtype} {images.shape}; expected uint8 [n, H, W, C], C 1, 3 or 4")
    if labels is not None:
        labels, classes = _checked_labels(name, np.asarray(labels), len(images), classes)
    found = None if captions is None else (np.shape(captions) or ("no list of",))[0]
    if found not in (None, len(images)):
        raise ValueError(f"{name}: {len(images)} images but {found} captions")

    def read(i):
        image = pictures.on_white(images[i]) if images.shape[-1] == 4 else images[i]
        example = {"image": image}
        if labels is not None:
            example["label"] = int(labels[i])
        if captions is not None:
            example["captions"] = (str(captions[i]),)
        return example

    return Source(name, len(images), read, classes if labels is not None else None)


def _checked_labels(name: str, labels: np.ndarray, count: int, classes: int | None) -> tuple[np.ndarray, int]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ValueError(f"{name}: labels are {labels.dtype} {labels.shape}; expected integers [{count}]")
    if classes is None:
        largest = int(labels.argmax())
        classes, most = int(labels[largest]) + 1, max(names.CLASSES, count)
        if classes > most:
            raise ValueError(f"{name}[{largest}]: label {classes - 1} is the largest; expected labels below {most}")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(f"{name}[{wrong[0]}]: label {labels[wrong[0]]} is outside 0..{classes - 1}")
    return labels, classes


def _from_npz(path: pathlib.Path, classes: int | None) -> Source:
    arrays = npz.read(path)
    images = arrays.get("images", arrays.get("arr_0"))
    if images is None:
        raise ValueError(f"{path} holds {listed(arrays) or 'nothing'}; expected images or arr_0")
    return from_arrays(str(path), images, arrays.get("labels", arrays.get("arr_1")), arrays.get("captions"), classes)


def _from_pictures(path: pathlib.Path, split: str | None, classes: int | None, channels: int) -> Source:
    folder = folders.opened(path)
    pictured = folders.in_split(folder, split)
    number, names = folders.classes(folder, split)
    if classes is not None and len(names) > classes:
        raise ValueError(f"{path} has {len(names)} sub-folders of pictures; expected at most {classes}")

    def read(i):
        name = pictured[i]
        try:
            example = {"image": pictures.decode(folder.fetch(name), channels)}
        except Exception as error:  # a file system, an archive or a decoder may fail
            raise ValueError(f"{name}: {error}") from None
        return example | {"label": number[name.rpartition("/")[0]]} if number else example

    if not number:
        return Source(str(path), len(pictured), read)
    return Source(str(path), len(pictured), read, classes or len(names), names=None if classes else names)

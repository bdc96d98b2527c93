"""Writes and reads folders of latents: for each image the Gaussian that an autoencoder gives it.

A folder has latents.json, which describes it, and shards 00000-of-00004.array_record, ... A record is one image: its
label (int32, -1 for none), then mean and standard deviation of every view, float32 [views, 2, h, w, channels], all
little-endian. The views are the image and, if there are two, its mirror image.

We use array_record and not .npz for three reasons. It reads single records, from several threads. It hashes every
chunk, so that a flipped bit is an error and not another latent. It writes the same bytes for the same records. Our
reader of published sets needs the package anyway, and it works without TensorFlow.
"""

import json
import math
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.files import names
from experiments.files.opening import existing, one_line, reading
from experiments.runtime.writing import replacing, write_whole

LAYOUT = "uncompressed,group_size:1"  # latents do not compress; with one record a group, a read touches no other
NUMBER, LABEL = np.dtype("<f4"), np.dtype("<i4")
FILES = 99_999  # the largest number of files, since their names have five digits


class About(NamedTuple):
    """The content of latents.json: which images were encoded by which autoencoder, and the layout of the files."""

    source: str
    autoencoder: str  # SHA-256 of its file
    precision: str
    count: int
    shard: int  # images a file; the last may have fewer
    views: int
    shape: tuple[int, int, int]  # h, w, channels
    classes: int | None
    names: tuple[str, ...] | None = None  # the names of the classes, in the order of the labels

    def rows(self) -> list[range]:
        """Returns, for each file, the indices of its images."""
        return [range(start, min(start + self.shard, self.count)) for start in range(0, self.count, self.shard)]

    def record(self) -> int:
        """Returns the size of a record, in bytes."""
        return LABEL.itemsize + NUMBER.itemsize * math.prod((self.views, 2, *self.shape))


def shard_path(folder, about: About, k: int) -> pathlib.Path:
    """Returns the path of the k-th file."""
    return pathlib.Path(folder) / f"{k:05d}-of-{len(about.rows()):05d}.array_record"


def describe(folder, about: About) -> None:
    """Writes latents.json; if the folder has one already, compares it with `about`.

    Raises ValueError, which names the fields that differ, and ModuleNotFoundError if array_record is not installed.
    """
    _array_record()
    path = pathlib.Path(folder) / "latents.json"
    if path.exists():
        stored = _about(path)
        if stored.names is None:  # an earlier version, which stored no names, sorted them alphabetically
            stored = stored._replace(names=about.names and tuple(sorted(about.names)))
        differing = [name for name in About._fields[:-1] if getattr(stored, name) != getattr(about, name)]
        renamed = names.difference(stored.names, about.names)
        if differing or renamed:
            what = f"another {' and '.join(differing)}" if differing else f"other classes: {renamed}"
            raise ValueError(f"{path} is of {what}; encode into a new folder")
        return
    write_whole(path, json.dumps(about._asdict(), indent=2) + "\n")


def write_shard(path: pathlib.Path, posteriors: np.ndarray, labels: Sequence[int]) -> None:
    """Writes posteriors [n, views, 2, h, w, channels] and labels [n]; the file appears only once it is complete."""
    with replacing(path) as fresh:
        writer = _array_record().ArrayRecordWriter(str(fresh), LAYOUT)
        for posterior, label in zip(posteriors, labels, strict=True):
            writer.write(LABEL.type(label).tobytes() + np.ascontiguousarray(posterior, NUMBER).tobytes())
        writer.close()


class Latents:
    """Latents by index: latents[i] is {"image": float32 [views, 2, h, w, channels]}, with "label" (int) if labelled.

    `Loader` accepts it in place of a Source, with flip=False, because mirror images are encoded as a second view. Draw
    latents from a batch with `guidance.nets.vae.draw_view(keys, Posterior(image[:, :, 0], image[:, :, 1]))`. Several
    threads may index it. Raises FileNotFoundError or ValueError if a file is missing or damaged, and ValueError, which
    names the file and the record, for a record that cannot be read.
    """

    def __init__(self, folder) -> None:
        path = existing(pathlib.Path(folder) / "latents.json", "what configs/encode.py writes")
        self.about = _about(path)
        self.name, self.classes, self.names = str(folder), self.about.classes, self.about.names
        self.paths = [shard_path(folder, self.about, k) for k in range(len(self.about.rows()))]
        missing = [file.name for file in self.paths if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder}: {len(missing)} of {len(self.paths)} files are missing, the first is {missing[0]}; "
                "the command that wrote the others goes on there"
            )
        for file, rows in zip(self.paths, self.about.rows(), strict=True):
            if file.stat().st_size < len(rows) * self.about.record():  # checked before we allocate such sizes
                raise ValueError(_not_whole(file, len(rows)))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.about.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not 0 <= i < len(self):
            raise IndexError(f"{self.name} has no example {i}: it has {len(self)}")
        k, row = divmod(int(i), self.about.shard)
        raw = self._record(k, row)
        shape = (self.about.views, 2, *self.about.shape)
        if len(raw) != self.about.record():
            raise ValueError(f"{self.paths[k]}: record {row} has {len(raw)} bytes; expected {self.about.record()}")
        example = {"image": np.frombuffer(raw, NUMBER, offset=LABEL.itemsize).reshape(shape)}
        if self.classes is not None:
            example["label"] = int(np.frombuffer(raw, LABEL, count=1)[0])
        return example

    def _record(self, k: int, row: int) -> bytes:
        with self._lock:  # array_record does not document that threads may share a reader
            if k not in self._readers:
                self._readers[k] = self._open(k)
            try:
                return self._readers[k].read([row])[0]
            except Exception as error:  # array_record documents no exception
                message = one_line(error)[:200]
                raise ValueError(f"{self.paths[k]}: record {row} cannot be read ({message})") from None

    def _open(self, k: int):
        path, expected = self.paths[k], len(self.about.rows()[k])
        module = _array_record()
        with reading(path, "a whole array_record file"):
            reader = module.ArrayRecordReader(str(path))
            found = reader.num_records() if reader.ok() else 0
        if found != expected:
            raise ValueError(_not_whole(path, expected))
        return reader


def _not_whole(path: pathlib.Path, records: int) -> str:
    return f"{path} is not a whole file of {records} records; delete it and encode again"


def _about(path: pathlib.Path) -> About:
    with reading(path, "what configs/encode.py writes"):
        about = About(**json.loads(path.read_text(encoding="utf-8")))
        about = about._replace(shape=tuple(about.shape), names=about.names and tuple(about.names))
        _check(about)
    return about


def _check(about: About) -> None:
    """Raises ValueError for sizes that no folder of latents can have."""
    sizes = (about.count, about.shard, about.views, *about.shape)
    if len(about.shape) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"sizes {about.count}, {about.shard}, {about.views}, {about.shape}")
    if -(-about.count // about.shard) > FILES:
        raise ValueError(f"{about.count} images in files of {about.shard}: more than {FILES} files")
    classes, most = about.classes, max(names.CLASSES, about.count)
    if classes is not None and not (type(classes) is int and 0 < classes <= most):
        raise ValueError(f"{classes!r} classes; expected 1 to {most}")
    if about.names is not None and len(about.names) != classes:
        raise ValueError(f"{len(about.names)} names of {classes} classes")


def _array_record():
    try:
        from array_record.python import array_record_module
    except ModuleNotFoundError:
        raise ModuleNotFoundError("latents need array_record: pip install 'learn-to-guide[data]'") from None
    return array_record_module

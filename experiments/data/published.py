"""Reads published sets that tensorflow_datasets has prepared, without TensorFlow, and prepares them, with TensorFlow.

`read` uses `as_data_source`, which needs sets written as array_record. It never imports the builder of a set, because
some builders import TensorFlow; the prepared folder describes itself. `pictures.decode` decodes the pictures, so that
grey and CMYK pictures among coloured ones become coloured. `python -m experiments.tools.prepare` runs `prepare`.
"""

import difflib
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from experiments.data import pictures
from experiments.files.opening import reading


class Set(NamedTuple):
    """A published set: the name of its builder, and the side to which its images are cropped (None: not cropped)."""

    builder: str
    size: int | None = None
    archives: tuple[str, ...] = ()  # files that the user must get from the owner and put into MANUAL
    owner: str = ""


_IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), "image-net.org"

MANUAL = "downloads/manual"  # inside the root folder of all sets
SETS = {
    "mnist": Set("mnist"),
    "fashion_mnist": Set("fashion_mnist"),
    "cifar10": Set("cifar10"),
    "celeb_a": Set("celeb_a"),
    "imagenet64": Set("imagenet_resized/64x64"),
    "imagenet256": Set("imagenet2012", 256, *_IMAGENET),
    "imagenet2012": Set("imagenet2012", None, *_IMAGENET),
    "coco_captions": Set("coco_captions"),
}


class Found(NamedTuple):
    """The fields of an experiments.data.Source."""

    name: str
    count: int
    read: Callable[[int], dict[str, Any]]
    classes: int | None
    size: int | None
    names: tuple[str, ...] | None


def read(name: str, split: str, data_dir=None) -> Found:
    """Opens the published set "NAME" with its class labels, or "NAME/ATTRIBUTE" with that binary attribute as label.

    Raises ModuleNotFoundError, FileNotFoundError or ValueError, in one line with the command that helps.
    """
    name, _, attribute = name.partition("/")
    builder, source = _open(name, split, data_dir)
    features, at = builder.info.features, builder.data_path
    if "image" not in features:
        raise ValueError(f"{at} is not {name} as it is published: it has no image")
    label, classes, names = None, None, None
    if attribute:
        known = list(features["attributes"]) if "attributes" in features else []
        if attribute not in known:
            raise ValueError(f"{name} has no attribute {attribute!r}{_near(attribute, known)}")
        label, classes = (lambda example: int(example["attributes"][attribute])), 2
        names = (f"not {attribute}", attribute)
    elif "label" in features:
        label, classes = (lambda example: int(example["label"])), features["label"].num_classes
        names = tuple(features["label"].names)
    channels = features["image"].shape[-1]

    def fetch(i):
        with reading(at, "a whole prepared set"):
            stored = source[i]
        example = {"image": pictures.decode(stored["image"], channels)}
        if label is not None:
            example["label"] = label(stored)
        if "captions" in stored:
            example["captions"] = tuple(text.decode() for text in stored["captions"]["text"])
        return example

    return Found(f"{name} {split}", len(source), fetch, classes, SETS[name].size, names)


def prepare(name: str, data_dir=None) -> str:
    """Downloads a set, writes it as array_record, and returns its folder. Needs TensorFlow, much disk space and time.

    Raises ModuleNotFoundError, and ValueError for an unknown name and for missing archives, in one line. On any error
    it removes the empty folders that it has created.
    """
    if name not in SETS:
        raise ValueError(f"no published set {name!r}{_near(name, SETS)}")
    root = _root(data_dir)
    missing = [file for file in SETS[name].archives if not (root / MANUAL / file).is_file()]
    if missing:
        lacking, owner = " and ".join(missing), SETS[name].owner
        raise ValueError(f"{root / MANUAL} lacks {lacking}, of which {name} is made; they come from {owner}")
    known = root.exists()
    try:
        with _needing("prepare", f"preparing {name}"):
            import tensorflow_datasets as tfds

            builder = tfds.builder(SETS[name].builder, data_dir=data_dir, file_format="array_record")
            builder.download_and_prepare()
    except BaseException:
        if not known:
            _remove_empty(root)
        raise
    return str(builder.data_path)


def _open(name: str, split: str, data_dir):
    with _needing("data", f"reading {name}"):
        import tensorflow_datasets as tfds

        root = _root(data_dir)
        folder = root / SETS[name].builder
        version = max(_versions(folder), default=None)
        if version is None:
            archives, owner = " and ".join(SETS[name].archives), SETS[name].owner
            hand = f" (first put {archives} from {owner} into {root / MANUAL})" if archives else ""
            where = "" if data_dir is None else f" --folder={data_dir}"
            raise FileNotFoundError(
                f"{name} is not prepared in {root}: python -m experiments.tools.prepare {name}{where}{hand}"
            )
        at = folder / ".".join(map(str, version))
        try:
            builder = tfds.builder_from_directory(at)
            source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
        except ModuleNotFoundError:
            raise
        except Exception as error:  # protobuf, json and array_record raise errors of their own
            raise ValueError(f"{at}: {' '.join(str(error).split())[:300]}") from None
    return builder, source


def _root(data_dir) -> pathlib.Path:
    """Returns the folder in which tensorflow_datasets keeps its sets."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _remove_empty(root: pathlib.Path) -> None:
    """Removes a folder and all folders in it, except those that contain a file."""
    for parent, _, _ in os.walk(root, topdown=False):
        with suppress(OSError):  # the folder is not empty
            os.rmdir(parent)


def _versions(folder: pathlib.Path) -> Iterator[tuple[int, ...]]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if re.fullmatch(r"\d+\.\d+\.\d+", path.name):
            yield tuple(map(int, path.name.split(".")))


def _near(name: str, known) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; allowed: {', '.join(known) or 'none'}"


@contextmanager
def _needing(extra: str, what: str):
    """Turns ModuleNotFoundError into one line with the remedy; tensorflow_datasets imports some packages only late."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "tensorflow"  # a builder that cannot import TensorFlow raises an error without a name
        raise ModuleNotFoundError(f"{what} needs {missing}: pip install 'learn-to-guide[{extra}]'") from None

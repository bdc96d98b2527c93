"""Published sets, as tensorflow_datasets prepares them: read without TensorFlow, written with it.

Reading goes through `as_data_source` and needs sets written as array_record. The set's own builder is never imported
for it (some of them import TensorFlow at once); what was written says what it is. Pictures are decoded by
`pictures.decode`, so that grey and CMYK pictures among coloured ones become coloured. Writing (`prepare`) is what
`python -m experiments.tools.prepare` does.
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
    """A published set: the builder's name, and the side to which its images are cropped (None: as they are)."""

    builder: str
    size: int | None = None
    archives: tuple[str, ...] = ()  # what its owner must be asked for, to be put into the folder of manual downloads
    owner: str = ""


_IMAGENET = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"), "image-net.org"

MANUAL = "downloads/manual"  # below the root
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
    """The fields of experiments.data.Source."""

    name: str
    count: int
    read: Callable[[int], dict[str, Any]]
    classes: int | None
    size: int | None
    names: tuple[str, ...] | None


def read(name: str, split: str, data_dir=None) -> Found:
    """A published set "NAME" or "NAME/ATTRIBUTE": labels are its class labels, or that binary attribute.

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
    """Downloads the set and writes it as array_record; returns where. Needs TensorFlow, and much room and time.

    Raises ModuleNotFoundError, or ValueError for an unknown name and for archives that are not there, in one line. A
    folder that was not there before does not stay behind empty.
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
        except Exception as error:  # its parts fail in ways of their own: protobuf, json, array_record
            raise ValueError(f"{at}: {' '.join(str(error).split())[:300]}") from None
    return builder, source


def _root(data_dir) -> pathlib.Path:
    """Where tensorflow_datasets keeps its sets."""
    return pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _remove_empty(root: pathlib.Path) -> None:
    """Removes a folder and those in it as far as they hold no file."""
    for parent, _, _ in os.walk(root, topdown=False):
        with suppress(OSError):  # it is not empty
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
    """A missing package as one line; tensorflow_datasets looks for parts of itself as late as it can."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or "tensorflow"  # builders that cannot be imported come wrapped, without the name
        raise ModuleNotFoundError(f"{what} needs {missing}: pip install 'learn-to-guide[{extra}]'") from None

"""Published sets through tensorflow_datasets: real array_record files with the published names and features.

The files are written here by a builder of tensorflow_datasets itself (pictures as encoded bytes need no TensorFlow)
with the features that the published builders declare.
"""

import io
import os
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import published
from experiments.tools import prepare
from tests.conftest import REPOSITORY

ROOT = REPOSITORY


def encoded(image: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    (picture.convert(mode) if mode else picture).save(file, kind)
    return file.getvalue()


def write(folder, name: str, features, examples, version="3.0.2", config=None, split="train") -> None:
    """Prepares a set called `name` in `folder`, as its own builder would with file_format="array_record"."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version)] if config else []

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, downloads):
                return {split: enumerate(examples)}

            def _generate_examples(self):
                raise NotImplementedError

    Builder.name = name
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()


def as_written(source, images):
    """The images of a source in the order in which they were written: tensorflow_datasets shuffles on writing."""
    left = {image.tobytes(): i for i, image in enumerate(images)}
    return [left.pop(source[i]["image"].tobytes()) for i in range(len(source))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small files of four sets, one with grey pictures among the coloured ones."""
    pytest.importorskip("array_record", reason="needs the extra [data]")
    features = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]").features
    folder, rng = tmp_path_factory.mktemp("tfds"), np.random.default_rng(0)

    def some(n, *shape):
        return rng.integers(0, 256, (n, *shape)).astype(np.uint8)

    written = {"cifar10": some(7, 32, 32, 3), "imagenet2012": some(4, 300, 280, 3), "captions": some(5, 10, 12, 3)}
    written["celeb_a"], written["imagenet64"] = some(4, 218, 178, 3), some(3, 64, 64, 3)
    label = {"label": features.ClassLabel(num_classes=10)}
    write(folder, "cifar10", {"id": features.Text(), "image": features.Image(shape=(32, 32, 3)), **label},
          [{"id": str(i), "image": encoded(a), "label": i} for i, a in enumerate(written["cifar10"])])  # fmt: skip
    write(folder, "cifar10", {"image": features.Image(shape=(32, 32, 3)), **label},
          [{"image": encoded(written["cifar10"][0]), "label": 0}], version="2.10.9")  # fmt: skip
    thousand = {"label": features.ClassLabel(num_classes=1000)}
    written["imagenet2012"][3] = written["imagenet2012"][3, :, :, :1]  # grey
    pictures = [*map(encoded, written["imagenet2012"][:3]), encoded(written["imagenet2012"][3], "PNG", "L")]
    write(folder, "imagenet2012",
          {"file_name": features.Text(), "image": features.Image(shape=(None, None, 3)), **thousand},
          [{"file_name": f"{i}.JPEG", "image": p, "label": 999 - i} for i, p in enumerate(pictures)],
          version="5.1.0", split="validation")  # fmt: skip
    write(folder, "imagenet_resized", {"image": features.Image(shape=(64, 64, 3)), **thousand},
          [{"image": encoded(a), "label": 5} for a in written["imagenet64"]], "0.1.0", "64x64")  # fmt: skip
    texts = features.Sequence({"id": np.int64, "text": features.Text()})
    write(folder, "coco_captions", {"captions": texts, "image": features.Image(shape=(None, None, 3))},
          [{"captions": [{"id": k, "text": f"é {i} {k}"} for k in range(5)], "image": encoded(a)}
           for i, a in enumerate(written["captions"])], version="1.1.0")  # fmt: skip
    attributes = {"Male": np.bool_, "Smiling": np.bool_}
    write(folder, "celeb_a", {"image": features.Image(shape=(218, 178, 3)), "attributes": attributes},
          [{"image": encoded(a), "attributes": {"Male": False, "Smiling": i % 2 == 0}}
           for i, a in enumerate(written["celeb_a"])], version="2.1.0")  # fmt: skip
    return folder, written


def test_labelled_images_and_the_newest_version(folder):
    folder, written = folder
    source = data.open_source("cifar10", folder=folder)
    assert (len(source), source.classes, source.names) == (7, 10, tuple("0123456789"))  # written without names
    order = as_written(source, written["cifar10"])
    assert [source[i]["label"] for i in range(7)] == order  # label i was written with image i


def test_imagenet_is_cropped_and_grey_pictures_become_coloured(folder):
    folder, written = folder
    whole = data.open_source("imagenet2012", "validation", folder)
    assert (len(whole), whole.classes) == (4, 1000)
    order = as_written(whole, written["imagenet2012"])
    assert [whole[i]["label"] for i in range(4)] == [999 - i for i in order]
    cropped = data.open_source("imagenet256", "validation", folder)
    assert [cropped[i]["image"].shape for i in range(4)] == [(256, 256, 3)] * 4
    small = data.open_source("imagenet64", folder=folder)
    assert (len(small), small.classes, small[0]["label"]) == (3, 1000, 5)


def test_captions_are_text(folder):
    folder, written = folder
    source = data.open_source("coco_captions", folder=folder)
    for i, n in enumerate(as_written(source, written["captions"])):
        assert source[i]["captions"] == tuple(f"é {n} {k}" for k in range(5))


def test_a_binary_attribute_is_a_label(folder):
    folder, written = folder
    plain, smiling = (data.open_source(name, folder=folder) for name in ("celeb_a", "celeb_a/Smiling"))
    assert (plain.classes, plain[0].keys(), smiling.classes) == (None, {"image"}, 2)
    assert (plain.names, smiling.names) == (None, ("not Smiling", "Smiling"))
    order = as_written(smiling, written["celeb_a"])
    assert [smiling[i]["label"] for i in range(4)] == [int(i % 2 == 0) for i in order]
    with pytest.raises(ValueError, match="celeb_a has no attribute 'Smilin'; did you mean Smiling"):
        data.open_source("celeb_a/Smilin", folder=folder)


def test_what_is_missing_is_one_line_with_the_command(folder):
    folder, _ = folder
    for name in ("mnist", "imagenet256"):
        with pytest.raises(FileNotFoundError) as raised:
            data.open_source(name, folder=folder / "elsewhere")
        message = str(raised.value)
        assert f"{name} is not prepared in {folder}/elsewhere" in message and "\n" not in message
        assert f"python -m experiments.tools.prepare {name} --folder={folder}/elsewhere" in message
    assert "ILSVRC2012_img_train.tar" in message
    with pytest.raises(ValueError, match=r"cifar10/3.0.2: .*'nope'") as raised:
        data.open_source("cifar10", "nope", folder)
    assert "\n" not in str(raised.value)


def test_a_set_of_another_kind_is_one_line(folder, tmp_path):
    features = pytest.importorskip("tensorflow_datasets").features
    write(tmp_path, "mnist", {"text": features.Text(), "label": features.ClassLabel(num_classes=10)},
          [{"text": "a", "label": 1}])  # fmt: skip
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/mnist/3.0.2 is not mnist as it is published: it has no image$"
    ):
        data.open_source("mnist", folder=tmp_path)


def test_spoilt_records_name_the_set_and_the_index(folder, tmp_path):
    folder, _ = folder
    for file in (folder / "cifar10/3.0.2").iterdir():
        target = tmp_path / "cifar10/3.0.2" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        raw = bytearray(file.read_bytes())
        if "array_record" in file.name:
            raw[3000:3200] = bytes(255 - b for b in raw[3000:3200])
        target.write_bytes(bytes(raw))
    source = data.open_source("cifar10", folder=tmp_path)
    with pytest.raises(ValueError, match=rf"cifar10 train\[\d\]: {tmp_path}/cifar10/3.0.2 is not a whole") as raised:
        for i in range(7):
            source[i]
    assert "\n" not in str(raised.value)
    (tmp_path / "cifar10/3.0.2/dataset_info.json").write_text("{half")
    with pytest.raises(ValueError, match=r"cifar10/3.0.2") as raised:
        data.open_source("cifar10", folder=tmp_path)
    assert "\n" not in str(raised.value)


def test_tensorflow_is_not_imported_even_where_it_is_installed(folder, tmp_path):
    """A `tensorflow` that can be found but raises on import stands in the way of a whole reading process."""
    folder, _ = folder
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    program = (
        "import sys, importlib.util\n"
        "from experiments import data\n"
        f"source = data.open_source('cifar10', folder={str(folder)!r})\n"
        "assert data.Loader(source, 4, flip=True).at(3)['image'].shape == (4, 32, 32, 3)\n"
        f"assert 'captions' in data.open_source('coco_captions', folder={str(folder)!r})[0]\n"
        "assert importlib.util.find_spec('tensorflow') is not None\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules\n"
    )
    paths = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_table_names_builders_that_there_are():
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
    for entry in published.SETS.values():
        name, _, config = entry.builder.partition("/")
        try:
            cls = tfds.builder_cls(name)
        except ModuleNotFoundError as error:  # found, and it imports TensorFlow at once
            assert "tensorflow" in str(error)
        else:
            assert not config or config in cls.builder_configs


def test_preparing_says_what_is_missing(monkeypatch, capsys):
    assert prepare.main(["cifar1"]) == 2
    assert capsys.readouterr().err == "error: no published set 'cifar1'; did you mean cifar10?\n"
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert prepare.main(["cifar10"]) == 2
    assert "pip install 'learn-to-guide[prepare]'" in capsys.readouterr().err


def test_preparing_without_the_archives_is_one_line_and_leaves_nothing(tmp_path, capsys):
    root = tmp_path / "sets"
    for name in ("imagenet256", "imagenet2012"):
        assert prepare.main([name, f"--folder={root}"]) == 2
        archives = "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar"
        said = (
            f"error: {root}/downloads/manual lacks {archives}, of which {name} is made; they come from image-net.org\n"
        )
        assert capsys.readouterr().err == said
    manual = root / "downloads" / "manual"
    assert not root.exists()
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_val.tar").touch()
    assert prepare.main(["imagenet256", f"--folder={root}"]) == 2
    assert "lacks ILSVRC2012_img_train.tar, of" in capsys.readouterr().err


def test_a_builder_that_fails_leaves_no_empty_folders(tmp_path, monkeypatch, capsys):
    def builder(name, data_dir, file_format):
        (pathlib.Path(data_dir) / "downloads" / "extracted").mkdir(parents=True)
        raise RuntimeError("no network\nat all")

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=builder))
    assert prepare.main(["cifar10", f"--folder={tmp_path}/sets"]) == 1
    assert capsys.readouterr().err == "error: cifar10 was not prepared: no network at all\n"
    assert os.listdir(tmp_path) == []


def test_preparing_without_tensorflow_is_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorflow_datasets", reason="needs the extra [data]")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr(published, "SETS", {"coco_captions": published.SETS["coco_captions"]})
    assert prepare.main(["coco_captions", f"--folder={tmp_path}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: preparing coco_captions needs tensorflow: pip install 'learn-to-guide[prepare]'"

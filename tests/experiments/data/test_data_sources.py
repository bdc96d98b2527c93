"""Images by index: what comes out is what was put in, and what is wrong is said in one line with file and index."""

import io
import pathlib
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from experiments import data
from experiments.data import pictures

RNG = np.random.default_rng(0)


def noise(*shape) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def put(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def one_line(raised, *parts) -> None:
    """The message is one line and names all parts."""
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


# ---- pictures


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]))), st.sampled_from([1, 3])
)
def test_decoding_undoes_lossless_encoding(image, channels):
    decoded = pictures.decode(png(image), channels)
    assert decoded.shape == (*image.shape[:2], channels) and decoded.dtype == np.uint8
    if channels == image.shape[-1]:
        np.testing.assert_array_equal(decoded, image)
    elif channels == 3:  # grey pictures among coloured ones
        np.testing.assert_array_equal(decoded, np.repeat(image, 3, -1))


def test_transparency_is_laid_on_white():
    rgb = noise(4, 4, 3)
    for alpha, expected in ((0, np.full_like(rgb, 255)), (255, rgb)):
        rgba = np.concatenate([rgb, np.full((4, 4, 1), alpha, np.uint8)], -1)
        np.testing.assert_array_equal(pictures.decode(png(rgba), 3), expected)
        np.testing.assert_array_equal(pictures.on_white(rgba), expected)
    half = np.array([[[100, 0, 255, 51]]], np.uint8)  # alpha 1/5
    np.testing.assert_array_equal(pictures.on_white(half), [[[224, 204, 255]]])


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.integers(0, 255))
def test_crop_has_its_size_and_keeps_a_constant(height, width, size, channels, value):
    image = np.full((height, width, channels), value, np.uint8)
    np.testing.assert_array_equal(pictures.centre_crop(image, size), np.full((size, size, channels), value))


def test_crop_of_an_image_of_that_size_is_the_image():
    image = noise(8, 8, 3)
    np.testing.assert_array_equal(pictures.centre_crop(image, 8), image)


def test_crop_takes_the_centre():
    """An even excess is cut equally on both sides, an odd one leaves one more row below."""
    image = noise(8, 14, 3)
    np.testing.assert_array_equal(pictures.centre_crop(image, 8), image[:, 3:11])
    np.testing.assert_array_equal(pictures.centre_crop(image[:, :13], 8), image[:, 2:10])
    tall = image.swapaxes(0, 1)
    np.testing.assert_array_equal(pictures.centre_crop(tall, 8), tall[3:11])


def test_crop_by_a_power_of_two_averages_blocks():
    """At 4 times the size the mean of 4 x 4 blocks, to within the rounding of two halvings along two axes, 4 x 1/2."""
    image = noise(32, 32, 3)
    blocks = image.reshape(8, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(pictures.centre_crop(image, 8) - blocks).max() <= 2
    checker = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (16, 16))[..., None]
    assert np.abs(pictures.centre_crop(checker, 8).astype(int) - 127.5).max() <= 1  # no aliasing


def test_crop_keeps_a_ramp():
    """A linear ramp, shrunk by a factor that is no power of two, is the linear ramp of the coarser pixels' centres."""
    ramp = np.tile(np.arange(60, dtype=np.uint8) * 4, (60, 1))[..., None]
    got = pictures.centre_crop(ramp, 40)[:, :, 0].astype(float)
    centres = (np.arange(40) + 0.5) * 1.5 - 0.5
    np.testing.assert_allclose(got[:, 3:-3], np.tile(4 * centres, (40, 1))[:, 3:-3], atol=1)


# ---- folders and zips


@pytest.fixture
def animals(tmp_path):
    images = {f"{kind}/{i}.png": noise(5, 6, 3) for kind in ("cat", "dog") for i in range(3)}
    for name, image in images.items():
        put(tmp_path / "animals" / name, png(image))
    put(tmp_path / "animals/README.md", b"not a picture")
    put(tmp_path / "animals/cat/.hidden.png", b"")
    return tmp_path / "animals", images


def zipped(folder: pathlib.Path) -> pathlib.Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
        archive.writestr("__MACOSX/cat/0.png", b"")
    return path


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_subfolders_are_classes_in_alphabetical_order(animals, packed):
    folder, images = animals
    source = data.open_source(str(zipped(folder) if packed else folder))
    assert (len(source), source.classes) == (6, 2)
    for i, (name, image) in enumerate(sorted(images.items())):
        np.testing.assert_array_equal(source[i]["image"], image)
        assert source[i]["label"] == ("cat", "dog").index(name[:3])
    crops = data.cropped(source, 4)
    np.testing.assert_array_equal(crops[2]["image"], pictures.centre_crop(source[2]["image"], 4))
    assert data.open_source(str(folder), channels=1)[0]["image"].shape == (5, 6, 1)
    assert data.open_source(str(folder), classes=5).classes == 5


def folder_of(root: pathlib.Path, *names: str, packed: bool = False) -> str:
    """A folder or zip with a picture at every name, and an empty folder at those that end in a slash."""
    for name in names:
        if name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            put(root / name, png(noise(2, 2, 3)))
    return str(zipped(root) if packed else root)


def numbers(source) -> dict[str, int]:
    """The number of every name that has an example."""
    return {source.names[source[i]["label"]]: source[i]["label"] for i in range(len(source))}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_a_class_has_one_number_in_every_split(tmp_path, packed):
    """Where a class is empty in a split, missing from it, or missing from all but another one."""
    train = ("train/ant/0.png", "train/bee/0.png", "train/cat/0.png")
    others = ("test/ant/0.png", "test/bee/", "test/cat/0.png", "val/dog/1.png")
    path, names = folder_of(tmp_path / "a", *train, *others, packed=packed), ("ant", "bee", "cat", "dog")
    for split, found in (("train", {0, 1, 2}), ("test", {0, 2}), ("val", {3})):
        source = data.open_source(path, split)
        assert (source.names, source.classes) == (names, 4)
        assert numbers(source) == {names[i]: i for i in found}
        assert {source[i]["label"] for i in range(len(source))} == found
    everything = data.open_source(path)  # its top folders are called as splits are
    assert (everything.names, len(everything)) == (names, 6)
    assert numbers(everything) == {name: i for i, name in enumerate(names)}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
def test_an_empty_folder_is_a_class_and_one_of_other_files_is_none(tmp_path, packed):
    put(tmp_path / "a" / "notes" / "read.me", b"hello")
    source = data.open_source(folder_of(tmp_path / "a", "ant/0.png", "bee/", ".git/", "cat/0.png", packed=packed))
    assert (source.names, source.classes, numbers(source)) == (("ant", "bee", "cat"), 3, {"ant": 0, "cat": 2})


@pytest.mark.parametrize(
    ("folders", "order"),
    [
        (["10", "2", "1"], ("1", "2", "10")),
        (["010", "002", "1"], ("1", "002", "010")),
        (["10", "2", "x"], ("10", "2", "x")),
        (["1", "01"], ("01", "1")),
        (["n02", "n10", "n1"], ("n02", "n1", "n10")),
    ],
    ids=str,
)
def test_integers_are_ordered_by_value_and_other_names_by_letter(tmp_path, folders, order):
    source = data.open_source(folder_of(tmp_path / "a", *(f"{name}/0.png" for name in folders)))
    assert source.names == order
    assert numbers(source) == {name: i for i, name in enumerate(order)}


def test_one_class_of_many_in_a_split_has_its_number(tmp_path):
    path = folder_of(tmp_path / "a", "train/ant/0.png", "train/bee/0.png", "test/bee/0.png")
    assert data.open_source(path, "test")[0]["label"] == 1


def test_unlabelled_pictures_of_another_split_are_no_class(tmp_path):
    path = folder_of(tmp_path / "a", "train/ant/0.png", "train/bee/0.png", "test/0.png")
    assert data.open_source(path, "train").names == ("ant", "bee")
    assert data.open_source(path, "test").classes is None


def test_a_flat_folder_has_no_labels_and_a_split_is_a_subfolder(animals):
    folder, images = animals
    flat = data.open_source(str(folder / "cat"))
    assert (len(flat), flat.classes, flat[0].keys()) == (3, None, {"image"})
    dogs = data.open_source(str(folder), split="dog")
    assert (len(dogs), dogs.classes) == (3, None)
    np.testing.assert_array_equal(dogs[1]["image"], images["dog/1.png"])
    with pytest.raises(IndexError, match="has no example 3"):
        flat[3]


def test_what_is_wrong_with_a_folder_is_one_line(animals):
    folder, _ = animals
    with pytest.raises(FileNotFoundError) as raised:
        data.open_source(str(folder), split="bird")
    one_line(raised, folder / "bird", ".png")
    with pytest.raises(ValueError) as raised:
        data.open_source(str(folder), classes=1)
    one_line(raised, folder, "2 sub-folders")
    put(folder / "stray.png", png(noise(2, 2, 3)))
    with pytest.raises(ValueError) as raised:
        data.open_source(str(folder))
    one_line(raised, folder, "stray.png")


@pytest.mark.parametrize("content", [b"", b"hello", png(noise(50, 50, 3))[:200], b"\x89PNG\r\n\x1a\n" + b"\xff" * 50])
def test_a_broken_picture_names_file_and_index(animals, content):
    folder, _ = animals
    put(folder / "dog/1.png", content)
    source = data.open_source(str(folder))
    assert source[3]["label"] == 1
    with pytest.raises(ValueError) as raised:
        source[4]
    one_line(raised, folder, "[4]", "dog/1.png", "not a readable picture")


def test_sixteen_bits_a_channel_are_refused(tmp_path):
    Image.fromarray(np.full((3, 3), 1000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError) as raised:
        data.open_source(str(tmp_path))[0]
    one_line(raised, "deep.png", "8 bits")


def test_a_corrupt_archive_names_file_and_index(animals):
    folder, _ = animals
    path = zipped(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # half-written: the list of members is at the end
    with pytest.raises(ValueError) as raised:
        data.open_source(str(path))
    one_line(raised, path, "not a readable zip")
    spoilt = bytearray(whole)
    start = whole.index(b"\x89PNG", whole.index(b"dog/2.png")) if b"\x89PNG" in whole else whole.index(b"dog/2.png")
    spoilt[start + 20 : start + 60] = b"\xff" * 40
    path.write_bytes(bytes(spoilt))
    source = data.open_source(str(path))
    with pytest.raises(ValueError) as raised:
        source[5]
    one_line(raised, path, "[5]", "dog/2.png")
    with pytest.raises(FileNotFoundError, match="absent.zip does not exist"):
        data.open_source(str(folder / "absent.zip"))


# ---- arrays


@pytest.mark.parametrize("names", [("images", "labels"), ("arr_0", "arr_1")])
def test_npz_of_images_and_labels(tmp_path, names):
    images, labels = noise(4, 5, 6, 3), np.array([2, 0, 1, 1])
    np.savez(tmp_path / "a.npz", **dict(zip(names, (images, labels), strict=True)))
    source = data.open_source(str(tmp_path / "a.npz"))
    assert (len(source), source.classes) == (4, 3)
    for i in range(4):
        np.testing.assert_array_equal(source[i]["image"], images[i])
        assert source[i]["label"] == labels[i]
    np.savez(tmp_path / "b.npz", arr_0=images)
    assert data.open_source(str(tmp_path / "b.npz"))[0].keys() == {"image"}


def test_npz_that_is_not_that_is_one_line(tmp_path):
    path = tmp_path / "a.npz"
    images = noise(4, 5, 6, 3)
    for arrays_, complaint in (
        ({"pixels": images}, "holds pixels; expected images or arr_0"),
        ({"images": images / 255}, "images are float64 (4, 5, 6, 3)"),
        ({"images": images[..., :2]}, "images are uint8 (4, 5, 6, 2)"),
        ({"images": images[:0]}, "images are uint8 (0, 5, 6, 3)"),
        ({"images": images, "labels": np.arange(3)}, "labels are int64 (3,); expected integers [4]"),
        ({"images": images, "labels": np.arange(4) / 1}, "labels are float64 (4,)"),
        ({"images": images, "labels": np.array([0, 1, -1, 0])}, "[2]: label -1 is outside 0..1"),
        ({"images": images, "captions": np.array(["a cat"])}, "4 images but 1 captions"),
    ):
        np.savez(path, **arrays_)
        with pytest.raises(ValueError) as raised:
            data.open_source(str(path))
        one_line(raised, path, complaint)
    np.savez(path, images=images, labels=np.array([0, 3, 7, 1]))
    with pytest.raises(ValueError, match=r"\[2\]: label 7 is outside 0..6"):
        data.open_source(str(path), classes=7)


def test_half_written_and_spoilt_npz_name_the_file(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=noise(20, 8, 8, 3), labels=np.zeros(20, int))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-30], whole[:500] + b"\xff" * 100 + whole[600:]):
        path.write_bytes(content)
        with pytest.raises(ValueError) as raised:
            data.open_source(str(path))
        one_line(raised, path, "not a whole .npz file")


@pytest.mark.parametrize(
    ("example", "complaint"),
    [
        ({"image": noise(5, 5)}, r"image is uint8 \(5, 5\)"),
        ({"image": noise(5, 5, 4)}, r"image is uint8 \(5, 5, 4\)"),
        ({"image": noise(0, 5, 3)}, r"image is uint8 \(0, 5, 3\)"),
        ({"image": noise(5, 5, 3) / 255}, r"image is float64"),
        ({"image": noise(5, 5, 3), "label": -1}, "label -1 is outside 0..9"),
        ({"image": noise(5, 5, 3), "label": 10}, "label 10 is outside 0..9"),
        ({}, "image"),
    ],
)
def test_an_example_is_checked_on_the_way_out(example, complaint):
    source = data.Source("set", 3, lambda i: example, 10)
    with pytest.raises(ValueError, match=rf"set\[2\]: .*{complaint}") as raised:
        source[2]
    one_line(raised)


def test_an_unknown_name_offers_what_there_is():
    with pytest.raises(FileNotFoundError, match="did you mean cifar10"):
        data.open_source("cifar1")
    with pytest.raises(FileNotFoundError, match="published sets: mnist, fashion_mnist"):
        data.open_source("/nowhere/at/all")


# ---- real files


def test_real_idx_files(shared):
    """Sizes as published; ten classes of equal size."""
    source = data.open_source(str(shared / "data/fashion_mnist"), "test")
    assert (len(source), source.classes, source[0]["image"].shape) == (10_000, 10, (28, 28, 1))
    assert np.bincount([source.read(i)["label"] for i in range(10_000)]).tolist() == [1000] * 10
    with pytest.raises(ValueError, match="no split 'validation': allowed: train, test"):
        data.open_source(str(shared / "data/fashion_mnist"), "validation")


def test_real_photographs(shared):
    """Nine photographs of several sizes, grey and coloured, become nine coloured squares."""
    source = data.cropped(data.open_source(str(shared / "data/natural_images")), 64)
    assert (len(source), source.classes) == (9, None)
    batch = data.Loader(source, batch=9).at(0)["image"]
    assert batch.shape == (9, 64, 64, 3)
    grey = sum(bool((image[..., :1] == image).all()) for image in batch)
    assert 1 <= grey < 9  # the camera man, brick, grass and gravel are grey


def test_real_archive_of_drawings(shared):
    """Omniglot small 1: 2,720 drawings of 105 x 105 pixels, 20 of each of 136 characters."""
    source = data.open_source(str(shared / "data/omniglot/images_background_small1.zip"), channels=1)
    assert (len(source), source.classes) == (2720, 136)
    assert source[0]["image"].shape == (105, 105, 1)
    assert set(np.unique(source[0]["image"])) == {0, 255}


def test_real_captioned_pictures(shared):
    """3,583 emoji of 32 x 32 pixels with transparency and a caption."""
    source = data.open_source(str(shared / "data/emoji/noto_emoji_32.npz"))
    assert len(source) == 3583
    assert source[7]["image"].shape == (32, 32, 3) and len(source[7]["captions"]) == 1

"""Every reader of files, and every way in which a file can be bad: one line with the path in full, and at once.

A reader is a good file of its kind and the function that reads it; what is done to the good file knows no format.
"""

import gzip
import json
import pathlib
import struct
import tracemalloc
import types
import zipfile

import numpy as np
import pytest
from PIL import Image

from experiments import data, main
from experiments.config import ConfigError
from experiments.data import latents
from experiments.fid import BadInput, networks
from experiments.fid.images import open_images
from experiments.fid.references import read_reference
from experiments.files import npz, sample_parts, tensors, weight_files
from experiments.problems.images import judge
from experiments.problems.latents import imported
from guidance.nets import lenet, published_dit
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of TIFF files, before it raises

REFUSED = (FileNotFoundError, ValueError, BadInput)


def idx(shape, content: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def put_idx(path: pathlib.Path) -> None:
    path.write_bytes(idx((2, 3, 4), bytes(range(24))))


def put_gzipped_idx(path: pathlib.Path) -> None:
    path.write_bytes(gzip.compress(idx((2, 3, 4), bytes(range(24))), mtime=0))


def put_npz(path: pathlib.Path) -> None:
    np.savez(path, arr_0=np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3), labels=np.array([0, 1]))


def put_compressed_npz(path: pathlib.Path) -> None:
    np.savez_compressed(path, arr_0=np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3), labels=np.array([0, 1]))


def put_statistics(path: pathlib.Path) -> None:
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))


def put_tensors(path: pathlib.Path) -> None:
    tensors.write_safetensors(path, {"w": np.eye(3, dtype=np.float32)}, {"a": "b"})


def put_zip(path: pathlib.Path) -> None:
    put_png(path.with_name("b.png"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("b.png"), "b.png")
    path.with_name("b.png").unlink()


def put_png(path: pathlib.Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def put_jpeg(path: pathlib.Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def put_tiff(path: pathlib.Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path, compression="tiff_lzw")


def put_webp(path: pathlib.Path) -> None:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(path)


def first(path) -> None:
    data.open_source(str(path))[0]


def blocks(path) -> None:
    list(open_images(path).blocks(1))


def beside(read):
    """A reader of the folder that a file is in."""
    return lambda path: read(path.parent)


# name of the file, what writes a good one, what reads it
READERS = {
    "idx": ("a", put_idx, data.read_idx),
    "gzipped idx": ("a.gz", put_gzipped_idx, data.read_idx),
    "npz": ("a.npz", put_npz, npz.read),
    "npz of images": ("a.npz", put_npz, first),
    "npz of images, compressed": ("a.npz", put_compressed_npz, first),
    "npz for metrics": ("a.npz", put_npz, blocks),
    "npz for metrics, compressed": ("a.npz", put_compressed_npz, blocks),
    "part of samples": ("a.npz", put_npz, sample_parts.read),
    "reference": ("a.npz", put_statistics, read_reference),
    "zip of pictures": ("a.zip", put_zip, first),
    "zip for metrics": ("a.zip", put_zip, blocks),
    "png": ("a.png", put_png, beside(first)),
    "png for metrics": ("a.png", put_png, beside(blocks)),
    "jpeg": ("a.jpg", put_jpeg, beside(first)),
    "tiff": ("a.tif", put_tiff, beside(first)),
    "webp": ("a.webp", put_webp, beside(first)),
    "safetensors": ("a.safetensors", put_tensors, tensors.read_safetensors),
    "metadata": ("a.safetensors", put_tensors, tensors.read_metadata),
    "weights": ("a.safetensors", put_tensors, tensors.read_weights),
    "learned weight": ("a.safetensors", put_tensors, weight_files.read),
    "feature network": ("a.npz", put_npz, lambda path: networks.build("lenet", str(path), None)),
}
SOUND = READERS.keys() - {"learned weight", "feature network"}  # the others read what is written above


def spoilt(raw: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte": raw[:1],
        "a third": raw[: len(raw) // 3],
        "half": raw[: len(raw) // 2],
        "noise": np.random.default_rng(0).bytes(300),
        "ones": b"\xff" * 300,
        "zeros": bytes(300),
        "text": b"hello\n" * 20,
    }


def refusal(read, path: pathlib.Path) -> str:
    """The one line with which a reader refuses a file."""
    with pytest.raises(REFUSED) as raised:
        read(path)
    said = str(raised.value)
    assert "\n" not in said and len(said) < 1000
    return said


@pytest.mark.parametrize("name", READERS)
def test_bad_content_is_one_line_with_the_path(tmp_path, name):
    file, put, read = READERS[name]
    folder = tmp_path / "a folder with a name that is long enough to be worth abbreviating"
    folder.mkdir()
    path = folder / file
    put(path)
    if name in SOUND:
        read(path)
    for how, content in spoilt(path.read_bytes()).items():
        path.write_bytes(content)
        said = refusal(read, path)
        assert str(path) in said or (str(folder) in said and file in said), (how, said)


@pytest.mark.parametrize("name", READERS)
def test_any_byte_may_be_wrong(tmp_path, name):
    """A flipped byte is read or refused: whatever else a library raises is a failure here."""
    file, put, read = READERS[name]
    path = tmp_path / file
    put(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for at in rng.permutation(len(whole))[:60]:
        path.write_bytes(whole[:at] + bytes([whole[at] ^ int(rng.integers(1, 256))]) + whole[at + 1 :])
        try:
            read(path)
        except REFUSED as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name", [name for name in READERS if READERS[name][0] not in ("a.png", "a.jpg", "a.tif", "a.webp")]
)
def test_what_is_not_there_or_no_file(tmp_path, name):
    file, _, read = READERS[name]
    for absent in ("absent", 300 * "x", "null\0"):  # the last two can be no names
        assert str(tmp_path / absent) in refusal(read, tmp_path / absent / file)
    (tmp_path / file).mkdir()
    assert str(tmp_path / file) in refusal(read, tmp_path / file)


def test_a_config_names_the_path_in_full(tmp_path):
    path = tmp_path / "a folder with a name that is long enough to be worth abbreviating" / "weights.npz"
    source = REPOSITORY / "configs" / "mnist.py"
    with pytest.raises(ConfigError) as raised:
        main.load(str(source), {"problem.model": str(path)})
    assert f"problem.model = {str(path)!r}: allowed: path of an existing .npz file" in str(raised.value)
    for name in ("model", "classifier", "data"):
        with pytest.raises(ConfigError, match=f"problem.{name} = 'xxx"):
            main.load(str(source), {f"problem.{name}": 300 * "x"})


# ---- sizes that a file announces and does not hold


def npy(shape, dtype: str, content: bytes = b"") -> bytes:
    head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + content


def zipped(path: pathlib.Path, **members: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def said_at_once(read, path: pathlib.Path) -> str:
    """The refusal of a reader that allocates less than 20 MB on the way to it."""
    tracemalloc.start()
    try:
        said = refusal(read, path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    return said


@pytest.mark.parametrize("shape", [(10**11,), (10**6, 10**6, 10**6), (-1,), (2,)])
@pytest.mark.parametrize("read", [npz.read, first, blocks, read_reference, sample_parts.read])
def test_an_array_that_announces_more_than_it_holds(tmp_path, read, shape):
    path = zipped(tmp_path / "a.npz", arr_0=npy(shape, "|u1", b"x"), mu=npy(shape, "<f8", bytes(8)))
    assert "announces" in said_at_once(read, path)


def test_a_member_that_claims_more_than_the_archive(tmp_path):
    path = zipped(tmp_path / "a.npz", arr_0=npy((1,), "|u1", b"x"))
    raw = path.read_bytes()
    size = struct.pack("<I", len(npy((1,), "|u1", b"x")))
    assert raw.count(size * 2) == 2  # compressed and plain size, of the member and in the list
    path.write_bytes(raw.replace(size * 2, size + struct.pack("<I", 2**31)))
    assert "more than the file can hold" in said_at_once(npz.read, path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_that_announces_more_than_it_holds(tmp_path, suffix):
    raw = idx((2**32 - 1, 2**32 - 1), b"ab")
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)
    assert "announces shape (4294967295, 4294967295) but holds fewer" in said_at_once(
        data.read_idx, tmp_path / f"a{suffix}"
    )


def test_one_label_of_fifty_million(tmp_path):
    """It would be 50,000,001 classes, each with its row in the network."""
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((3, 2, 2, 3), np.uint8), labels=np.array([0, 50_000_000, 1]))
    said = said_at_once(first, path)
    assert f"{path}[1]: label 50000000 is the largest; expected labels below 100000" in said
    with pytest.raises(ValueError, match="class 1 has no image"):
        judge.pool(np.zeros((2, 1)), np.array([0, 50_000_000]), 50_000_001)
    with pytest.raises(ValueError, match="label 5 is outside 0..1"):
        judge.pool(np.zeros((3, 1)), np.array([0, 5, 1]), 2)


def put_about(folder: pathlib.Path, **changed) -> pathlib.Path:
    about = latents.About("here", "random", "float32", 4, 2, 1, (2, 2, 3), 10)._replace(**changed)
    folder.mkdir()
    (folder / "latents.json").write_text(json.dumps(about._asdict()))
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"count": 10**12, "shard": 1},
        {"count": 0},
        {"count": "4"},
        {"views": 1.5},
        {"shape": (2, 2)},
        {"shape": 7},
        {"classes": 50_000_000},
        {"classes": -1},
        {"names": ("cat",)},
        {"names": 3},
    ],
    ids=str,
)
def test_latents_that_no_folder_holds(tmp_path, changed):
    folder = put_about(tmp_path / "latents", **changed)
    assert f"{folder}/latents.json is not what configs/encode.py writes" in said_at_once(data.Latents, folder)


def test_latents_larger_than_their_files(tmp_path):
    folder = put_about(tmp_path / "latents", shape=(10**5, 10**5, 10**3))
    for k in range(2):
        (folder / f"0000{k}-of-00002.array_record").write_bytes(bytes(100))
    assert "00000-of-00002.array_record is not a whole file of 2 records" in said_at_once(data.Latents, folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"count": 3}', b"\xff\xfe", b"null"])
def test_latents_that_are_something_else(tmp_path, content):
    (tmp_path / "latents.json").write_bytes(content)
    assert str(tmp_path / "latents.json") in refusal(data.Latents, tmp_path)


# ---- dtypes


def put_safetensors(path: pathlib.Path, dtype: str, size: int) -> None:
    head = json.dumps({"w": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + bytes(size))


@pytest.mark.parametrize(("dtype", "size"), [("F8_E4M3", 4), ("F8_E5M2", 4), ("F8_E8M0", 4), ("F4", 2), ("C64", 32)])
def test_dtypes_that_are_not_read(tmp_path, dtype, size):
    path = tmp_path / "a.safetensors"
    put_safetensors(path, dtype, size)
    for read in (tensors.read_safetensors, tensors.read_weights):
        assert f"{path}: w is {dtype}; expected F16, BF16, F32" in refusal(read, path)


@pytest.mark.parametrize("dtype", ["<i4", "<c8", "<U3", "|b1", "<f16", "<M8[s]", "|V4"])
def test_weights_that_are_no_numbers(tmp_path, dtype):
    path = tmp_path / "lenet.npz"
    arrays = {name: np.zeros(shape, np.float32) for name, shape in lenet.torch_shapes().items()}
    name = next(iter(arrays))
    np.savez(path, **(arrays | {name: np.zeros(arrays[name].shape, dtype)}))
    assert f"{name} has dtype" in refusal(lambda path: networks.build("lenet", str(path), None), path)


def test_the_byte_order_of_another_machine(tmp_path):
    np.savez(tmp_path / "a.npz", w=np.arange(3, dtype=">f4"))
    back = npz.read(tmp_path / "a.npz")["w"]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, [0, 1, 2])


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"images": np.zeros((2, 2, 2, 3))}, "images are float64"),
        ({"images": np.zeros((2, 2, 2, 3), "U1")}, "images are <U1"),
        ({"images": np.uint8(3)}, "images are uint8 ()"),
        ({"images": np.zeros((2, 2, 2, 3), np.uint8), "labels": np.array([0.0, 1.0])}, "labels are float64"),
        ({"images": np.zeros((2, 2, 2, 3), np.uint8), "labels": np.array(["cat", "dog"])}, "labels are <U3"),
        ({"images": np.zeros((2, 2, 2, 3), np.uint8), "labels": np.uint8(0)}, "labels are uint8 ()"),
        ({"images": np.zeros((2, 2, 2, 3), np.uint8), "captions": np.array("a cat")}, "2 images but no list of"),
    ],
    ids=str,
)
def test_arrays_of_another_kind(tmp_path, arrays, complaint):
    np.savez(tmp_path / "a.npz", **arrays)
    assert complaint in refusal(first, tmp_path / "a.npz")


# ---- published networks: no larger than the file that they come in


def dit_arrays(**changed) -> dict[str, np.ndarray]:
    arrays = published_dit.to_original(imported.TINY, imported._random_network(SETTINGS)[2], 8)
    return {name: np.asarray(array) for name, array in (arrays | changed).items()}


def test_an_autoencoder_of_forty_levels(tmp_path):
    """Its smallest picture has 2^39 pixels a side."""
    small = np.zeros((4, 4, 1, 1), np.float32)
    arrays = {"encoder.conv_in.weight": small, "post_quant_conv.weight": small}
    arrays |= {f"encoder.down_blocks.{i}.resnets.0.conv1.weight": small for i in range(40)}
    path = tmp_path / "vae.safetensors"
    tensors.write_safetensors(path, arrays, {})
    with pytest.raises(ConfigError, match=f"problem.vae = {path}: 40 levels of encoder.down_blocks; no .* than 16$"):
        imported.decoder(types.SimpleNamespace(vae=path, vae_groups=4), 4)


SETTINGS = types.SimpleNamespace(heads=2, side=0, dtype="float32")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("blocks.10000000.attn.qkv.weight", np.zeros(1, np.float32)),
        ("x_embedder.proj.weight", np.zeros((32, 4, 0, 0), np.float32)),
        ("x_embedder.proj.weight", np.zeros((0, 4, 4, 4), np.float32)),
        ("y_embedder.embedding_table.weight", np.zeros((10**12, 0), np.float32)),
        ("y_embedder.embedding_table.weight", np.zeros(3, np.float32)),
        ("pos_embed", np.zeros(64, np.float32)),
        ("pos_embed", np.zeros((1, 0, 32), np.float32)),
    ],
    ids=str,
)
def test_networks_that_their_file_does_not_hold(tmp_path, name, array):
    path = tmp_path / "dit.safetensors"
    tensors.write_safetensors(path, dit_arrays(**{name: array}), {})
    with pytest.raises(ConfigError) as raised:
        imported._field("weights", path, lambda arrays: imported._network(SETTINGS, arrays))
    said = str(raised.value)
    assert "\n" not in said and name in said and str(path) in said

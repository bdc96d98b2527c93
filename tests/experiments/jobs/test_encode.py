"""Job `encode`: what it writes is what the autoencoder says, it resumes to the bit, and every fault is one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("array_record", reason="needs array_record: pip install '.[data]'")

from experiments import data
from experiments.data import latents
from experiments.files import tensors
from experiments.jobs import encode
from experiments.main import main
from experiments.runtime import progress
from guidance.nets import vae
from tests.conftest import REPOSITORY

ROOT = REPOSITORY
COUNT, SHARD, SIZE = 20, 8, 16  # of the smoke preset


def run(workdir, **overrides) -> int:
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    return main([f"--config={ROOT / 'configs/encode.py'}:smoke", f"--workdir={workdir}", *flags])


def files(workdir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(workdir.glob("*.array_record"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latents") / "smoke"
    assert run(workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def tiny():
    """(net, params) of the smoke preset."""
    return encode._autoencoder("random", "float32")[:2]


@pytest.fixture
def copy(finished, tmp_path):
    for path in finished.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def refused(capsys, code: int, *words) -> None:
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert code == 2 and line.startswith("error: ") and "Traceback" not in err
    for word in words:
        assert word in line


def test_what_is_stored_is_the_law_of_each_view(finished, tiny):
    net, params = tiny
    stored, source = data.Latents(finished), data.synthetic(COUNT, SIZE)
    assert len(stored) == COUNT and stored.classes == 10
    apply = jax.jit(lambda x: net.apply({"params": params}, x, method="encode"))
    for i in (0, 7, 8, COUNT - 1):
        image = source[i]["image"]
        views = jnp.asarray(np.stack([image, image[:, ::-1]]), jnp.float32) / 127.5 - 1
        law = apply(views)
        assert stored[i]["label"] == i % 10 and stored[i]["image"].shape == (2, 2, 2, 2, 4)
        np.testing.assert_allclose(stored[i]["image"][:, 0], law.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(stored[i]["image"][:, 1], law.std, rtol=1e-4, atol=1e-5)


def test_from_the_loader_through_a_draw_and_back_to_images(finished, tiny):
    net, params = tiny
    batch = data.Loader(data.Latents(finished), batch=6, seed=1).at(2)
    laws = vae.Posterior(jnp.asarray(batch["image"][:, :, 0]), jnp.asarray(batch["image"][:, :, 1]))
    z = jax.jit(vae.draw_view)(jax.random.split(jax.random.key(0), 6), laws)
    assert z.shape == (6, 2, 2, 4) and batch["label"].shape == (6,)
    images = jax.jit(lambda z: net.apply({"params": params}, vae.unscale_latents(z), method="decode"))(z)
    assert images.shape == (6, SIZE, SIZE, 3) and bool(jnp.all(jnp.isfinite(images)))


def test_a_shard_that_is_gone_comes_back_to_the_bit(copy, capsys):
    before, times = files(copy), {path.name: path.stat().st_mtime_ns for path in copy.glob("*.array_record")}
    assert list(before) == [f"{k:05d}-of-00003.array_record" for k in range(3)]
    last = copy / "00002-of-00003.array_record"
    last.unlink()
    (copy / f".{last.name}.new").write_bytes(b"half of it")  # what a kill leaves
    with pytest.raises(FileNotFoundError, match="1 of 3 files are missing, the first is 00002"):
        data.Latents(copy)
    assert run(copy) == 0
    assert "20 images; 1 of 3 shards written" in capsys.readouterr().out
    assert files(copy) == before
    same = [name for name, time in times.items() if (copy / name).stat().st_mtime_ns == time]
    assert same == [name for name in times if name != last.name]
    assert not list(copy.glob(".*.new"))
    assert run(copy) == 0 and "0 of 3 shards written" in capsys.readouterr().out


def test_a_stop_leaves_whole_shards_only(tmp_path, finished, monkeypatch, capsys):
    polls = iter([False, False, False, True])  # two batches of four a shard: the second is read, not written
    monkeypatch.setattr(progress, "stop_requested", lambda: next(polls))
    assert run(tmp_path) == 143
    assert "the same command resumes" in capsys.readouterr().err
    assert list(files(tmp_path)) == ["00000-of-00003.array_record"]
    monkeypatch.undo()
    assert run(tmp_path) == 0 and files(tmp_path) == files(finished)


def test_throughput_is_reported_and_one_view_may_be_enough(tmp_path, capsys):
    assert run(tmp_path, **{"encode.mirrored": "false", "problem.images": 9, "encode.batch": 2}) == 0
    assert " images/s" in capsys.readouterr().out
    stored = data.Latents(tmp_path)
    assert len(stored) == 9 and stored[8]["image"].shape == (1, 2, 2, 2, 4)


def test_pictures_in_a_folder_are_cropped_and_unlabelled(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{i}.png")
    source = {"problem.source": tmp_path / "pictures", "problem.images": 0}
    assert run(tmp_path / "out", **source) == 0
    stored = data.Latents(tmp_path / "out")
    assert len(stored) == 3 and stored.classes is None and "label" not in stored[0]


def test_images_and_weights_that_are_refused(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "grey.npz", images=np.zeros((3, 16, 16, 1), np.uint8))
    code = run(tmp_path / "a", **{"problem.source": tmp_path / "grey.npz"})
    refused(capsys, code, "grey.npz[0]: image of shape (16, 16, 1); the autoencoder takes 3 channels")
    np.savez(tmp_path / "flat.npz", images=np.zeros((3, 16), np.uint8))
    code = run(tmp_path / "b", **{"problem.source": tmp_path / "flat.npz"})
    refused(capsys, code, "flat.npz: images are uint8 (3, 16); expected uint8 [n, H, W, C]")
    code = run(tmp_path / "c", **{"problem.source": tmp_path / "nowhere"})
    refused(capsys, code, "nowhere is neither a folder, .npz or .zip nor a published set")
    refused(capsys, run(tmp_path / "d", **{"problem.images": 0}), "problem.images = 0")
    refused(capsys, run(tmp_path / "e", **{"problem.size": 20}), "problem.size = 20: allowed: a multiple of 8")
    refused(capsys, run(tmp_path / "f", **{"problem.vae": "no.safetensors"}), "problem.vae = 'no.safetensors'")
    tensors.write_safetensors(tmp_path / "other.safetensors", {"a": np.zeros(2, np.float32)}, {})
    code = run(tmp_path / "g", **{"problem.vae": tmp_path / "other.safetensors"})
    refused(capsys, code, "VAE weights: missing", "unexpected a")


def test_latents_that_are_not_finite_are_refused(tmp_path, capsys, monkeypatch):
    net, params, digest = encode._autoencoder("random", "float32")
    loud = params | {"quant": jax.tree.map(lambda a: a * jnp.nan, params["quant"])}
    monkeypatch.setattr(encode, "_autoencoder", lambda *_: (net, loud, digest))
    refused(capsys, run(tmp_path), "the latents of synthetic[0] are not finite; is problem.vae what it should be?")
    assert not files(tmp_path)


def test_a_folder_belongs_to_one_autoencoder(copy, capsys):
    about = json.loads((copy / "latents.json").read_text())
    (copy / "latents.json").write_text(json.dumps(about | {"autoencoder": "another"}))
    refused(capsys, run(copy), "latents.json is of another autoencoder; encode into a new folder")
    (copy / "latents.json").write_text("{}")
    refused(capsys, run(copy), "latents.json is not what configs/encode.py writes")


def test_corrupt_shards_are_named(copy):
    path = copy / "00001-of-00003.array_record"
    whole = path.read_bytes()
    at = whole.index(data.Latents(copy)[10]["image"].tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    stored = data.Latents(copy)
    stored[8]
    with pytest.raises(ValueError, match="00001-of-00003.array_record: record 2 cannot be read .*hash") as error:
        stored[10]
    assert "\n" not in str(error.value)
    for content in (whole[: len(whole) // 2], b"", b"something else"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="00001-of-00003.array_record is not a whole file of 8 records") as error:
            data.Latents(copy)[10]
        assert "\n" not in str(error.value)
    latents.write_shard(path, np.zeros((8, 1, 2, 2, 2, 16), np.float32), range(8))
    with pytest.raises(ValueError, match="record 2 has 516 bytes; expected 260"):
        data.Latents(copy)[10]
    assert data.Latents(copy).about.rows()[1] == range(8, 16)

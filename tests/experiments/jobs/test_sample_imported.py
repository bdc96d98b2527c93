"""Job `sample` on imported networks: tiny random ones, written to safetensors as the published ones are."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.fid.images import open_images
from experiments.files import tensors
from experiments.main import main
from experiments.tools import fid
from guidance import guides, sampling, schedules, weights
from guidance.nets import published_dit, vae
from guidance.nets.dit import DiT, dit_denoiser, sit_denoiser
from tests.conftest import REPOSITORY
from tests.experiments.sampled import held, refused

SMOKE = str(REPOSITORY / "configs/sample.py") + ":smoke"

NET = DiT(width=16, heads=2, depth=2, patch=2, classes=5)
VAE = vae.AutoencoderKL(latents=2, widths=(4, 8), layers=1, groups=2)
SHAPE = (4, 4, 2)


def random_like(shapes, seed: int, size: float):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(size * rng.normal(size=a.shape), jnp.float32), shapes)


@functools.cache
def network_params():
    x = jnp.zeros((1, *SHAPE))
    shapes = jax.eval_shape(NET.init, jax.random.key(0), x, jnp.zeros(1), jnp.zeros(1, jnp.int32))
    return random_like(shapes["params"], 0, 0.2)


@functools.cache
def vae_params():
    shapes = jax.eval_shape(VAE.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    return random_like(shapes["params"], 1, 0.3)


@pytest.fixture
def weights_of(tmp_path):
    """Writes tiny random networks, in either layout, and returns the fields that name them."""

    def write(layout="original", change=lambda arrays: arrays, of_vae=lambda arrays: arrays):
        arrays = published_dit.to_original(NET, network_params(), 2)
        if layout == "diffusers":
            arrays = published_dit.to_diffusers(NET, network_params())
        tensors.write_safetensors(tmp_path / "net.safetensors", change(arrays), {})
        tensors.write_safetensors(tmp_path / "vae.safetensors", of_vae(vae.to_diffusers(VAE, vae_params())), {})
        return {"problem.weights": tmp_path / "net.safetensors", "problem.vae": tmp_path / "vae.safetensors"}

    return write


def imported(workdir, paths, **fields) -> list[str]:
    return [f"--config={SMOKE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in (paths | fields).items())]


@pytest.mark.parametrize("network, layout", [("dit", "original"), ("sit", "original"), ("dit", "diffusers")])
def test_imported_networks_give_images_that_the_fid_command_reads(tmp_path, weights_of, network, layout):
    fields = {"problem.network": network} | ({"problem.side": "4"} if layout == "diffusers" else {})
    assert main(imported(tmp_path / "run", weights_of(layout), **fields)) == 0
    folder = tmp_path / "run" / "samples"
    images = open_images(folder / "samples.npz")
    assert images.count == 8 and images.shape == (8, 8, 3)
    assert images.ids == {"seeds": {"first": 0, "last": 7, "distinct": 8}}
    arrays = held(tmp_path / "run")
    np.testing.assert_array_equal(np.concatenate(list(images.blocks(3))), arrays["arr_0"])
    np.testing.assert_array_equal(arrays["arr_1"], np.arange(8) % 5)

    # the same by hand
    seeds = jnp.arange(8)
    start_key, step_key = jax.random.split(jax.random.key(0))
    schedule = schedules.linear_vp() if network == "dit" else schedules.rectified_flow()
    denoise = (dit_denoiser if network == "dit" else sit_denoiser)(NET, network_params())
    grid = sampling.uniform_grid(4)
    x = sampling.initial_noise(start_key, schedule, grid, SHAPE, seeds)
    guide = guides.cfg(weights.constant(0.5), 5)

    @jax.jit
    def by_hand(x):
        out = sampling.sample(step_key, denoise, guide, sampling.ddim(), schedule, grid, x, seeds % 5, ids=seeds)
        return VAE.apply({"params": vae_params()}, vae.unscale_latents(out.x0), method="decode")

    decoded = by_hand(x)
    expected = np.clip(127.5 * np.asarray(decoded) + 128, 0, 255).astype(np.uint8)
    assert np.abs(arrays["arr_0"].astype(int) - expected).max() <= 1
    assert (arrays["arr_0"] != expected).mean() < 0.02, "rounding may tip over, here and there"
    assert expected.std(axis=0).mean() > 5, "nothing would be compared"

    # the same images as files
    png = np.stack([np.asarray(Image.open(folder / "png" / f"seed_{seed:010d}.png")) for seed in range(8)])
    np.testing.assert_array_equal(png, arrays["arr_0"])
    sheet = np.asarray(Image.open(folder / "grid.png"))
    assert sheet.shape == (24, 24, 3)
    np.testing.assert_array_equal(sheet[8:16, 16:24], arrays["arr_0"][5])


def test_labels_are_a_list_over_and_over(tmp_path, weights_of):
    fields = {"sample.labels": "4,0-1", "sample.output": "npz", "sample.rule": "cfg, channels((1, 0))"}
    assert main(imported(tmp_path / "run", weights_of(), **fields)) == 0
    np.testing.assert_array_equal(held(tmp_path / "run")["arr_1"], [4, 0, 1, 4, 0, 1, 4, 0])


def spoil(name, value=np.nan):
    def change(arrays):
        array = np.array(arrays[name])
        array.flat[0] = value
        return arrays | {name: array}

    return change


@pytest.mark.parametrize(
    "harm",
    [
        {"change": spoil("final_layer.linear.bias", 3e38)},
        {"of_vae": spoil("post_quant_conv.bias", 3e38)},
    ],
    ids=["latents", "images"],
)
def test_what_overflows_is_one_line(tmp_path, weights_of, capsys, harm):
    """Finite weights of which one is huge: the latents, or only what is decoded, are NaN or infinite."""
    paths = weights_of(**harm)
    assert "not finite, the first is seed 0" in refused(imported(tmp_path / "run", paths), capsys, code=1)


@pytest.mark.parametrize(
    "layout, change, fields, words",
    {
        "label out of range": ("original", None, {"sample.labels": "5"}, "the model has no class 5; allowed: 0 to 4"),
        "NaN": ("original", spoil("x_embedder.proj.bias"), {}, "x_embedder.proj.bias holds NaN or infinity"),
        "another network": ("original", lambda a: {"fc.weight": np.zeros((2, 2))}, {}, "no DiT or SiT in a layout"),
        "no heads": ("original", None, {"problem.heads": "0"}, "problem.heads is needed"),
        "odd heads": ("original", None, {"problem.heads": "3"}, "allowed: divisors of 16"),
        "other side": (
            "original",
            None,
            {"problem.side": "8"},
            "pos_embed has shape (1, 4, 16), expected (1, 16, 16)",
        ),
        "no side": ("diffusers", None, {}, "problem.side is needed"),
        "odd groups": ("original", None, {"problem.vae_groups": "3"}, "problem.vae_groups = 3 does not divide"),
        "missing": ("original", None, {"problem.vae": "no.safetensors"}, "problem.vae = 'no.safetensors'"),
        "no autoencoder": ("swapped", None, {}, "no autoencoder in a layout that is known"),
    }.values(),
)
def test_each_bad_file_is_one_line(tmp_path, weights_of, capsys, layout, change, fields, words):
    paths = weights_of(layout, *([change] if change else []))
    if layout == "swapped":
        paths["problem.vae"] = paths["problem.weights"]
    assert words in refused(imported(tmp_path / "run", paths, **fields), capsys)


def test_a_file_cut_short_is_one_line(tmp_path, weights_of, capsys):
    paths = weights_of()
    path = paths["problem.vae"]
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a whole .safetensors file" in refused(imported(tmp_path / "run", paths), capsys)


def test_bfloat16_is_near_float32(tmp_path, weights_of):
    paths = weights_of()
    for dtype in ("float32", "bfloat16"):
        fields = {"problem.dtype": dtype, "sample.output": "npz"}
        assert main(imported(tmp_path / dtype, paths, **fields)) == 0
    a, b = (held(tmp_path / dtype)["arr_0"].astype(float) for dtype in ("float32", "bfloat16"))
    assert 0 < np.abs(a - b).mean() < 8


def test_another_network_at_the_same_path_is_another_setting(tmp_path, weights_of, capsys):
    assert main(imported(tmp_path / "run", weights_of(), **{"sample.output": "npz"})) == 0
    paths = weights_of(change=spoil("x_embedder.proj.bias", 0.5))
    assert "sha256 of" in refused(imported(tmp_path / "run", paths, **{"sample.output": "npz"}), capsys)


def measured(capsys, *arguments) -> tuple[int, dict | str]:
    """Exit code of experiments.fid, and its JSON or the last line of its error."""
    code = fid.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else err.splitlines()[-1]


@pytest.fixture
def gen(tmp_path, weights_of, capsys):
    """Runs `gen` in a folder of its own against random pictures, with further arguments."""
    pictures = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "truth.npz", arr_0=pictures)
    paths = weights_of()

    def run(*more, ref="truth.npz", features="random"):
        job = imported(tmp_path / "run", paths)
        return measured(capsys, "gen", *job, "--ref", tmp_path / ref, "--features", features, "--few", *more)

    return run


def test_gen_samples_and_measures(tmp_path, gen, capsys):
    code, found = gen("--metrics", "fid,is", "--out", tmp_path / "found.json")
    assert code == 0 and json.loads((tmp_path / "found.json").read_text()) == found
    folder = tmp_path / "run" / "samples"
    calc = ("calc", "--images", folder / "samples.npz", "--ref", tmp_path / "truth.npz", "--features", "random")
    _, apart = measured(capsys, *calc, "--few", "--metrics", "fid,is")
    report = json.loads((folder / "samples.json").read_text())
    assert found == apart | {"sampling": {"nfe": report["nfe"], "settings": report["settings"]}}
    assert found["sampling"]["settings"]["sample.seeds"] == "0-7"
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    assert gen("--metrics", "fid")[1]["metrics"]["fid"] == found["metrics"]["fid"]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()} == times


def test_what_gen_refuses_it_refuses_before_it_samples(tmp_path, gen):
    np.savez(tmp_path / "half.npz", arr_0=np.zeros((3, 8, 8, 3)))
    for words, answer in {
        "sample.output = ('grid',): expected npz among them": gen("--config.sample.output=grid"),
        "--config.sample.seed: no such field": gen("--config.sample.seed=3"),
        "--metrics fd: expected some of": gen("--metrics", "fd"),
        "half.npz: arr_0 is float64": gen(ref="half.npz"),
        "--features inception needs": gen(features="inception"),
    }.items():
        assert answer[0] == 2 and answer[1].startswith("error: ") and words in answer[1], (words, answer)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]

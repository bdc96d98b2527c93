"""Job `sample`: what it leaves, that a sample follows from its seed alone, that it resumes to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import problems
from experiments.files import sample_parts, weight_files
from experiments.jobs import sample
from experiments.main import load, main
from experiments.problems.mixtures import mixture
from experiments.runtime import mesh, progress
from guidance import guides, sampling, schedules, weights
from guidance.truth import mixtures
from tests.conftest import REPOSITORY
from tests.experiments.sampled import held, refused

ROOT = REPOSITORY
MIXTURE = str(ROOT / "configs/mixture.py")


def command(workdir, config=f"{MIXTURE}:attenuated", **fields) -> list[str]:
    """A problem whose denoiser is known in closed form: nothing is trained."""
    fields = {"job": "sample", "sample.seeds": "0-19", "sample.batch": "8", "sample.steps": "5"} | fields
    return [f"--config={config}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items())]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("samples")
    assert main(command(workdir, **{"sample.weight": "1.5"})) == 0
    return workdir


def test_leaves_samples_labels_seeds_and_a_picture(finished):
    arrays = held(finished)
    assert arrays["arr_0"].shape == (20, 2) and arrays["arr_0"].dtype == np.float32
    np.testing.assert_array_equal(arrays["seeds"], np.arange(20))
    np.testing.assert_array_equal(arrays["arr_1"], np.arange(20) % 4)
    assert np.isfinite(arrays["arr_0"]).all() and len(np.unique(arrays["arr_0"], axis=0)) == 20
    assert sorted(os.listdir(finished / "samples")) == ["grid.png", "samples.json", "samples.npz", "settings.json"]


def test_they_are_what_the_library_samples(finished):
    """The same noise by hand, through the sampler of the library, all twenty at once."""
    model = problems.build(load(f"{MIXTURE}:attenuated")).model
    grid, seeds = sampling.uniform_grid(5), jnp.arange(20)
    start_key, step_key = jax.random.split(jax.random.key(0))
    x = sampling.initial_noise(start_key, model.schedule, grid, model.shape, seeds)
    guide = guides.cfg(weights.constant(1.5), model.null)
    out = sampling.sample(
        step_key, model.denoise(()), guide, sampling.ddim(), model.schedule, grid, x, seeds % 4, ids=seeds
    )
    np.testing.assert_allclose(held(finished)["arr_0"], out.x0, atol=1e-5)


def test_a_sample_follows_from_its_seed_alone(finished, tmp_path):
    fields = {"sample.weight": "1.5", "sample.seeds": "17,3-5", "sample.batch": "3"}
    assert main(command(tmp_path, **fields)) == 0
    arrays = held(tmp_path)
    np.testing.assert_array_equal(arrays["seeds"], [17, 3, 4, 5])
    np.testing.assert_allclose(arrays["arr_0"], held(finished)["arr_0"][arrays["seeds"]], atol=1e-5)
    np.testing.assert_array_equal(arrays["arr_1"], arrays["seeds"] % 4)


def test_a_sample_does_not_depend_on_devices_that_do_not_divide_the_batch(finished, tmp_path):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    fields = {"sample.weight": "1.5", "sample.seeds": "0-4", "sample.batch": "3"}
    assert main([*command(tmp_path, **fields), "--mesh=data:2"]) == 0
    np.testing.assert_allclose(held(tmp_path)["arr_0"], held(finished)["arr_0"][:5], atol=1e-5)


def test_stochastic_steps_follow_from_the_seed_too(tmp_path):
    fields = {"sample.sampler": "ddpm", "sample.weight": "1"}
    assert main(command(tmp_path, **fields)) == 0
    assert main(command(tmp_path, **fields | {"sample.batch": "20", "sample.into": "at_once"})) == 0
    np.testing.assert_allclose(held(tmp_path)["arr_0"], held(tmp_path, "at_once")["arr_0"], atol=1e-5)


@pytest.mark.parametrize(
    "fields, positive, reference",
    [
        ({"sample.weight": "0"}, 5, 0),
        ({"sample.weight": "1"}, 5, 5),
        # t in (0.3, 0.8] on the grid 1, 0.8, 0.6, 0.4, 0.2: three steps start inside
        ({"sample.weight": "interval(1, 0.3, 0.8)"}, 5, 3),
        # a memory of every gap: nothing is skipped
        ({"sample.weight": "interval(1, 0.3, 0.8)", "sample.rule": "apg(cap=5)"}, 5, 5),
        # two evaluations a step but for the last one
        ({"sample.weight": "1", "sample.sampler": "heun"}, 9, 9),
    ],
)
def test_network_evaluations_are_counted(tmp_path, fields, positive, reference):
    assert main(command(tmp_path, **{"sample.seeds": "0-2", "sample.output": "npz"} | fields)) == 0
    nfe = json.loads((tmp_path / "samples/samples.json").read_text())["nfe"]
    assert nfe == {"total": positive + reference, "positive": positive, "reference": reference}


def files(workdir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((workdir / "samples").iterdir())}


def test_a_run_that_was_stopped_ends_with_the_same_bytes(finished, tmp_path, monkeypatch, capsys):
    arguments = command(tmp_path, **{"sample.weight": "1.5"})
    parts = tmp_path / "samples" / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(progress, "stop_requested", lambda: parts.exists() and len(os.listdir(parts)) == 2)
        assert main(arguments) == 143
    assert "the same command resumes" in capsys.readouterr().err
    assert sorted(os.listdir(parts)) == ["part_000000.npz", "part_000001.npz"]
    (parts / ".part_000002.npz.new").write_bytes(b"PK half of it")  # a kill in the middle of writing
    torn = parts / "part_000001.npz"
    torn.write_bytes(torn.read_bytes()[:-40])
    computed = []
    original = sample._batch
    monkeypatch.setattr(sample, "_batch", lambda *a: computed.append(int(a[3][0])) or original(*a))
    with pytest.warns(sample.DamagedPart, match=r"part_000001.npz is not a whole .npz .*; sampling it again"):
        assert main(arguments) == 0
    assert computed == [8, 16], "the whole part is kept, the torn and the missing one are sampled"
    assert files(tmp_path) == files(finished)


def test_a_flipped_bit_in_a_part_is_seen(tmp_path):
    path = tmp_path / "part.npz"
    sample_parts.write(path, {"arr_0": np.arange(100.0), "seeds": np.arange(100)})
    raw = bytearray(path.read_bytes())
    raw[300] ^= 1
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="not a whole") as error:
        sample_parts.read(path)
    assert "\n" not in str(error.value)


def test_the_parts_join_to_what_numpy_writes(tmp_path):
    rng = np.random.default_rng(0)
    whole = {"arr_0": rng.integers(0, 256, (7, 3, 2, 1), np.uint8), "seeds": np.arange(7)}
    for k, rows in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        sample_parts.write(tmp_path / f"{k}.npz", {name: array[rows] for name, array in whole.items()})
    sample_parts.assemble(tmp_path / "all.npz", [tmp_path / f"{k}.npz" for k in range(3)], ("arr_0", "seeds"), 7)
    np.savez(tmp_path / "numpy.npz", **whole)
    assert (tmp_path / "all.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()


def test_the_same_command_repeats_nothing(finished, capsys, monkeypatch):
    monkeypatch.setattr(sample, "_batch", None)
    before = files(finished)
    assert main(command(finished, **{"sample.weight": "1.5"})) == 0
    assert "done before" in capsys.readouterr().out and files(finished) == before


def test_other_settings_need_another_folder(finished, capsys):
    err = refused(command(finished, **{"sample.weight": "2"}), capsys)
    assert "sample.weight = '1.5' there, '2' here" in err and "another sample.into" in err
    assert main(command(finished, **{"sample.weight": "2", "sample.into": "more", "sample.output": "npz"})) == 0
    assert np.abs(held(finished, "more")["arr_0"] - held(finished)["arr_0"]).max() > 0.01


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mine.txt").write_text("mine")
    assert "holds no samples" in refused(command(tmp_path), capsys)
    assert os.listdir(tmp_path / "samples") == ["mine.txt"]


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"sample.labels": "0-4"}, "sample.labels: the model has no class 4; allowed: 0 to 3"),
        ({"sample.output": "png"}, "sample.output: png: the samples of this problem are vectors"),
        ({"sample.grid": "uniform(t_max=3)"}, "sample.grid = 'uniform(t_max=3)'"),
        ({"sample.into": "../out"}, "sample.into = '../out'"),
        ({"sample.repetition": "5"}, "sample.repetition = 5: allowed: less than seeds"),
    ],
)
def test_what_the_problem_does_not_have_is_one_line(tmp_path, capsys, fields, words):
    assert words in refused(command(tmp_path, **fields), capsys)
    assert not (tmp_path / "samples").exists()


def test_samples_that_are_not_finite_are_refused_and_the_others_kept(tmp_path, capsys, monkeypatch):
    """Noise of seed 9 that is NaN: the second batch of eight."""
    original = sampling.initial_noise

    def broken(key, schedule, grid, shape, ids):
        x = original(key, schedule, grid, shape, ids)
        return jnp.where((ids == 9)[:, None], jnp.nan, x)

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["guidance.sampling.sample"], "initial_noise", broken)
        err = refused(command(tmp_path), capsys, code=1)
    assert "1 seeds of this batch are not finite, the first is seed 9" in err
    assert os.listdir(tmp_path / "samples" / "parts") == ["part_000000.npz"]
    assert main(command(tmp_path)) == 0
    assert len(held(tmp_path)["seeds"]) == 20


def learned(path, schedule="rectified_flow", classes=4, null=4, steps=None, rule="cfg"):
    net = weights.GuidanceNet(num_classes=classes, width=8, depth=2, time_width=4, cond_width=4)
    params = net.init(jax.random.key(0), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=jnp.zeros(1, jnp.int32))
    weight = weights.learned(net, params, schedules.by_name(schedule))
    said = {"problem": "a test", "objective": "l2", "rule": rule, "steps": steps, "null": null, "training": {}}
    weight_files.write(path, weight, **said)
    return path


def test_a_learned_weight_is_sampled_with(finished, tmp_path, capsys):
    """The untrained network returns the constant `initial_omega`, 0.5 by default."""
    path = learned(tmp_path / "w.safetensors", steps=9)
    fields = {"sample.output": "npz"}
    assert main(command(tmp_path, **fields | {"sample.weight": path})) == 0
    assert "was learned through 9 steps and is asked at 5" in capsys.readouterr().out
    assert main(command(tmp_path, **fields | {"sample.weight": "0.5", "sample.into": "constant"})) == 0
    np.testing.assert_allclose(held(tmp_path)["arr_0"], held(tmp_path, "constant")["arr_0"], atol=1e-5)


@pytest.mark.parametrize(
    "model, words",
    [
        ({"schedule": "cosine"}, "it has schedule cosine, the model rectified_flow"),
        ({"classes": 7, "null": 7}, "7 conditions and null label 7, the model 4 and 4"),
    ],
)
def test_a_weight_of_another_model_is_refused(tmp_path, capsys, model, words):
    path = learned(tmp_path / "w.safetensors", **model)
    assert words in refused(command(tmp_path / "run", **{"sample.weight": path}), capsys)


def test_a_weight_of_another_reference_is_refused_one_of_another_rule_is_told_of(tmp_path, capsys):
    path = learned(tmp_path / "w.safetensors", rule="autoguided")
    words = refused(command(tmp_path / "run", **{"sample.weight": path}), capsys)
    assert "sample.weak: " in words and "was learned inside autoguided; allowed: the updates of" in words
    path = learned(tmp_path / "w.safetensors", rule="angle_domain")
    assert main(command(tmp_path / "run", **{"sample.weight": path})) == 0
    assert "was learned inside angle_domain and is asked inside cfg" in capsys.readouterr().out
    assert "0, or one of base.keep" in refused(command(tmp_path / "run", **{"sample.weak": "3"}), capsys)
    weak = {"sample.weak": "3", "base.keep": "3"}
    assert "trains no denoiser" in refused(command(tmp_path / "known", **weak), capsys)


def test_another_file_at_the_same_path_is_another_setting(tmp_path, capsys):
    path = learned(tmp_path / "w.safetensors")
    fields = {"sample.weight": path, "sample.output": "npz"}
    assert main(command(tmp_path / "run", **fields)) == 0
    said = {"problem": "a test", "objective": "l3", "rule": "cfg", "steps": None, "null": 4, "training": {}}
    weight_files.write(path, weight_files.read(path)[0], **said)
    assert "sha256 of" in refused(command(tmp_path / "run", **fields), capsys)


def test_an_exact_model_samples_the_truth(tmp_path):
    """1,200 unguided samples of a class in 60 steps of Heun: mean and spread of the truth, within 5 sigma."""
    fields = {
        "sample.seeds": "0-1199", "sample.batch": "1200", "sample.labels": "2", "sample.steps": "60",
        "sample.sampler": "heun", "sample.output": "npz",
    }  # fmt: skip
    assert main(command(tmp_path, f"{MIXTURE}:exact", **fields)) == 0
    x = held(tmp_path)["arr_0"]
    truth = mixture.truth(load(f"{MIXTURE}:exact").problem)
    reference = np.asarray(mixtures.sample(jax.random.key(1), truth, jnp.full(200_000, 2)))
    error = reference.std(axis=0) / np.sqrt(len(x))
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - reference.mean(axis=0)), 5 * error)
    square = (reference - reference.mean(axis=0)) ** 2
    spread = ((x - reference.mean(axis=0)) ** 2).mean(axis=0)
    np.testing.assert_array_less(np.abs(spread - square.mean(axis=0)), 5 * square.std(axis=0) / np.sqrt(len(x)))


@pytest.mark.slow
def test_a_trained_checkpoint_is_sampled_from(tmp_path):
    """The params of the repetition that was asked for, restored from what job=train left."""
    small = {"seeds": "2", "base.steps": "5", "base.width": "8"}
    assert main(command(tmp_path, MIXTURE, **small | {"job": "train"})) == 0
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    for repetition in ("0", "1"):
        fields = {"sample.repetition": repetition, "sample.into": repetition, "sample.output": "npz"}
        assert main(command(tmp_path, MIXTURE, **small | fields)) == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics, "nothing was trained again"
    assert np.abs(held(tmp_path, "0")["arr_0"] - held(tmp_path, "1")["arr_0"]).max() > 1e-3


def test_two_devices_sample_the_same(finished, tmp_path, monkeypatch):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    monkeypatch.setattr(mesh, "_current", None)
    assert main([*command(tmp_path, **{"sample.weight": "1.5", "sample.output": "npz"}), "--mesh=data:2"]) == 0
    np.testing.assert_allclose(held(tmp_path)["arr_0"], held(finished)["arr_0"], atol=1e-5)


@pytest.mark.slow
def test_killed_it_ends_with_the_same_bytes(finished, tmp_path):
    """SIGKILL once the first part is there, again and again."""
    arguments = [sys.executable, "-m", "experiments.main", *command(tmp_path, **{"sample.weight": "1.5"})]
    parts, kills = tmp_path / "samples" / "parts", 0

    def there():
        return len(list(parts.glob("part_*")))

    while True:
        before = there()
        with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while kills < 2 and process.poll() is None:
                if there() > before:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.001)
            code = process.wait(timeout=120)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert kills > 0 and files(tmp_path) == files(finished)


def test_evaluations_are_a_mean_over_samples_of_all_parts(monkeypatch):
    """Three samples took ten and four, one ten and none: 13 each in the mean, three of them of the reference."""
    parts = [
        {"seeds": np.arange(3), "arr_1": np.zeros(3), "nfe_positive": np.int64(10), "nfe_reference": np.int64(4)},
        {"seeds": np.arange(1), "arr_1": np.zeros(1), "nfe_positive": np.int64(10), "nfe_reference": np.int64(0)},
    ]
    monkeypatch.setattr(sample.sample_parts, "read", lambda part, wanted: dict(part))
    assert sample._evaluations(parts) == {"total": 13.0, "positive": 10.0, "reference": 3.0}

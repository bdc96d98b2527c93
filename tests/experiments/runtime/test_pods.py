"""Two processes of four devices each are one program: the same numbers as one device, and no hang when one dies.

The processes are started as docs/pods.md says for two local processes.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import data, problems
from experiments.jobs import learn, train
from experiments.main import load, main
from experiments.runtime import results
from tests.conftest import REPOSITORY

ROOT = REPOSITORY
CHILD = pathlib.Path(__file__).with_name("pod_child.py")
CONFIG = str(ROOT / "configs/mixture.py")
TINY = {  # counts that eight devices do not divide
    "job": "evaluate", "seeds": "1", "base.steps": "20", "base.width": "16", "base.pictures": "1",
    "learn.objectives": "l2",
    "learn.iterations": "20", "learn.batch": "15", "learn.width": "16", "learn.depth": "2", "learn.embedding": "8",
    "learn.checkpoint_every": "10", "eval.steps": "4", "eval.samples": "36", "eval.omegas": "0,1",
    "eval.intervals": "((0.2,0.8),)", "eval.clamp": "1.0", "figures": "false",
}  # fmt: skip


def command(workdir) -> list[str]:
    return [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in TINY.items())]


def start_two(*arguments) -> list[subprocess.Popen]:
    """Two processes x four virtual devices of this machine."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=2", "device_count=4"),
        "GUIDANCE_COORDINATOR": f"localhost:{port}",
        "GUIDANCE_PROCESSES": "2",
        "GUIDANCE_HEARTBEAT": "10",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    both.pop("PJRT_NPROC", None)
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT, env=both | {"GUIDANCE_PROCESS": str(i)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip


def ended(processes, timeout: float) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each; kills all if one takes longer."""
    try:
        streams = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *stream) for process, stream in zip(processes, streams, strict=True)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder of a run by this process on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    with jax.debug_key_reuse(False):  # every weight meets the same noise
        assert main(command(workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory, alone):
    """The folder of the same run by two processes, which found the base denoiser half trained by one device."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    half = pathlib.Path("base/seed_0/step_0000000010")
    shutil.copytree(alone / half, workdir / half)
    for code, _, errors in ended(start_two("-m", "experiments.main", *command(workdir)), 400):
        assert code == 0, errors
    return workdir


def restored(workdir) -> tuple[list, list]:
    """The weights of the base denoiser and of the guidance network, from their checkpoints to this one device."""
    config = load(CONFIG, TINY)
    problem = problems.build(config)
    base, learned = train.run(problem, config, workdir), learn.run(problem, config, workdir)
    return jax.tree.leaves(base), jax.tree.leaves(learned)


def steps_logged(workdir, phase: str) -> list[int]:
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if row["phase"] == phase]


@pytest.mark.slow
def test_two_processes_learn_what_one_device_learns(alone, together):
    """To 1e-4 after 20 updates; the base resumed at update 10, and neither trains again when it is restored here."""
    assert steps_logged(alone, "base denoiser, seed 0") == list(range(1, 21))
    assert steps_logged(together, "base denoiser, seed 0") == list(range(11, 21))
    before = (together / "metrics.jsonl").read_bytes()
    for mine, theirs in zip(restored(alone), restored(together), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
            assert len(b.devices()) == 1
    assert (together / "metrics.jsonl").read_bytes() == before
    for folder in (alone, together):
        names = [f"base_seed_0_update_0000020.{kind}" for kind in ("csv", "png")]
        assert sorted(path.name for path in (folder / "pictures").iterdir()) == names


@pytest.mark.slow
def test_two_processes_report_the_same_numbers(alone, together):
    mine, theirs = (results.read(folder / "results.json") for folder in (alone, together))
    assert [row._replace(value=0, standard_error=0, floor=0) for row in mine] == [
        row._replace(value=0, standard_error=0, floor=0) for row in theirs
    ]
    for a, b in zip(mine, theirs, strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-3, abs=1e-4)
    lines = (together / "evaluations.jsonl").read_text().splitlines()
    assert len({json.dumps(json.loads(line)["key"]) for line in lines}) == len(lines), "one process writes"


@pytest.fixture(scope="module")
def pod(tmp_path_factory):
    """What two processes left that computed until one was killed: (their folder, how the other one ended, its words).

    The folder has the samples, the weights and the batches of pod_child.py.
    """
    folder = tmp_path_factory.mktemp("pod")
    processes = start_two(CHILD, folder)
    try:
        deadline = time.monotonic() + 300
        while not all((folder / f"ready_{i}").exists() for i in range(2)):
            assert time.monotonic() < deadline and all(process.poll() is None for process in processes), [
                process.kill() or process.stderr.read() for process in processes
            ]
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGKILL)
        began = time.monotonic()
        (code, _, words), _ = ended(processes, 60)
    finally:
        for process in processes:
            process.kill()
    return folder, code, words, time.monotonic() - began


@pytest.mark.slow
def test_a_killed_process_ends_the_other_with_an_error(pod):
    _, code, words, seconds = pod
    assert code not in (0, -signal.SIGKILL)
    assert words.strip() and seconds < 60


@pytest.fixture(scope="module")
def child():
    """The module pod_child, to do here what two processes did."""
    found = importlib.util.spec_from_file_location("pod_child", CHILD)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_samples_do_not_depend_on_the_mesh(pod, child):
    """To 1e-5, features of images to 1e-6; weights that are cut over eight devices learn what whole ones do, to 1e-4;
    a device holds an eighth."""
    x0, nfe = child.samples()
    w, kept = child.trained()
    theirs = np.load(pod[0] / "samples.npz")
    np.testing.assert_allclose(theirs["features"], child.features(), atol=1e-6)
    np.testing.assert_allclose(theirs["x0"], x0, atol=1e-5)
    assert theirs["nfe"] == nfe
    np.testing.assert_allclose(theirs["w"], w, atol=1e-4)
    assert (kept, theirs["kept"]) == (1, 1 / 8)


@pytest.mark.slow
def test_two_processes_encode_what_one_device_encodes(pod, child, tmp_path):
    """In batches of eight for four, the last of each file filled up."""
    pytest.importorskip("array_record", reason="needs array_record: pip install '.[data]'")
    mine, theirs = (data.Latents(folder) for folder in (child.encoded(tmp_path / "latents"), pod[0] / "latents"))
    assert len(mine) == len(theirs) == 20
    for i in range(20):
        assert mine[i]["label"] == theirs[i]["label"]
        np.testing.assert_allclose(mine[i]["image"], theirs[i]["image"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_process_reads_its_part_of_a_batch(pod):
    """Two parts, read apart and placed on the mesh, are the batch that one process would have read."""
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    whole = data.Loader(data.from_arrays("numbers", images, np.arange(40) % 3), 16, flip=True).at(4)
    for i in range(2):
        theirs = np.load(pod[0] / f"parts_{i}.npz")
        assert theirs["part"].tolist() == [i, 2]
        for name in ("image", "label"):
            np.testing.assert_array_equal(theirs[name], whole[name])

"""The command as a function and as a process: what it leaves of its surroundings, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import warnings

import jax
import matplotlib
import numpy as np
import pytest

from experiments.main import main
from experiments.runtime import launch, mesh, progress
from tests.conftest import REPOSITORY

ROOT = REPOSITORY
MIXTURE = str(ROOT / "configs/mixture.py")
TINY = {
    "job": "train", "seeds": "1", "base.steps": "6", "base.width": "8", "base.depth": "1", "base.batch": "8",
    "base.pictures": "1", "learn.checkpoint_every": "2",
}  # fmt: skip


def command(workdir, **overrides) -> list[str]:
    flags = TINY | {name: value for name, value in overrides.items()}
    return [f"--config={MIXTURE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in flags.items())]


def surroundings() -> dict:
    """All that a program shares with the jobs that it runs."""
    return {
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "streams": [sys.stdout, sys.stderr],
        "warnings": [warnings.formatwarning, warnings.showwarning, list(warnings.filters)],
        "backend": matplotlib.rcParams._get("backend"),  # as it is: asking for it properly chooses one
        "style": {name: value for name, value in matplotlib.rcParams.items() if name != "backend"},
        "mesh": mesh._current,
        "launch": [launch._process, launch._processes, launch._polls, launch._stop],
        "progress": [progress.SHOW_AFTER, progress._stop_signal],
        "jax": dict(jax.config.values),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
    }


def test_main_leaves_nothing_behind_and_an_interrupt_ends_one_call_only(tmp_path, capsys):
    """As from a notebook: Ctrl-C in the first call, the second goes on where it was, a third is refused."""
    before = surroundings()
    assert main(command(tmp_path), ready=lambda: os.kill(os.getpid(), signal.SIGINT)) == 130
    assert "the same command resumes" in capsys.readouterr().err
    assert surroundings() == before
    assert main([*command(tmp_path), "--mesh=data:1"]) == 0
    assert surroundings() == before
    assert main(command(tmp_path, **{"base.steps": "7"})) == 2
    assert surroundings() == before
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 7)), "the first call stopped and the second went on"


def test_a_second_interrupt_is_the_callers(tmp_path):
    mine, usual = [], signal.getsignal(signal.SIGINT)

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, lambda number, frame: mine.append(number))
    try:
        before = surroundings()
        assert main(command(tmp_path), ready=twice) == 130
        assert mine == [signal.SIGINT] and surroundings() == before
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_thread_that_no_signal_reaches_may_call_main(tmp_path):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(main(command(tmp_path))))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("flags", ["--list", "--help --config=configs/mixture.py"])
def test_a_reader_that_has_seen_enough_is_no_error(flags):
    """The pipe is closed before the first line is written."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.main", *flags.split()], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + signal.SIGPIPE, b"")


def test_a_first_run_that_diverges_claims_no_folder(tmp_path, capsys):
    """What it left is a run of its own, which the same command finds broken again."""
    broken = {"base.learning_rate": "1e38", "base.pictures": "0"}
    assert main(command(tmp_path, **broken)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    aside = tmp_path / "diverged"
    assert "is not finite" in line and f"what was done is in {aside}, and {tmp_path} may have another config" in line
    held = next(word.rstrip(";") for word in line.split() if word.rstrip(";").endswith("broken_batch.npz"))
    assert "x0" in np.load(held)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "diverged"}
    assert main(command(aside, **broken)) == 1
    assert main(command(tmp_path, **{"base.pictures": "0"})) == 0


@pytest.mark.parametrize(
    "number, words, remedy",
    [(28, "No space left on device", "make room, then"), (5, "Input/output error", "once that is mended,")],
)
def test_a_disk_that_fails_is_one_line_wherever_it_does(number, words, remedy, tmp_path, capsys, monkeypatch):
    """config.json cannot be written."""

    def failing(descriptor):
        raise OSError(number, words, "config.json")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert main(command(tmp_path)) == 1
    assert capsys.readouterr().err == f"error: {words}: config.json; {remedy} the same command resumes\n"


def test_a_folder_in_a_files_place_is_one_line(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    assert main(command(tmp_path)) == 1
    line = f"error: Is a directory: {path}; once that is mended, the same command resumes"
    assert line == capsys.readouterr().err.splitlines()[-1]

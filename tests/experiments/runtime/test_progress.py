"""Bars that show late, requests to stop, metrics whose history survives a kill."""

import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tqdm

from experiments.runtime import progress
from guidance import bars
from tests.conftest import REPOSITORY


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
def test_what_is_short_shows_nothing(stderr, monkeypatch):
    shown = stderr()
    monkeypatch.setattr(sys, "stderr", shown)
    assert list(progress.track(range(1000), "short")) == list(range(1000))
    with progress.waiting("short"):
        pass
    assert shown.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.05)
    for _ in progress.track(range(8), "learning", start=2):
        time.sleep(0.05)
    assert "learning" in shown.getvalue() and "/10" in shown.getvalue()  # 2 done before, 8 now


def test_a_log_gets_a_line_now_and_then(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    clock = iter(np.arange(0, 100, 0.5).tolist())
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert len(list(progress.track(iter(range(50)), "learning", total=52, start=2))) == 50
    lines = shown.getvalue().splitlines()
    # item k ends at k/2 seconds: lines after 2 s and every 10 s; at 2 s 4 of 50 are done, so 23 s are left
    assert [line.split(",")[0] for line in lines] == [f"learning: {2 + done} of 52" for done in (4, 24, 44)]
    assert lines[0].endswith("2 s, about 23 s left")


def test_the_time_left_leaves_out_the_first_item(monkeypatch):
    """The first of 31 items is compiled and takes 100 s, each of the others 1 s."""
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    clock = iter([0, *range(100, 131)])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    for _ in progress.track(range(31), "learning"):
        pass
    assert shown.getvalue().splitlines() == [
        "learning: 1 of 31, 100 s",
        "learning: 11 of 31, 110 s, about 20 s left",
        "learning: 21 of 31, 120 s, about 10 s left",
        "learning: 31 of 31, 130 s, about 0 s left",
    ]


def test_the_rate_of_a_bar_leaves_out_what_was_compiled(monkeypatch):
    """The first of 11 items takes 100 s, each of the others 1 s."""
    now = [0.0]
    monkeypatch.setattr(tqdm.std, "time", lambda: now[0])
    with tqdm.tqdm(total=11, file=io.StringIO(), mininterval=0, miniters=1) as bar:
        for seconds in (100, 1, 1, 1, 1, 1):
            now[0] += seconds
            bars.count_compiled(bar) if seconds == 100 else bar.update()
        assert "6/11 [00:05<00:05,  1.00it/s]" in str(bar)


@pytest.mark.parametrize("stderr, line", [(io.StringIO, "learning: 0 of 9, 0 s\n"), (Terminal, "0/9")])
def test_a_long_first_item_is_shown_before_it_ends(stderr, line, monkeypatch):
    shown = stderr()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.02)
    with progress.counting("learning", 9):
        assert shown.getvalue() == ""
        deadline = time.monotonic() + 10
        while line not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert line in shown.getvalue()


def test_the_first_line_comes_before_jax(tmp_path):
    """JAX cannot be imported here, and the line is there."""
    job = "import sys; sys.modules['jax'] = None; from experiments import main; main.main(sys.argv[1:])"
    arguments = [f"--config={REPOSITORY / 'configs/mixture.py'}", f"--workdir={tmp_path}"]
    run = subprocess.run([sys.executable, "-c", job, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert run.stdout == "mixture: importing JAX, building the problem\n"
    assert "ModuleNotFoundError: No module named 'jax.tree_util'" in run.stderr


def test_a_long_call_says_what_it_waits_for(monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.02)
    with progress.waiting("compiling"):
        time.sleep(0.2)
    assert shown.getvalue() == "compiling ...\ncompiling: 0 s\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_a_second_one_stops(number):
    job = (
        "import signal, time\nfrom experiments.runtime import progress\n"
        # where tests run in the background Ctrl-C may be ignored, which processes inherit
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with progress.listening():\n    print('ready', flush=True)\n"
        "    while not progress.stop_requested(): time.sleep(.01)\n"
        "    print(progress.Stopped().exit_code, flush=True); time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", job], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout.readline() == "ready\n"
    run.send_signal(number)
    assert int(run.stdout.readline()) == 128 + number
    run.send_signal(number)
    _, err = run.communicate(timeout=10)
    assert run.returncode == -number
    assert "stopping after the next save" in err


def write(path, phase, start, stop, step=0):
    with progress.Metrics(path, phase, step) as metrics:
        for i in range(start, stop):
            metrics.write(i, loss=np.float32(1) / (i + 1))


def test_resumed_metrics_are_those_of_an_uninterrupted_run(tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    for phase in ("train", "learn"):
        write(whole, phase, 1, 9)
    write(killed, "train", 1, 9)
    write(killed, "train", 9, 9, step=8)  # the finished phase is opened again: nothing is lost
    write(killed, "learn", 1, 6)
    with killed.open("a") as file:
        file.write('{"phase": "learn", "ste')  # killed inside a line, the last checkpoint is of step 3
    write(killed, "learn", 4, 9, step=3)
    assert killed.read_bytes() == whole.read_bytes()
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["step"] for row in rows] == 2 * list(range(1, 9))
    assert np.float32(rows[1]["loss"]) == np.float32(1) / 3


def test_metrics_stay_json_when_a_loss_is_not_finite(tmp_path):
    with progress.Metrics(tmp_path / "m.jsonl", "learn", 0) as metrics:
        metrics.write(1, loss=np.float32("nan"), worst=float("inf"), note="diverged")
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=pytest.fail)
    assert row == {"phase": "learn", "step": 1, "loss": None, "worst": None, "note": "diverged"}

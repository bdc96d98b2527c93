"""Bars that show late, requests to stop, metrics whose history survives a kill; the records of a run."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tqdm

from experiments.config import ConfigError
from experiments.runtime import progress, records
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


ROW = records.Row("mixture", "constant", "omega = 0.5", {"omega": 0.5}, "ddim", 10, 20, 5, "energy", 0.07, 0.001, 0.0)


def test_results_round_trip_and_are_plain_json(tmp_path):
    rows = [
        ROW,
        ROW._replace(value=np.float32(0.25), steps=np.int64(20)),
        ROW._replace(value=float("nan"), floor=None),
    ]
    records.write_results(tmp_path / "results.json", rows)
    assert records.read_results(tmp_path / "results.json") == [
        ROW, ROW._replace(value=0.25, steps=20), ROW._replace(value=None, floor=None)
    ]  # fmt: skip
    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert [list(row) for row in stored] == [list(records.Row._fields)] * 3
    records.write_results(tmp_path / "results.json", [])
    assert records.read_results(tmp_path / "results.json") == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"steps": 10.0}, {"steps": True}, {"seeds": 0}, {"value": "0.1"}, {"standard_error": -0.1},
        {"method": None}, {"settings": (0.5,)}, {"nfe": -1},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_row_is_refused_by_field_and_leaves_the_old_file(wrong, tmp_path):
    path = tmp_path / "results.json"
    records.write_results(path, [ROW])
    with pytest.raises(ValueError, match=next(iter(wrong))):
        records.write_results(path, [ROW, ROW._replace(**wrong)])
    assert records.read_results(path) == [ROW]


def test_unknown_or_missing_fields_of_stored_rows_are_refused(tmp_path):
    path = tmp_path / "results.json"
    for row in ({**ROW._asdict(), "fid": 1.0}, {"problem": "mixture"}):
        path.write_text(json.dumps([row]))
        with pytest.raises(ValueError, match="row 0: fields"):
            records.read_results(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    records.write_results(path, [ROW])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        records.write_results(path, [])
    assert records.read_results(path) == [ROW]
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_the_table_is_aligned_and_puts_the_best_first():
    rows = [ROW, ROW._replace(method="rollout", weight="learned", settings={}, value=0.05), ROW._replace(value=None)]
    lines = records.table(rows).splitlines()
    assert lines[0].split() == ["problem", "metric", "steps", "nfe", "method", "weight", "value", "floor", "seeds"]
    assert "rollout" in lines[2] and "0.0500 ± 0.0010" in lines[2]
    assert "0.0700 ± 0.0010" in lines[3]
    assert lines[4].split()[-4:] == ["not", "finite", "0", "5"]  # floor 0, 5 seeds
    column = lines[0].index("value")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[2:])
    assert records.table([]) == "no results"


# ---- the ledger


def test_a_ledger_knows_evaluations_by_their_settings(tmp_path):
    """To the last bit, in any order of the settings, and again after it was read."""
    path, asked = tmp_path / "evaluations.jsonl", []
    ledger = records.Ledger(path)
    for omega in (0.12345671, 0.12345674, 0.12345671):
        settings = {"steps": 4, "weight": f"constant(omega={omega})"}
        entry = ledger.get(settings, lambda omega=omega: asked.append(omega) or {"value": omega})
        assert entry == {"value": omega, "key": settings}
    assert asked == [0.12345671, 0.12345674]
    again = records.Ledger(path)
    swapped = {"weight": "constant(omega=0.12345674)", "steps": 4}
    assert again.get(swapped, pytest.fail)["value"] == 0.12345674 and again.done == ledger.done


def test_a_ledger_of_an_earlier_version_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"nfe": 8, "key": "4 steps, seed 0, constant, omega = 0.5"}\n')
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="earlier version, which named evaluations in words; allowed: a new folder"):
        records.Ledger(path)
    assert path.read_bytes() == before

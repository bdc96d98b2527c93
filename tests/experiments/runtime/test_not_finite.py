"""What is not finite, and lines that no run wrote: shown and told of, never the end of a run or of its folder."""

import json
import math
import types

import jax
import matplotlib
import pytest

from experiments.jobs import figures
from experiments.leaderboard import page
from experiments.main import main
from experiments.runtime import progress, results
from experiments.runtime.ledger import Damaged, Ledger, key
from guidance import tables
from guidance.tables import Row, mean_row
from tests.conftest import REPOSITORY

MIXTURE = str(REPOSITORY / "configs/mixture.py:attenuated")
TINY = {
    "seeds": "2", "learn.objectives": "self_consistency", "learn.iterations": "2", "learn.batch": "4",
    "learn.width": "8", "learn.depth": "1", "learn.embedding": "4", "eval.steps": "3", "eval.samples": "16",
    "eval.omegas": "0,1,1e30", "eval.intervals": "()", "eval.clamp": "()",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("wild")
    with jax.debug_key_reuse(False):  # every weight meets the same noise
        assert main(command(workdir)) == 0
    return workdir


def command(workdir, **overrides) -> list[str]:
    flags = TINY | overrides
    return [f"--config={MIXTURE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in flags.items())]


@pytest.mark.key_reuse  # every weight meets the same noise
def test_a_weight_beyond_all_bounds_is_reported_as_such(finished, capsys):
    """omega = 1e30: samples of about 1e30 to the third power, which float32 does not hold; a NaN once counted as a
    sample at no distance from any other, and won."""
    wild = [r for r in results.read(finished / "results.json") if r.weight == "omega = 1e+30"]
    assert wild and all(row.value is None and row.standard_error is None for row in wild)
    ledger = (finished / "evaluations.jsonl").read_text()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in ledger.splitlines()]
    assert any(None in line.get("metrics", {}).values() for line in lines)
    before = (finished / "results.json").read_bytes()
    assert main(command(finished)) == 0  # the folder reports again, and repeats nothing
    assert (finished / "evaluations.jsonl").read_text() == ledger
    assert (finished / "results.json").read_bytes() == before
    best = [r for r in results.read(finished / "results.json") if r.method == "best constant"]
    assert best and all("1e+30" not in row.weight for row in best), "what is not finite is never the best"


def test_a_rubbish_line_is_told_of_and_nothing_else_is_lost(finished, tmp_path):
    path = tmp_path / "evaluations.jsonl"
    whole = (finished / "evaluations.jsonl").read_bytes().splitlines(keepends=True)
    for rubbish in (b"rubbish\n", b"\xff\xfe\n", b"[1]\n", b'{"key": 3}\n', b"{}\n", b'{"key": {}, "metrics": 1}\n'):
        path.write_bytes(b"".join([*whole[:2], rubbish, *whole[2:], b'{"key": "cut short']))
        with pytest.warns(Damaged, match=r"evaluations.jsonl: line 3 is not what a run wrote") as told:
            ledger = Ledger(path)
        assert len(told) == 1 and "\n" not in str(told[0].message)
        assert ledger.done == Ledger(finished / "evaluations.jsonl").done
        assert path.read_bytes() == b"".join([*whole[:2], rubbish, *whole[2:]])


def test_a_rubbish_line_of_the_metrics_stays(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"phase": "a", "step": 1}\n', "rubbish\n", '{"phase": "b", "step": 1}\n', '{"phase": "b", "step": 9}\n']
    path.write_text("".join(lines) + '{"phase": "b", "st')
    with pytest.warns(Damaged, match="metrics.jsonl: line 2 "), progress.Metrics(path, "b", 1):
        pass
    assert path.read_text() == "".join(lines[:3])


ROW = Row("p", "m", "w", {}, "ddim", 3, 3.0, 2, "energy_distance", None)


def test_means_with_a_value_that_is_not_finite_are_none():
    for values in ([1.0, math.inf], [math.nan, 1.0], [math.inf, -math.inf]):
        row = mean_row("p", "m", "w", {}, "ddim", 3, 3, "energy_distance", values)
        assert row.value is None and row.standard_error is None
    assert mean_row("p", "m", "w", {}, "ddim", 3, 3, "energy_distance", [1.0, 3.0])[9:11] == (2.0, 1.0)


def test_every_table_says_not_finite():
    assert tables.table([ROW, ROW._replace(value=1.0)]).splitlines()[-1].split()[-3:] == ["not", "finite", "2"]
    assert page._cell(ROW, 1000) == "not finite" and not page._close(ROW, ROW._replace(value=1.0))
    assert page._close(ROW._replace(value=1.0), ROW)
    table = page.standings([ROW, ROW._replace(method="n", value=1.0)], 3.0)
    assert [(method, rank) for method, rank, _ in table] == [("n", 1.0), ("m", 2.0)]


@pytest.mark.parametrize("lost", [{"constant"}, {"learned"}, {"unguided", "constant", "best constant", "learned"}])
def test_pictures_leave_out_what_is_not_finite_and_say_so(lost):
    """One row after the other, and all of them."""
    rows = [
        ROW._replace(
            method=method, kind=kind, settings={"family": family} | knob, value=None if method in lost else 1.0
        )
        for method, kind, family, knob in (
            ("unguided", results.NONE, "unguided", {}),
            ("constant", results.GIVEN, "constant", {"omega": 2.0}),
            ("best constant", results.TUNED, "constant", {}),
            ("learned", results.LEARNED, "l2", {}),
        )
    ]
    problem = types.SimpleNamespace(instrument=types.SimpleNamespace(tuned=("energy_distance",)))
    figure = figures.sweep(problem, rows).figure
    figure.canvas.draw()
    words = " ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))
    assert ("not finite at" in words and "2" in words.split("not finite at")[1]) == ("constant" in lost)
    assert ("learned: not finite" in words) == ("learned" in lost)
    figures.quality_against_nfe(problem, rows).figure.canvas.draw()


def test_a_report_without_results_is_one_line(tmp_path, capsys):
    assert main(command(tmp_path, job="report")) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and "results.json cannot be read" in line


DAMAGED = {
    "words for a number": lambda entry: entry["metrics"].update(energy_distance="x"),
    "no metrics": lambda entry: entry.pop("metrics"),
    "no number of evaluations": lambda entry: entry.pop("nfe"),
    "other metrics": lambda entry: entry.update(metrics={"other": 1.0}),
    "a number for a table": lambda entry: entry.update(table=3),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_line_with_a_damaged_value_counts_as_none(damage, tmp_path):
    path, settings = tmp_path / "evaluations.jsonl", [{"steps": 1}, {"steps": 2}]
    entries = [{"nfe": 1, "metrics": {"energy_distance": 0.5}, "key": known} for known in settings]
    damage(entries[0])
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.warns(Damaged, match="line 1 is not what a run wrote"):
        ledger = Ledger(path, ("nfe", "metrics"), ("energy_distance",))
    assert list(ledger.done) == [key(settings[1])]

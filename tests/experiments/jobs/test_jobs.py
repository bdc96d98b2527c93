"""The chain of jobs on a problem that takes seconds: what it leaves, that it resumes, that it compiles once."""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import problems
from experiments.files import weight_files
from experiments.jobs import evaluate, figures, learn
from experiments.main import load, main
from experiments.runtime import results
from guidance import schedules, weights
from tests.conftest import REPOSITORY

ROOT = REPOSITORY
CONFIG = str(ROOT / "configs/mixture.py")
TINY = {
    "seeds": "2", "base.steps": "30", "base.width": "16", "learn.iterations": "12", "learn.batch": "16",
    "learn.rollout_iterations": "8", "learn.rollout_batch": "8", "learn.rollout_real": "16", "learn.width": "16",
    "learn.checkpoint_every": "5", "eval.steps": "4,8", "eval.samples": "40", "eval.omegas": "0,0.5,1",
    "eval.intervals": "((0.2,0.8),)", "base.depth": "1", "learn.depth": "1",
}  # fmt: skip


def command(workdir, **overrides) -> list[str]:
    flags = TINY | overrides
    return [f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in flags.items())]


def leaves(workdir) -> dict[str, bytes]:
    """What a run must reproduce to the bit: history, every evaluation with its table of weights, and results."""
    return {name: (workdir / name).read_bytes() for name in ("metrics.jsonl", "evaluations.jsonl", "results.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run. Training and learning use every key once; then all weights meet the same noise, on purpose."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with jax.debug_key_reuse(True):
        assert main(command(workdir, job="train")) == main(command(workdir, job="learn")) == 0
    with jax.debug_key_reuse(False):
        assert main(command(workdir)) == 0
    return workdir


def test_leaves_everything_a_reader_needs(finished):
    rows = results.read(finished / "results.json")
    methods = {row.method for row in rows}
    assert {"unguided", "constant", "interval", "best constant", "best interval", "self_consistency", "l2"} <= methods
    assert {"rollout@4", "rollout@8"} <= methods
    assert {row.steps for row in rows if row.method == "rollout@4"} == {4}
    assert all(row.seeds == 2 and row.standard_error is not None for row in rows)
    config = json.loads((finished / "config.json").read_text())
    assert config["problem"]["name"] == "mixture" and config["eval"]["steps"] == [4, 8]
    phases = {json.loads(line)["phase"] for line in (finished / "metrics.jsonl").read_text().splitlines()}
    assert {"base denoiser, seed 0", "self_consistency, seed 1", "rollout@8, seed 0"} <= phases
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(finished.glob("*.png"))) == 5
    assert {path.stem for path in finished.glob("*.png")} == {path.stem for path in finished.glob("*.csv")}
    assert not {path.stem for path in finished.glob("*.png")} & set(re.findall("<h2>(.*?)</h2>", page))
    assert {path.name for path in finished.glob("*.tex")} == {"table_energy_distance.tex", "table_details.tex"}
    written = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # a picture may hold any four letters
    assert "http" not in written, "the report must not fetch anything"


def test_learned_weights_are_files_that_answer_as_the_run_did(finished):
    """On the grid of the evaluation the file gives the table of omegas that was evaluated."""
    names = {path.name for path in (finished / "weights").iterdir()}
    tasks = ("self_consistency", "l2", "rollout@4", "rollout@8")
    assert names == {f"{task}_seed_{seed}.safetensors" for task in tasks for seed in (0, 1)}
    ledger = evaluate.Ledger(finished / "evaluations.jsonl").done
    grid = evaluate.sampling.uniform_grid(8)
    for task in ("l2", "rollout@8"):
        weight, about = weight_files.read(finished / "weights" / f"{task}_seed_1.safetensors")
        assert about.objective == task and about.steps == (8 if task == "rollout@8" else None)
        assert about.training["learn"]["iterations"] == 12 and about.problem.startswith("mixture")
        table = weights.tabulated(weight, grid, jax.numpy.arange(4))
        assert table.tolist() == of_task(ledger, 1, task, 8)["table"]


def of_task(ledger, seed, task, steps):
    """The entry of a learned weight."""
    wanted = {"seed": seed, "learned": task, "steps": steps}
    [entry] = [entry for entry in ledger.values() if wanted.items() <= entry["key"].items()]
    return entry


def test_families_have_colours_of_their_own():
    """Two calls of one rule are two families; more than a report can hold start over."""
    names = ["rollout", *(f"apg(eta=0, cap={cap}, beta=-0.5)" for cap in range(1, 20)), "interval", "mahiro"]
    found = figures.shades(names)
    assert len({str(found[name]) for name in names}) == len(names)


def test_weights_learned_inside_a_rule_share_its_family():
    config = load(CONFIG, TINY | {"learn.rules": "cfg,apg(cap=2.5)", "eval.others": "apg(cap=2.5),apg(cap=5)"})
    found = {task.name: task.family for task in learn.tasks(problems.build(config), config)}
    assert found["rollout@4"] == "rollout" and found["rollout apg(cap=2.5)@4"] == "apg(eta=0, cap=2.5, beta=-0.5)"
    made = evaluate.hand.candidates(config, schedules.rectified_flow())
    families = dict.fromkeys(candidate.family for candidate in made)
    assert list(families)[-2:] == ["apg(eta=0, cap=2.5, beta=-0.5)", "apg(eta=0, cap=5, beta=-0.5)"]
    assert {c.method for c in made} >= {"apg(cap=2.5)", "apg(cap=5)"}


def test_equal_words_are_no_equal_weights():
    """Two omegas that print alike are two rows of the ledger, and so are two calls of one rule."""
    near = {"eval.omegas": "0,0.12345671,0.12345674", "eval.others": "apg(cap=2.5),apg(cap=5),ramp(cosine)"}
    made = evaluate.hand.candidates(load(CONFIG, TINY | near), schedules.rectified_flow())
    assert len({(c.method, c.words) for c in made}) < len(made), "the words do not tell them apart"
    assert len({evaluate.name_of(c) for c in made}) == len(made)


def test_files_of_a_task_have_plain_names():
    config = load(CONFIG, TINY | {"learn.rules": "cfg,apg(0.5, 2.5),apg(5),frequency_decoupled((0.5,1))"})
    tasks = [task for task in learn.tasks(problems.build(config), config) if task.steps == 4]
    assert [task.file for task in tasks] == [
        "rollout@4",
        "rolloutapg_eta_0.5_cap_2.5_@4",
        "rolloutapg_eta_5_@4",
        "rolloutfrequency_decoupled_factors_0.5_1_@4",
    ]
    assert [task.rule for task in tasks][1] == "apg(eta=0.5, cap=2.5, beta=-0.5)"


def test_weights_of_other_rules_start_from_those_of_cfg():
    config = load(CONFIG, TINY | {"learn.rules": "apg,cfg", "learn.objectives": "rollout"})
    tasks = {task.name: (task.start, task.recipe.updates) for task in learn.tasks(problems.build(config), config)}
    assert tasks == {
        "rollout@4": (None, 8),
        "rollout@8": ("rollout@4", 4),
        "rollout apg@4": ("rollout@4", 4),
        "rollout apg@8": ("rollout@8", 2),
    }
    alone = load(CONFIG, TINY | {"learn.rules": "apg", "learn.objectives": "rollout"})
    tasks = {task.name: (task.start, task.recipe.updates) for task in learn.tasks(problems.build(alone), alone)}
    assert tasks == {"rollout apg@4": (None, 8), "rollout apg@8": ("rollout apg@4", 4)}


def test_rollouts_limited_to_an_interval_start_from_the_others():
    config = load(CONFIG, TINY | {"learn.intervals": "((0.0,0.5),(0.2,0.8))", "learn.objectives": "rollout"})
    tasks = {task.name: (task.start, task.recipe.updates) for task in learn.tasks(problems.build(config), config)}
    assert tasks == {
        "rollout@4": (None, 8),
        "rollout 0 to 0.5@4": ("rollout@4", 8),
        "rollout 0.2 to 0.8@4": ("rollout@4", 8),
        "rollout@8": ("rollout@4", 4),
        "rollout 0 to 0.5@8": ("rollout@8", 4),
        "rollout 0.2 to 0.8@8": ("rollout@8", 4),
    }


@pytest.mark.key_reuse  # every weight meets the same noise
def test_a_finished_run_gains_weights_limited_to_an_interval(tmp_path):
    """0 outside to the last bit, so that those steps cost one evaluation; what was there before stays."""
    small = {"seeds": "1", "learn.objectives": "rollout", "eval.steps": "5", "figures": "False", "base.steps": "5"}
    assert main(command(tmp_path, **small)) == 0
    before = results.read(tmp_path / "results.json")
    assert main(command(tmp_path, **small, **{"learn.intervals": "((0.0,0.61),)"})) == 0
    after = results.read(tmp_path / "results.json")
    assert [row for row in after if "0.61" not in row.method] == before
    assert {row.nfe for row in after if row.method == "rollout 0 to 0.61@5"} == {5 + 3}, "0.6, 0.4 and 0.2 are guided"
    ledger = evaluate.Ledger(tmp_path / "evaluations.jsonl").done
    table = of_task(ledger, 0, "rollout 0 to 0.61@5", 5)["table"]
    assert np.all(np.asarray(table)[:2] == 0) and np.all(np.max(table, axis=1)[2:] > 0)
    weight, about = weight_files.read(tmp_path / "weights" / "rollout0to0.61@5_seed_0.safetensors")
    assert about.interval == [0, 0.61] and about.steps == 5  # as typed: nothing snaps by itself
    assert weights.tabulated(weight, evaluate.sampling.uniform_grid(5), jax.numpy.arange(4)).tolist() == table


def test_differences_are_paired_over_seeds(finished):
    rows = {(r.method, r.steps, r.metric): r for r in results.read(finished / "results.json")}
    for steps in (4, 8):
        gap = rows[f"rollout@{steps} - best constant", steps, "energy_distance_difference"]
        mine = rows[f"rollout@{steps}", steps, "energy_distance"]
        best = rows["best constant", steps, "energy_distance"]
        assert gap.value == pytest.approx(mine.value - best.value, abs=1e-7)
        unguided = rows["unguided", steps, "energy_distance"]
        assert best.value <= unguided.value, "omega = 0 belongs to every family"


def test_network_evaluations_are_counted(finished):
    rows = {(r.method, r.weight, r.steps): r for r in results.read(finished / "results.json")}
    assert rows["unguided", "omega = 0", 8].nfe == 8
    assert rows["constant", "omega = 0.5", 8].nfe == 16
    # t in (0.2, 0.8] on the grid 1, 0.875, ..., 0.125: 0.75, 0.625, 0.5, 0.375, 0.25 start inside
    assert rows["interval", "omega = 0.5 on t in (0.2, 0.8]", 8].nfe == 8 + 5


def test_the_same_command_repeats_nothing(finished):
    before = leaves(finished)
    assert main(command(finished, job="evaluate")) == 0
    assert leaves(finished) == before


@pytest.mark.slow
@pytest.mark.key_reuse  # every weight meets the same noise
def test_a_finished_run_that_grows_ends_as_if_it_had_been_whole_from_the_start(finished, tmp_path):
    """A best constant of another omega, a second seed, rollouts at more steps from those at fewer."""
    small = {"seeds": "1", "learn.objectives": "rollout", "eval.steps": "4", "eval.omegas": "0,1", "figures": "False"}
    assert main(command(tmp_path, **small)) == 0
    few = results.read(tmp_path / "results.json")
    assert main(command(tmp_path, figures="False")) == 0
    assert (tmp_path / "results.json").read_bytes() == (finished / "results.json").read_bytes()
    assert len(few) < len(results.read(finished / "results.json")) / 2


def test_a_sweep_over_weights_compiles_once():
    overrides = TINY | {"problem.error": "attenuated", "eval.omegas": "0,.1,.2,.3,.4,.5,.6,.7,.8,.9,1,1.1"}
    config = load(CONFIG, overrides)
    problem = problems.build(config)
    model = problem.model
    traces = []

    def counting(params):
        def denoise(x, t, cond):
            traces.append(x.shape)
            return model.denoise(params)(x, t, cond)

        return denoise

    run = evaluate.sampler(problem._replace(model=model._replace(denoise=counting)), config, 4)
    grid = evaluate.sampling.uniform_grid(4)
    candidates = evaluate.hand.candidates(config, problem.model.schedule)
    assert len(candidates) > 20
    for candidate in candidates:
        run((), weights.tabulated(candidate.weight(grid), grid, model.conditions), jax.random.key(0))
        first = len(traces) if candidate is candidates[0] else first  # noqa: F821 (bound in the first round)
    assert len(traces) == first


@contextlib.contextmanager
def started(workdir, errors, **overrides):
    """The command in a process of its own, whose stderr goes to the file `errors`; killed if it is still there."""
    with open(errors, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.main", *command(workdir, figures="false", **overrides)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def lines(workdir) -> int:
    """How many updates and evaluations a run has written down: how far it is."""
    files = (workdir / name for name in ("metrics.jsonl", "evaluations.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(finished, tmp_path):
    """Once while it trains (132 updates) and once while it evaluates; the whole run was one of this process."""
    broken, errors = tmp_path / "broken", tmp_path / "errors"
    updates = (finished / "metrics.jsonl").read_bytes().count(b"\n")
    moments = random.Random(3)
    for fewest in (moments.randrange(1, updates), moments.randrange(updates + 1, lines(finished) - 10)):
        with started(broken, errors) as process:
            deadline = time.monotonic() + 300
            while lines(broken) < fewest:
                assert time.monotonic() < deadline and process.poll() is None, errors.read_text()
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert lines(broken) < lines(finished), "it was not killed in time"
    with started(broken, errors) as process:
        assert process.wait(timeout=300) == 0, errors.read_text()
    assert leaves(broken) == leaves(finished)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(tmp_path):
    run, history, errors = tmp_path / "run", tmp_path / "run" / "metrics.jsonl", tmp_path / "errors"
    with started(run, errors, **{"seeds": "1", "base.steps": "5", "learn.iterations": "2000"}) as process:
        deadline = time.monotonic() + 300
        while not (history.exists() and "self_consistency" in history.read_text()):
            assert time.monotonic() < deadline and process.poll() is None, errors.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 143
    assert "the same command resumes" in errors.read_text()
    assert list((run / "guidance").rglob("step_*"))

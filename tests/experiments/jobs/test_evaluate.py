"""Every number that job `evaluate` writes, on a problem where all of them can be worked out by hand."""

import json
import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.files import weight_files
from experiments.jobs import evaluate, learn, samplers, train
from experiments.main import load
from experiments.runtime import results
from guidance import sampling, weights
from guidance.tables import Row
from tests.conftest import REPOSITORY
from tests.experiments import two_numbers

CONFIG = str(REPOSITORY / "configs/mixture.py")
SEEDS = (17, 18, 19)  # whose networks start at a = 0.61, 0.99 and 0.02: another weight is the best for each
OMEGAS = (0.25, 0.5, 0.75, 1.0, 1.5)
TINY = {
    "seed": "17", "seeds": "3", "figures": "False", "base.steps": "2", "base.batch": "4", "base.learning_rate": "1e-6",
    "learn.objectives": "l2", "learn.iterations": "4", "learn.batch": "8", "learn.width": "8", "learn.depth": "2",
    "learn.embedding": "8", "learn.learning_rate": "0.05", "eval.steps": "4", "eval.samples": "6",
    "eval.omegas": "0,0.25,0.5,0.75,1,1.5", "eval.intervals": "((0.2,0.8),(0.3,0.8))", "eval.clamp": "(2.5,)",
    "eval.sweep_seeds": "2", "eval.others": "unguided_twice,triangle",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, config, rows, instrument, a of each seed): one small run of everything."""
    workdir, instrument = tmp_path_factory.mktemp("evaluate"), two_numbers.Measured()
    config = load(CONFIG, TINY)
    problem = two_numbers.problem(instrument)
    with jax.debug_key_reuse(True):
        learn.run(problem, config, workdir)
    with jax.debug_key_reuse(False):  # all weights meet the same noise, on purpose
        rows = evaluate.run(problem, config, workdir)
    levels = [float(params["a"]) for params in train.run(problem, config, workdir)]
    return workdir, config, rows, instrument, levels


def found(rows, method, metric, weight=None):
    """The one row of a method, and of a weight where it has several."""
    [row] = [r for r in rows if r.method == method and r.metric == metric and weight in (None, r.weight)]
    return row


def scored(a, omega):
    """(error, excess) of a constant omega, or one for each class."""
    end = two_numbers.ends(a, omega)
    return np.mean((end - np.array([2.0, 4.0])) ** 2), np.mean(np.abs(end - np.array([1.5, 3.0])))


def learned_tables(workdir):
    """Of each seed: what the weight in its file answers on the four steps, for each class."""
    grid, paths = sampling.uniform_grid(4), [workdir / "weights" / f"l2_seed_{s}.safetensors" for s in SEEDS]
    return [np.asarray(weights.tabulated(weight_files.read(path)[0], grid, jnp.arange(2))) for path in paths]


def learned_omegas(workdir):
    """Of each seed, of each class: the weight on the last step, which decides where samples end."""
    return [table[-1] for table in learned_tables(workdir)]


def agrees(row, values):
    """Mean over the seeds and s / sqrt(n), from the definitions."""
    n = len(values)
    assert row.seeds == n
    assert row.value == pytest.approx(sum(values) / n, rel=1e-5, abs=1e-6)
    deviation = math.sqrt(sum((value - sum(values) / n) ** 2 for value in values) / (n - 1))
    assert row.standard_error == pytest.approx(deviation / math.sqrt(n), rel=1e-4, abs=1e-7)


def test_every_seed_has_its_own_model_weights_noise_and_start(run):
    workdir, _, _, instrument, levels = run
    assert len({round(a, 3) for a in levels}) == 3
    omegas = learned_omegas(workdir)
    assert all(np.max(np.abs(omegas[i] - omegas[j])) > 1e-4 for i in range(3) for j in range(i))
    by_key = {}
    for key, samples, _ in instrument.shown:
        by_key.setdefault(tuple(key), []).append(samples[..., 1])
    # reference samples follow from the key of the measurement: one for each seed, and not that of the noise
    pairs = [[tuple(jax.random.key_data(key).tolist()) for key in samplers.keys(seed)] for seed in SEEDS]
    assert set(by_key) == {pair[1] for pair in pairs} and len(set(sum(pairs, []))) == 6
    noises = [seen[0] for seen in by_key.values()]
    for own in by_key.values():
        for noise in own:  # all weights of a seed meet the same noise, but for those of twice the steps
            assert np.allclose(noise, own[0]) or np.corrcoef(noise.ravel(), own[0].ravel())[0, 1] > 0.999
    flat = [noise.ravel() for noise in noises]
    assert all(abs(np.corrcoef(flat[i], flat[j])[0, 1]) < 0.999 for i in range(3) for j in range(i))
    assert all(len(np.unique(noise)) == 6 for noise in noises), "every sample its own"


def shortlist(levels):
    """The omegas that the third seed sees: none, and the three best of each metric by their mean over the first two,
    among which 0 counts."""
    kept = {0.0}
    for place in (0, 1):
        means = {omega: np.mean([scored(a, omega)[place] for a in levels[:2]]) for omega in (0.0, *OMEGAS)}
        kept |= set(sorted(means, key=means.get)[:3])
    return kept


def test_unguided_and_constants(run):
    """Means and errors over the seeds that saw them: two for what is not on the shortlist, three for what is."""
    _, _, rows, _, levels = run
    for place, metric in enumerate(("error", "excess")):
        agrees(found(rows, "unguided", metric), [scored(a, 0.0)[place] for a in levels])
        agrees(found(rows, "unguided, 2 x steps", metric), [scored(a, 0.0)[place] for a in levels])
    kept = shortlist(levels)
    assert 0 < len(kept - {0}) < len(OMEGAS), "some are left out"
    for omega in OMEGAS:
        seen = levels if omega in kept else levels[:2]
        for place, metric in enumerate(("error", "excess")):
            row = found(rows, "constant", metric, f"omega = {omega:g}")
            agrees(row, [scored(a, omega)[place] for a in seen])
            assert row.settings == {"omega": omega}


def test_intervals_guide_their_steps_only(run):
    """Of the steps from 1, 0.75, 0.5 and 0.25 the last three lie in (0.2, 0.8]: three pairs of evaluations and one."""
    _, _, rows, _, levels = run
    row = found(rows, "interval", "error", "omega = 0.5 on t in (0.2, 0.8]")
    agrees(row, [scored(a, 0.5)[0] for a in levels[: row.seeds]])
    assert row.nfe == 7 and row.settings == {"omega": 0.5, "lo": 0.2, "hi": 0.8}
    early = found(rows, "interval", "error", "omega = 0.5 on t in (0.3, 0.8]")  # not the last step, which decides
    agrees(early, [scored(a, 0.0)[0] for a in levels[: early.seeds]])
    assert early.nfe == 6 and early.settings["lo"] == 0.3
    assert found(rows, "unguided", "error").nfe == 4 and found(rows, "unguided, 2 x steps", "error").nfe == 8
    assert found(rows, "constant", "error", "omega = 1").nfe == 8 and row.steps == 4


def test_ramps_have_their_floor(run):
    """scale = max(floor, 2 (1 + omega) (1 - t)): on the last step from t = 1/4, max(2.5, 1.5 (1 + omega)) at most."""
    _, _, rows, _, levels = run
    for omega, scale in ((0.5, 2.5), (0.75, 2.625), (1.5, 3.75)):
        row = found(rows, "clamp_linear", "error", f"scale = max(2.5, {2 * (1 + omega):g} (1 - t))")
        agrees(row, [scored(a, scale - 1)[0] for a in levels[: row.seeds]])
        assert row.settings == {"omega": omega, "floor": 2.5}


def test_schedules_are_made_for_the_grid(run):
    """The triangle over four steps has scales 1, 1 + omega, 1 + 2 omega and 1, times 4 (1 + omega)/(4 + 3 omega)."""
    _, _, rows, _, levels = run
    for omega in (0.5, 1.5):
        row = found(rows, "triangle", "error", f"omega = {omega:g}")
        agrees(row, [scored(a, 4 * (1 + omega) / (4 + 3 * omega) - 1)[0] for a in levels[: row.seeds]])


def best(levels, place):
    """(score, omega) of the best constant of each seed, among those that it saw; no guidance is one of them."""
    seen = [{0.0, *OMEGAS}, {0.0, *OMEGAS}, shortlist(levels)]
    return [min((scored(a, omega)[place], omega) for omega in own) for a, own in zip(levels, seen, strict=True)]


def test_the_best_of_a_family_is_the_best_of_each_seed_and_metric(run):
    _, _, rows, _, levels = run
    for place, metric in enumerate(("error", "excess")):
        winners = best(levels, place)
        row = found(rows, "best constant", metric)
        agrees(row, [value for value, _ in winners])
        assert row.weight == "; ".join(sorted({f"omega = {omega:g}" for _, omega in winners}))
    assert len({omega for place in (0, 1) for _, omega in best(levels, place)} - {0}) > 1
    assert 0 in {omega for _, omega in best(levels, 1)}, "no guidance is the best for one of them"


def test_learned_weights_are_measured_as_their_files_answer(run):
    workdir, _, rows, _, levels = run
    values = [scored(a, omega) for a, omega in zip(levels, learned_omegas(workdir), strict=True)]
    for place, metric in enumerate(("error", "excess")):
        agrees(found(rows, "l2", metric, "omega(s, t, c)"), [value[place] for value in values])
        gaps = [value[place] - own for value, (own, _) in zip(values, best(levels, place), strict=True)]
        agrees(found(rows, "l2 - best constant", f"{metric}_difference"), gaps)
        floors = [two_numbers.Measured().floor(samplers.keys(seed)[1], 3, True)[metric] for seed in SEEDS]
        triples = zip(values, levels, floors, strict=True)
        closed = [
            (scored(a, 0.0)[place] - value[place]) / (scored(a, 0.0)[place] - floor) for value, a, floor in triples
        ]
        agrees(found(rows, "l2", f"{metric}_gap_closed"), closed)
        assert found(rows, "unguided", metric).floor == pytest.approx(statistics.fmean(floors), rel=1e-6)


def test_what_is_not_tuned_is_shown_at_the_weights_tuned_on_the_leading_metric(run):
    workdir, _, rows, _, levels = run
    at_best = [np.mean(two_numbers.ends(a, w)) for a, (_, w) in zip(levels, best(levels, 0), strict=True)]
    row = found(rows, "best constant", "end")
    agrees(row, at_best)
    assert row.weight == "as tuned on error" and row.floor == 3  # the samples of each condition
    omegas = learned_omegas(workdir)
    agrees(found(rows, "l2", "end"), [np.mean(two_numbers.ends(a, w)) for a, w in zip(levels, omegas, strict=True)])
    agrees(found(rows, "best constant", "median_omega"), [omega for _, omega in best(levels, 0)])
    agrees(found(rows, "l2", "median_omega"), [np.median(table) for table in learned_tables(workdir)])


def test_results_are_what_was_returned(run):
    workdir, _, rows, _, _ = run
    assert results.read(workdir / "results.json") == [Row(*json.loads(json.dumps(row))) for row in rows]

"""What a report prints, from rows written down here; and which checkpoint of a learned weight is chosen."""

import html
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.jobs import learn, report, samplers, selection
from experiments.main import load
from experiments.runtime import checkpoints, records
from guidance import sampling, weights
from guidance.learning.training import Recipe
from tests.conftest import REPOSITORY
from tests.experiments import two_numbers

CONFIG = str(REPOSITORY / "configs/mixture.py")
PLAIN = {"figures": "False", "seeds": "5", "eval.steps": "4,2", "learn.select_samples": "6"}


def row(kind, method, metric, value, error=None, floor=None, weight="w", steps=10, nfe=20, **settings):
    return records.Row("p", method, weight, settings, "ddim", steps, nfe, 5, metric, value, error, floor, kind)


ROWS = [
    row(records.NONE, "unguided", "error", 0.45678, 0.0211, 0.00061, "omega = 0", nfe=10),
    row(records.GIVEN, "constant", "error", 0.3, 0.01, 0.00061, "omega = 1"),
    row(
        records.TUNED,
        "best constant",
        "error",
        0.26543,
        0.0149,
        0.00061,
        "; ".join(f"omega = {i}.123456789" for i in range(5)),
    ),
    row(records.LEARNED, "rollout@10", "error", 0.21511, 0.0173, 0.00061, "omega(s, t, c)"),
    row(records.SHARE, "rollout@10", "error_gap_closed", 0.53062, 0.01, weight="share of the gap"),
    row(
        records.DIFFERENCE,
        "rollout@10 - best constant",
        "error_difference",
        -0.05032,
        0.0048,
        learned="rollout@10",
        minus="constant",
        weight="paired over seeds",
    ),
    row(
        records.DIFFERENCE,
        "rollout@10 - best interval",
        "error_difference",
        -0.0213,
        0.00951,
        learned="rollout@10",
        minus="interval",
        weight="paired over seeds",
    ),
    row(records.NONE, "unguided", "error", 0.5, 0.1, 0.00061, "omega = 0", steps=5, nfe=5),
    row(records.IN_FULL, "unguided", "end", 12.3456, 0.0321, 3.0, "as tuned on error", nfe=10),
    row(records.IN_FULL, "rollout@10", "end", 1234.56, None, 3.0, "as tuned on error"),
    row(records.IN_FULL, "unguided", "median_omega", 0.0, 0.0, None, "as tuned on error", nfe=10),
]


def tables(page):
    """The cells of every row of every table, by caption."""
    found = {}
    for table in re.findall(r"<table>(.*?)</table>", page, re.DOTALL):
        caption = html.unescape(re.search("<caption>(.*?)</caption>", table)[1])
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
        found[caption] = [[html.unescape(c) for c in re.findall(r"<t[dh]>(.*?)</t[dh]>", one)] for one in rows]
    return found


def test_a_report_prints_its_rows(tmp_path):
    """Three digits and one of the error; the best first within a number of steps; the paired gap, with its sign."""
    records.write_results(tmp_path / "results.json", ROWS)
    problem = two_numbers.problem(two_numbers.Measured())
    report.run(problem, load(CONFIG, PLAIN), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "over 5 seeds" in page
    shown = tables(page)
    [main] = [lines for caption, lines in shown.items() if caption.startswith("error of 2000 samples")]
    assert main == [
        ["method", "weight", "steps", "NFE", "error", "floor", "minus best constant", "minus best interval",
         "gap closed"],
        ["unguided", "omega = 0", "5", "5", "0.5 ± 0.1", "0.00061", "", "", ""],
        ["rollout@10", "omega(s, t, c)", "10", "20", "0.215 ± 0.02", "0.00061", "-0.0503 ± 0.005", "-0.0213 ± 0.01",
         "53.1 %"],
        ["best constant", "one for each seed", "10", "20", "0.265 ± 0.01", "0.00061", "", "", ""],
        ["unguided", "omega = 0", "10", "10", "0.457 ± 0.02", "0.00061", "", "", ""],
    ]  # fmt: skip
    assert shown["Everything else"] == [
        ["method", "", "end", "median_omega"],
        ["unguided", "10 steps", "12.3 ± 0.03", "0 ± 0"],
        ["rollout@10", "10 steps", "1.23e+03", ""],
        ["true data", "", "3", ""],
    ]


@pytest.mark.parametrize(
    "values, mean, error",
    [([1.0, 2.0, 6.0], 3.0, (7 / 3) ** 0.5), ([2.0, 4.0], 3.0, 1.0), ([5.0], 5.0, None)],
)
def test_a_row_is_the_mean_and_its_standard_error(values, mean, error):
    """1, 2, 6: squares of deviations 4 + 1 + 9, so a variance of 7, over three seeds 7/3; 2, 4: 2, over two 1."""
    found = records.mean_row("p", "m", "w", {}, "s", 3, 6, "error", np.float32(values), floor=0.5)
    assert found.value == pytest.approx(mean) and found.floor == 0.5
    assert found.seeds == len(values) and (found.steps, found.nfe) == (3, 6)
    assert found.standard_error == (None if error is None else pytest.approx(error))


def test_the_table_of_a_terminal_prints_four_digits():
    lines = [line.split("  ") for line in records.table([ROWS[3], ROWS[0]]).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[2] == ["p", "error", "10", "20", "rollout@10", "omega(s, t, c)", "0.2151 ± 0.02",
                        "0.00061", "5"]  # fmt: skip
    assert cells[3][-3:] == ["0.4568 ± 0.02", "0.00061", "5"]


# ---- selection


def data(key):
    return jax.random.key_data(key).tolist()


def test_updates_at_which_params_are_put_aside():
    assert (
        selection.marks(3, 10) == [3, 6, 9, 10] and selection.marks(5, 10) == [5, 10] and selection.marks(0, 9) == []
    )


@pytest.mark.key_reuse  # every checkpoint meets the same noise
def test_the_checkpoint_with_the_lowest_score_is_kept(tmp_path):
    """By the leading metric, on noise that no evaluation sees; the first of equals."""
    instrument = two_numbers.Measured()
    problem, config = two_numbers.problem(instrument), load(CONFIG, PLAIN)
    omegas = {2: 0.2, 4: 0.9, 6: 1.5, 8: 0.9}
    folder, like = tmp_path / "l2" / "seed_7", {"w": jnp.float32(0)}
    for step, omega in omegas.items():
        checkpoints.save(checkpoints.kept(folder, step), step, {"w": jnp.float32(omega)})
    task = learn.Task("l2", Recipe("l2", updates=8), None, lambda params: weights.constant(params["w"]))
    choose = selection.chooser(problem, config, task, list(omegas), tmp_path / "selection.jsonl")
    chosen = choose(7, {"a": jnp.float32(0.1)}, folder, like)
    assert float(chosen["w"]) == pytest.approx(0.9)
    entries = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    for entry, (step, omega) in zip(entries, omegas.items(), strict=True):
        expected = np.mean((two_numbers.ends(0.1, omega) - np.array([2.0, 4.0])) ** 2)
        assert (entry["seed"], entry["update"], entry["metric"], entry["samples"]) == (7, step, "error", 6)
        assert entry["score"] == pytest.approx(expected, rel=1e-5)
    assert {tuple(key) for key, _, _ in instrument.shown} == {tuple(data(samplers.keys(7, selection.PURPOSE)[1]))}
    assert data(samplers.keys(7, selection.PURPOSE)[1]) != data(samplers.keys(7)[1])
    assert all(samples.shape == (2, 3, 2) and not full for _, samples, full in instrument.shown)
    table = weights.tabulated(weights.constant(0.9), sampling.uniform_grid(4), jnp.arange(2))
    noise_key, _ = samplers.keys(7, selection.PURPOSE)
    again, _ = samplers.sampler(problem, config, 4, 6)({"a": jnp.float32(0.1)}, table, noise_key)
    np.testing.assert_allclose(instrument.shown[1][1], again, rtol=1e-6)  # a weight for any number of steps: the most

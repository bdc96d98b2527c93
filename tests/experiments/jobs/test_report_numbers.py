"""What a report prints, from rows written down here; and which checkpoint of a learned weight is chosen."""

import html
import json
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.jobs import learn, report, samplers, selection
from experiments.main import load
from experiments.runtime import checkpoints, results
from guidance import sampling, weights
from guidance import tables as guidance_tables
from guidance.learning.training import Recipe
from guidance.tables import Row, mean_row
from tests.conftest import REPOSITORY
from tests.experiments import two_numbers

CONFIG = str(REPOSITORY / "configs/mixture.py")
PLAIN = {"figures": "False", "seeds": "5", "eval.steps": "4,2", "learn.select_samples": "6"}


def row(kind, method, metric, value, error=None, floor=None, weight="w", steps=10, nfe=20, **settings):
    return Row("p", method, weight, settings, "ddim", steps, nfe, 5, metric, value, error, floor, kind)


ROWS = [
    row(results.NONE, "unguided", "error", 0.45678, 0.0211, 0.00061, "omega = 0", nfe=10),
    row(results.GIVEN, "constant", "error", 0.3, 0.01, 0.00061, "omega = 1"),
    row(
        results.TUNED,
        "best constant",
        "error",
        0.26543,
        0.0149,
        0.00061,
        "; ".join(f"omega = {i}.123456789" for i in range(5)),
        nfe=52 / 3,
    ),
    row(results.LEARNED, "rollout@10", "error", 0.21511, 0.0173, 0.00061, "omega(s, t, c)"),
    row(results.SHARE, "rollout@10", "error_gap_closed", 0.53062, 0.01, weight="share of the gap"),
    row(
        results.DIFFERENCE,
        "rollout@10 - best constant",
        "error_difference",
        -0.05032,
        0.0048,
        learned="rollout@10",
        minus="constant",
        weight="paired over seeds",
    ),
    row(
        results.DIFFERENCE,
        "rollout@10 - best interval",
        "error_difference",
        -0.0213,
        0.00951,
        learned="rollout@10",
        minus="interval",
        weight="paired over seeds",
    ),
    row(results.NONE, "unguided", "error", 0.5, 0.1, 0.00061, "omega = 0", steps=5, nfe=5),
    row(results.IN_FULL, "unguided", "end", 12.3456, 0.0321, 3.0, "as tuned on error", nfe=10),
    row(results.IN_FULL, "rollout@10", "end", 1234.56, None, 3.0, "as tuned on error"),
    row(results.IN_FULL, "unguided", "median_omega", 0.0, 0.0, None, "as tuned on error", nfe=10),
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
    """Two digits of the error and the value to the same place; the best first; the paired gap, with its sign."""
    results.write(tmp_path / "results.json", ROWS)
    problem = two_numbers.problem(two_numbers.Measured())
    report.run(problem, load(CONFIG, PLAIN), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "over 5 seeds" in page
    shown = tables(page)
    [main] = [lines for caption, lines in shown.items() if caption.startswith("error of 2000 samples")]
    assert "17.3333" not in page and "!!python" not in page and "eval.steps = (4, 2)" in html.unescape(page)
    assert main == [
        ["method", "weight", "steps", "NFE", "error", "floor", "minus best constant", "minus best interval",
         "gap closed"],
        ["unguided", "omega = 0", "5", "5", "0.50 ± 0.10", "0.00061", "", "", ""],
        ["rollout@10", "omega(s, t, c)", "10", "20", "0.215 ± 0.017", "0.00061", "-0.0503 ± 0.0048",
         "-0.0213 ± 0.0095", "53.1 ± 1.0 %"],
        ["best constant", "one for each seed", "10", "17.3", "0.265 ± 0.015", "0.00061", "", "", ""],
        ["unguided", "omega = 0", "10", "10", "0.457 ± 0.021", "0.00061", "", "", ""],
    ]  # fmt: skip
    assert shown["Everything else"] == [
        ["method", "steps", "end", "median omega"],
        ["unguided", "10", "12.346 ± 0.032", "0 ± 0"],
        ["rollout@10", "10", "1235", ""],
        ["true data", "", "3", ""],
    ]
    with_errors = (
        "rollout@10 & omega(s, t, c) & $10$ & $20$ & $0.215 \\pm 0.017$ & $0.00061$ & $-0.0503 \\pm 0.0048$ & "
    )
    assert with_errors in (tmp_path / "table_error.tex").read_text()
    assert "unguided & $10$ & $12.346 \\pm 0.032$ & $0 \\pm 0$" in (tmp_path / "table_details.tex").read_text()


@pytest.mark.parametrize(
    "values, mean, error",
    [([1.0, 2.0, 6.0], 3.0, (7 / 3) ** 0.5), ([2.0, 4.0], 3.0, 1.0), ([5.0], 5.0, None)],
)
def test_a_row_is_the_mean_and_its_standard_error(values, mean, error):
    """1, 2, 6: squares of deviations 4 + 1 + 9, so a variance of 7, over three seeds 7/3; 2, 4: 2, over two 1."""
    found = mean_row("p", "m", "w", {}, "s", 3, 6, "error", np.float32(values), floor=0.5)
    assert found.value == pytest.approx(mean) and found.floor == 0.5
    assert found.seeds == len(values) and (found.steps, found.nfe) == (3, 6)
    assert found.standard_error == (None if error is None else pytest.approx(error))


NUMBERS = [
    (0.00769, 0.03, "0.008 ± 0.030"), (0.2151, 0.0173, "0.215 ± 0.017"), (0.2, 0.0996, "0.20 ± 0.10"),
    (-0.0004, 0.02, "0.000 ± 0.020"), (45.2, 9.96, "45 ± 10"), (1234.56, 123.4, "1230 ± 120"),
    (0.9, 12.0, "1 ± 12"), (1.23456e9, 2e7, "(1.235 ± 0.020)e+09"), (1.04e-7, 3e-8, "(1.04 ± 0.30)e-07"),
    (2.5, 1e-17, "2.5 ± 0"), (2.5, 0.0, "2.5 ± 0"), (1234.56, None, "1235"), (0.000612, None, "0.000612"),
    (None, None, "not finite"),
]  # fmt: skip


@pytest.mark.parametrize("value, error, text", NUMBERS)
def test_a_value_has_the_digits_of_its_error(value, error, text):
    assert guidance_tables.number(value, error) == text


def test_evaluations_are_rounded():
    assert [guidance_tables.evaluations(nfe) for nfe in (20, 52 / 3, 19.96, 1e6)] == ["20", "17.3", "20", "1000000"]


HARD = guidance_tables.Table(
    "100 % of #1",
    ("a_b & c", "value"),
    [["[0, 1] * ~^ \\ <x|y> {z} $5 100 %", "-0.05 ± 0.01"], ["* ± é", "(1.2 ± 0.3)e-05"], ["z", "not finite"]],
    frozenset({(0, 0), (1, 1)}),
)


def test_words_and_numbers_are_escaped_for_latex():
    head, _, first, second, third, *_ = HARD.latex().splitlines()[3:]
    assert head == r"a\_b \& c & value \\" and third == r"z & not finite \\"
    assert first.startswith(r"\textbf{\boldmath {[}0, 1{]} {*} \textasciitilde{}") and r"\$5 100 \%} & " in first
    assert first.endswith(r" & $-0.05 \pm 0.01$ \\")
    assert second == r"{*} $\pm$ é & \textbf{\boldmath $(1.2 \pm 0.3) \times 10^{-5}$} \\"
    assert r"\begin{tabular}{lr}" in HARD.latex()


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_compiles(tmp_path):
    (tmp_path / "table.tex").write_text(HARD.latex(), encoding="utf-8")
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{table}\end{document}"
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", page]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:]


def test_the_table_of_a_terminal_has_the_same_numbers():
    lines = [line.split("  ") for line in guidance_tables.table([ROWS[3], ROWS[0]]).splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[2] == ["p", "error", "10", "20", "rollout@10", "omega(s, t, c)", "0.215 ± 0.017",
                        "0.00061", "5"]  # fmt: skip
    assert cells[3][-3:] == ["0.457 ± 0.021", "0.00061", "5"]


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

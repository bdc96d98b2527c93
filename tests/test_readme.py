"""The pages in front: their Python runs as it stands, and numbers that stand on two pages are the same."""

import csv
import importlib.util
import re

import matplotlib.figure
import pytest

from configs import leaderboard
from experiments.leaderboard import images, page
from tests.conftest import REPOSITORY

ROOT = REPOSITORY
RESULTS, FASHION = "docs/results.md", "docs/fashion_mnist.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str) -> list[tuple[int, str]]:
    """(line, code) of every block; those that need PyTorch are left out where it is missing."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [(text.count("\n", 0, match.start(1)), match[1]) for match in BLOCK.finditer(text)]
    without = importlib.util.find_spec("torch") is None
    return [(line, code) for line, code in found if not (without and "import torch" in code)]


def run(page: str) -> dict:
    """The names that the blocks of a page leave."""
    names = {}
    for line, code in blocks(page):
        exec(compile("\n" * line + code, page, "exec"), names)
    return names


def tables(page: str, section: str = "") -> list[list[dict[str, str]]]:
    """Returns the tables of a page, or of its sections of that title: each a list of rows {column: cell}."""
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = [part for part in re.split(r"^#+ ", text, flags=re.MULTILINE) if part.startswith(section)]
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", "\n".join(parts), re.MULTILINE):
        header, _, *rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        names = [name if name not in ("", *header[:i]) else f"column {i}" for i, name in enumerate(header)]
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    assert found, f"{page} has no table in {section!r}"
    return found


def results(page: str) -> dict[tuple[str, str], dict[str, str]]:
    """Returns the rows of results by problem and number of steps."""
    rows = [row for table in tables(page) if "problem" in table[0] for row in table]
    found = {(row["problem"], row["steps"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def numbers(cell: str) -> list[tuple[float, float]]:
    """Returns every number of a text that has an error, and the error, each with half a unit of its last digit."""
    pairs = re.findall(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)", cell)
    return [(float(text), 0.5 * 10.0 ** -len(text.partition(".")[2])) for pair in pairs for text in pair]


def same_rounded(short: str, long: str) -> bool:
    """Returns whether `short` is `long` with fewer digits."""
    pairs = list(zip(numbers(short), numbers(long), strict=True))
    return len(pairs) == 2 and all(abs(a - b) <= half + 1e-9 for (a, half), (b, _) in pairs)


@pytest.fixture(autouse=True)
def _without_a_bar(monkeypatch, tmp_path):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.compute
@pytest.mark.key_reuse  # every weight meets the same noise
def test_readme(capsys):
    """What its first example says holds: the learned weight beats no guidance by far, for twice the evaluations."""
    names = run("README.md")
    rows = {(row.method, row.steps): row for row in names["result"].rows}
    assert rows["learned", 10].value < 0.2 * rows["unguided", 10].value
    assert rows["unguided", 10].nfe == 10 and rows["learned", 10].nfe == 20
    assert str(names["result"]) in capsys.readouterr().out
    assert isinstance(names["result"].figure(), matplotlib.figure.Figure)
    assert {name: int(count) for name, count in names["out"].nfe.items()} == {"positive": 20, "reference": 12}


@pytest.mark.slow
@pytest.mark.key_reuse  # samples from the same keys
def test_own_model():
    names = run("docs/own-model.md")
    assert names["out"].x0.shape == (8, 2)


def test_rows_of_the_readme_are_rows_of_the_results():
    shown, all_rows = results("README.md"), results(RESULTS)
    assert 0 < len(shown) <= 8
    for key, row in shown.items():
        assert row == {column: all_rows[key][column] for column in row}
    assert f"{len(all_rows) - len(shown)} more rows" in (ROOT / "README.md").read_text(encoding="utf-8")


# which row of docs/fashion_mnist.md a column of docs/results.md is, without and with autoguidance
ROWS = {
    "unguided": ("unguided", "unguided"),
    "best constant": ("best constant", "best autoguidance"),
    "best interval": ("best interval", "best interval"),
    "self-consistency": ("learned, self-consistency", ""),
    "rollout": ("learned, rollout", "learned, rollout inside autoguidance"),
}
DIFFERENCES = ("rollout - best interval", "the same - best interval of CFG")


def fashion_row(problem: str, steps: str) -> dict[str, str]:
    """Returns the cells of a row of docs/results.md as docs/fashion_mnist.md has them."""
    network, *kind = problem.removeprefix("Fashion-MNIST, ").split(", ")
    name = network.removesuffix(" DiT")
    section = tables(FASHION, f"{name[0].upper()}{name[1:]}, {steps} steps")[0]
    cells = {row["method"]: row["Frechet distance"] for row in section}
    if kind == ["three of ten steps guided"]:
        budget = {row["Frechet distance"]: row for row in tables(FASHION, "Within a budget")[0]}
        value = {method: row["column 2"] for method, row in budget.items()}
        learned = "learned on (0, 0.3]"
        found = {column: value[column] for column in ("best constant", "best interval")}
        found |= {"unguided": cells["unguided"], "rollout": value[learned]}
        return found | {"rollout - best interval": budget[learned]["minus best interval"]}
    auto = kind == ["autoguidance"]
    differences = {row["column 0"]: row for row in tables(FASHION, "Fashion-MNIST")[0]}
    found = {column: cells[rows[auto]] for column, rows in ROWS.items() if rows[auto] in cells}
    return found | {"rollout - best interval": differences[f"{name}: {DIFFERENCES[auto]}"][f"{steps} steps"]}


def test_results_on_fashion_mnist_are_those_of_their_page_rounded():
    fashion = {key: row for key, row in results(RESULTS).items() if key[0].startswith("Fashion")}
    assert len(fashion) == 15
    for key, row in fashion.items():
        quoted = {column: cell for column, cell in row.items() if "±" in cell}
        source = fashion_row(*key)
        assert quoted.keys() == source.keys(), key
        for column, cell in quoted.items():
            assert same_rounded(cell, source[column]), (key, column)


@pytest.mark.parametrize(
    "page, start, end, source",
    [
        (RESULTS, "## Fashion-MNIST", "## What", FASHION),  # differences, with their signs turned
        ("docs/leaderboard.md", "", "### NFE 10", "docs/leaderboard.md"),
    ],
)
def test_numbers_in_sentences_are_those_of_a_table(page, start, end, source):
    text = (ROOT / page).read_text(encoding="utf-8")
    prose = text[text.index(start) : text.index(end)]
    quoted = re.findall(r"\d+(?:\.\d+)? ± \d+(?:\.\d+)?", re.sub(r"^\|.*", "", prose, flags=re.MULTILINE))
    cells = [cell.lstrip("-") for table in tables(source) for row in table for cell in row.values()]
    cells = [cell for cell in cells if len(numbers(cell)) == 2]
    assert quoted
    for number in quoted:
        assert any(same_rounded(number, cell) for cell in cells), number


def test_what_learning_quotes_stands_in_the_results():
    text = (ROOT / "docs/learning.md").read_text(encoding="utf-8").partition("## Rewards")[0]
    quoted = re.findall(r"\S+ ± [\d.]*\d", text)
    results_page = (ROOT / RESULTS).read_text(encoding="utf-8")
    assert quoted and all(number in results_page for number in quoted)


def test_the_leaderboard_is_its_csv():
    with (ROOT / "docs/leaderboard/leaderboard.csv").open(encoding="utf-8", newline="") as file:
        lines = {(line["problem"], line["nfe"], line["method"]): line for line in csv.DictReader(file)}
    for nfe in ("10", "20", "50"):
        for row in tables("docs/leaderboard.md", f"NFE {nfe}")[0]:
            method = row.pop("method")
            del row["mean rank"]
            for problem, cell in row.items():
                line = lines[problem, "0" if method == "true data" else nfe, method]
                value, error = (1000 * float(line[name]) for name in ("energy_distance", "energy_distance_se"))
                assert abs(numbers(cell)[0][0] - value) < 0.0501 and abs(numbers(cell)[1][0] - error) < 0.0501


def test_the_leaderboard_introduces_its_tables_as_its_code_does():
    text, config = (ROOT / "docs/leaderboard.md").read_text(encoding="utf-8"), leaderboard.get_config()
    numbers = {"seeds": config.seeds, "budget": len(config.omegas), "tuning": config.tuning_seeds}
    for words in (page.INTRODUCTION, *images.PROBLEMS.values()):
        assert words.format(**numbers) in text

"""The Python of the pages that people copy from, run as it stands: the blocks of a page one after the other."""

import importlib.util
import re

import matplotlib.figure
import pytest

from tests.conftest import REPOSITORY

ROOT = REPOSITORY
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

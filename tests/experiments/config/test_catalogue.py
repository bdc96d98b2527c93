"""The catalogue: what `--list` prints and docs/rules.md says, from the docstrings."""

import pytest

from experiments import main
from experiments.config import catalogue
from experiments.tools import rules_page
from guidance import guides, rules
from tests.conftest import REPOSITORY
from tests.rules.test_battery import RULES

COMPLETE = sorted(set(RULES) & set(rules.__all__) - {"unguided", "mahiro_batch", "channels", "optimized_scale"})


def test_the_page_is_what_the_docstrings_say():
    page = (REPOSITORY / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page == rules_page.page(), "run: python -m experiments.tools.rules_page docs/rules.md"


@pytest.mark.parametrize("name", COMPLETE)
def test_every_rule_says_its_source_and_its_cost(name):
    text = getattr(rules, name).__doc__
    assert "Source:" in text
    assert any(words in text.lower() for words in ("evaluations", "costs as cfg")), "what does a step cost?"


@pytest.mark.parametrize("name", sorted(set(guides.__all__) - {"at_conditions", "both_branches", "cfg", "unguided"}))
def test_every_guide_is_listed(name):
    listed = {entry.name for entry in catalogue.entries("guides")}
    assert name in listed or name == "guided"


def test_the_list_needs_no_config(capsys):
    assert main.main(["--list"]) == 0
    text = capsys.readouterr().out
    for name in COMPLETE:
        assert f"  {name}(" in text
    assert "arXiv 2506.11039" in text

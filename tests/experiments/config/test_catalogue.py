"""The catalogue: what `--list` prints and docs/rules.md says, from the docstrings and the BibTeX of their sources."""

import re
import unicodedata

import pytest

from experiments import main
from experiments.config import catalogue, references
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
    assert "arXiv 2506.11039, Algorithm 1" in text and "pi/3). [jin2025angle]" in text


def test_every_publication_that_the_tree_names_has_its_entry_and_no_other_has_one():
    """So a rule, weight, guide or solver with a new source asks for an entry, and an entry without a reader goes."""
    files = [path for room in ("guidance", "experiments", "docs") for path in (REPOSITORY / room).rglob("*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md")]
    found = set(references.named("\n".join(texts)))
    assert found == references.references().keys()
    numbers = set(re.findall(r"\b[12]\d[01]\d\.\d{5}\b", "\n".join(texts)))
    assert numbers <= {name.split()[1] for name in found}, "a number of arXiv without the word before it"


def test_entries_are_whole_and_their_keys_say_what_they_are():
    entries = references.references().values()
    assert len({entry.key for entry in entries}) == len(entries) == references.FILE.read_text("utf-8").count("\n@") + 1
    for key, fields, _ in entries:
        assert {"author", "title", "year"} < fields.keys(), key
        surname = fields["author"].split(",")[0]
        words = [word for word in re.findall(r"\w+", fields["title"]) if word.lower() not in ("a", "an", "on", "the")]
        whole = unicodedata.normalize("NFKD", f"{surname}{fields['year']}{words[0]}").lower()
        assert key == re.sub(r"[^a-z0-9]", "", whole), key
        assert "eprint" not in fields or fields["year"] == "20" + fields["eprint"][:2], key
        assert "others" not in fields["author"] or "verified" in fields["note"], key


def test_a_source_is_cited_in_its_order_once_and_across_lines():
    text = "arXiv 2408.00760, arXiv\n  2403.17377; arXiv 2408.00760, doi 10.1016/0771-050X(80)90013-3; arXiv 0000.0000"
    keys = [entry.key for entry in references.cited(text)]
    assert keys == ["hong2024smoothed", "ahn2024self", "dormand1980family"]
    lines = references.FILE.read_text("utf-8").splitlines()
    for entry in references.references().values():
        first, last = entry.lines
        assert lines[first - 1].endswith(f"{{{entry.key},") and lines[last - 1] == "}"

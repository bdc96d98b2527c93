"""What the library offers, read from its docstrings: `--list` prints it, docs/rules.md is written from it."""

import pathlib
from typing import NamedTuple

from experiments.config import registry
from experiments.config.expressions import written
from experiments.config.references import FILE, Reference, cited
from experiments.config.registry import ROOT, Knob
from guidance import ranges

FAMILIES = {
    "rules": "How the predictions are combined; used as `guides.guided(rule, weight, null)`.",
    "weights": "How much and when: functions (s, t, cond) -> omega.",
    "guides": "Rules with their weights and branches, as samplers take them.",
    "sampling": "Grids of times and steps between them, for `sampling.sample`.",
    "truth.rewards": "What samples are tilted towards: functions (x0, cond) -> reward.",
}


class Entry(NamedTuple):
    """A public function of the library, as its page shows it."""

    name: str
    signature: str
    summary: str  # the first line of its docstring
    body: str  # the rest
    source: str  # what follows "Source:"; "" for helpers
    references: list[Reference]  # the publications that the source names
    knobs: str  # each with its range


def entries(package: str, root: pathlib.Path = ROOT) -> list[Entry]:
    """Returns the public functions of a package of guidance that name a source, in alphabetical order."""
    found = [_entry(*function) for function in sorted(registry.functions(package, root))]
    return [entry for entry in found if entry.source]


def _entry(name: str, parameters: tuple[Knob, ...], doc: str) -> Entry:
    summary, _, rest = doc.partition("\n")
    body, _, source = rest.strip().partition("Source:")
    if not source and "Source:" in summary:
        summary, _, source = summary.partition("Source:")
    shown = ", ".join(map(_parameter, parameters))
    ranged = [f"`{p.name}` {ranges.words(p.annotation)}" for p in parameters if p.annotation is not None]
    source = " ".join(source.split())
    return Entry(name, f"{name}({shown})", summary.strip(), body.strip(), source, cited(source), "; ".join(ranged))


def _parameter(knob: Knob) -> str:
    if knob.needed:
        return knob.name
    default = knob.default
    return f"{knob.name}={f'{default:.4g}' if isinstance(default, float) else written(default)}"


def listing() -> str:
    """Returns the text of --list: every name with its first line, its source and the BibTeX keys of the source."""
    lines = []
    for title, meaning in FAMILIES.items():
        lines += [f"guidance.{title}: {meaning}"]
        for entry in entries(title):
            keys = "".join(f" [{reference.key}]" for reference in entry.references)
            lines += [f"  {entry.signature}", f"      {entry.summary}", f"      {entry.source}{keys}"]
    lines += [f"[keys]: BibTeX entries in {FILE}"]
    return "\n".join(lines)

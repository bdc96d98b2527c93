"""Lists the functions of the library from their docstrings, for `--list` and docs/rules.md."""

import inspect
import pathlib
from typing import NamedTuple

from experiments.config import registry
from experiments.config.references import FILE, Reference, cited
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


def entries(package: str, root: pathlib.Path = registry.ROOT) -> list[Entry]:
    """Returns the public functions of a package of guidance whose docstrings name a source, in alphabetical order."""
    found = [_entry(name, stub) for name, stub in sorted(registry.functions(package, root).items())]
    return [entry for entry in found if entry.source]


def _entry(name: str, stub) -> Entry:
    parameters = inspect.signature(stub).parameters.values()
    text, _, source = (inspect.getdoc(stub) or "").partition("Source:")
    summary, _, body = text.partition("\n")
    ranged = [f"`{p.name}` {ranges.words(p.annotation)}" for p in parameters if ranges.of(p.annotation)[0] is not None]
    signature, source = registry.usage(name, parameters), " ".join(source.split())
    return Entry(name, signature, summary.strip(), body.strip(), source, cited(source), "; ".join(ranged))


def listing() -> str:
    """Returns the text of --list: the names that configs use, and every function with its summary and its source."""
    lines = []
    for package, meaning in FAMILIES.items():
        lines += [f"guidance.{package}: {meaning}"]
        for kind, shelf in registry.SHELVES.items():
            if shelf.package == package and registry.named(kind):
                lines += [f"  as a {kind} of a config: {', '.join(registry.named(kind))}"]
        for entry in entries(package):
            keys = "".join(f" [{reference.key}]" for reference in entry.references)
            lines += [f"  {entry.signature}", f"      {entry.summary}", f"      {entry.source}{keys}"]
    lines += [f"[keys]: BibTeX entries in {FILE}"]
    return "\n".join(lines)

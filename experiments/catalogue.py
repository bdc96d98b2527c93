"""What the library offers, read from its docstrings: `--list` prints it, docs/rules.md is written from it.

python -m experiments.main --list
python -m experiments.catalogue docs/rules.md
"""

import pathlib
import re
import sys
from typing import NamedTuple

from experiments import registry
from experiments.calls import written
from experiments.registry import ROOT, Knob
from guidance import ranges

FAMILIES = {
    "rules": "How the predictions are combined; used as `guides.guided(rule, weight, null)`.",
    "weights": "How much and when: functions (s, t, cond) -> omega.",
    "guides": "Rules with their weights and branches, as samplers take them.",
    "sampling": "Grids of times and steps between them, for `sampling.sample`.",
    "rewards": "What samples are tilted towards: functions (x0, cond) -> reward.",
}


class Entry(NamedTuple):
    """One public name: how to call it, its docstring in parts, its source ("" for helpers), its knobs with ranges."""

    name: str
    signature: str
    summary: str
    body: str
    source: str
    knobs: str


def entries(package: str, root: pathlib.Path = ROOT) -> list[Entry]:
    """The public functions of a package of guidance that name a source, in alphabetical order."""
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
    return Entry(name, f"{name}({shown})", summary.strip(), body.strip(), source, "; ".join(ranged))


def _parameter(knob: Knob) -> str:
    if knob.needed:
        return knob.name
    default = knob.default
    return f"{knob.name}={f'{default:.4g}' if isinstance(default, float) else written(default)}"


def listing() -> str:
    """The text of --list: every name with its first line and its source."""
    lines = []
    for title, meaning in FAMILIES.items():
        lines += [f"guidance.{title}: {meaning}"]
        for entry in entries(title):
            lines += [f"  {entry.signature}", f"      {entry.summary}", f"      {entry.source}"]
    return "\n".join(lines)


def page() -> str:
    """The text of docs/rules.md."""
    lines = [
        "# Rules and guides",
        "",
        "Written by `python -m experiments.catalogue docs/rules.md` from the docstrings; edit those. Everywhere",
        "omega = 0 is unguided unless the entry says otherwise, and `scale = 1 + omega`.",
        "Pictures: a class of two modes (contours, shares 0.6 and 0.4) and 400 samples of a model whose conditional",
        "branch is attenuated by half, which CFG with omega = 1 repairs exactly; the titles show the shares. Knobs:",
        "those of configs/leaderboard.py.",
        "",
        registry.words_of("rules/stacking"),
    ]
    for title in ("rules", "guides"):
        lines += ["", f"## guidance.{title}", "", FAMILIES[title]]
        for entry in entries(title):
            lines += ["", f"### {entry.name}", "", f"`{title}.{entry.signature}`", "", entry.summary, ""]
            lines += [entry.body, "", f"Source: {entry.source}"]
            lines += ["", f"Knobs: {entry.knobs}."] if entry.knobs else []
            if title == "rules" and entry.name in registry.named("rule"):
                lines += ["", f"![{entry.name} on two modes](gallery/{entry.name}.png)"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    from experiments.config import load
    from experiments.leaderboard import pictures  # matplotlib, which a listing does not need

    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.catalogue FILE.md")
    target = pathlib.Path(sys.argv[1])
    target.write_text(page(), encoding="utf-8")
    pictures.gallery(target.parent / "gallery", load("configs/leaderboard.py").rules)
    print(f"{target} and {target.parent / 'gallery'}")

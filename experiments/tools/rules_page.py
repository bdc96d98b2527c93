"""Writes docs/rules.md, and its pictures, from the docstrings of the library.

python -m experiments.tools.rules_page docs/rules.md
"""

import inspect
import pathlib
import re
import sys

from experiments.config import catalogue, references, registry
from experiments.leaderboard import pictures
from experiments.main import load
from guidance.rules import stacking

INTRODUCTION = """# Rules and guides

This page lists every rule and every guide of the library: its formula, its cost, its source and a picture.
It is written from the docstrings by `python -m experiments.tools.rules_page docs/rules.md`, so edit those.

*Convention.* omega = 0 is unguided unless an entry says otherwise, and `scale = 1 + omega`.

*Pictures.* The contours are the true law of a class with two modes, which hold 0.6 and 0.4 of its samples. The points
are 400 samples of a model whose conditional branch is attenuated by half. CFG with omega = 1 repairs this model
exactly. The titles show which share of the samples each mode got, and how many samples lie outside of the frame. The
knobs are those of `configs/leaderboard.py`.

*Citations.* The key behind "BibTeX" leads to the entry of each source in
[references.bib](../experiments/config/references.bib).
"""


def page() -> str:
    """Returns the text of docs/rules.md."""
    parts = [INTRODUCTION, inspect.getdoc(stacking)]
    for title in ("rules", "guides"):
        parts += [f"## guidance.{title}", catalogue.FAMILIES[title]]
        for entry in catalogue.entries(title):
            parts += [f"### {entry.name}", f"`{title}.{entry.signature}`", entry.summary, entry.body]
            parts += [_source(entry), f"Knobs: {entry.knobs}." if entry.knobs else ""]
            if title == "rules" and entry.name in registry.named("rule"):
                parts.append(f"![{entry.name} on two modes](gallery/{entry.name}.png)")
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)) + "\n"


def _source(entry: catalogue.Entry) -> str:
    """Returns the line of an entry's source, with a link to the lines of each BibTeX entry."""
    file = f"../experiments/config/{references.FILE.name}"
    keys = [f"[{cited.key}]({file}#L{cited.lines[0]}-L{cited.lines[1]})" for cited in entry.references]
    return f"Source: {entry.source}" + (f" BibTeX: {', '.join(keys)}." if keys else "")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.tools.rules_page FILE.md")
    target = pathlib.Path(sys.argv[1])
    target.write_text(page(), encoding="utf-8")
    pictures.gallery(target.parent / "gallery", load("configs/leaderboard.py").rules)
    print(f"{target} and {target.parent / 'gallery'}")

"""Writes docs/rules.md, and its pictures, from the docstrings of the library.

python -m experiments.tools.rules_page docs/rules.md
"""

import pathlib
import re
import sys

from experiments.config import catalogue, registry
from experiments.leaderboard import pictures
from experiments.main import load


def page() -> str:
    """The text of docs/rules.md."""
    lines = [
        "# Rules and guides",
        "",
        "Written by `python -m experiments.tools.rules_page docs/rules.md` from the docstrings; edit those.",
        "Everywhere omega = 0 is unguided unless the entry says otherwise, and `scale = 1 + omega`.",
        "Pictures: a class of two modes (contours, shares 0.6 and 0.4) and 400 samples of a model whose conditional",
        "branch is attenuated by half, which CFG with omega = 1 repairs exactly; the titles show the shares. Knobs:",
        "those of configs/leaderboard.py.",
        "",
        registry.words_of("rules.stacking"),
    ]
    for title in ("rules", "guides"):
        lines += ["", f"## guidance.{title}", "", catalogue.FAMILIES[title]]
        for entry in catalogue.entries(title):
            lines += ["", f"### {entry.name}", "", f"`{title}.{entry.signature}`", "", entry.summary, ""]
            lines += [entry.body, "", f"Source: {entry.source}"]
            lines += ["", f"Knobs: {entry.knobs}."] if entry.knobs else []
            if title == "rules" and entry.name in registry.named("rule"):
                lines += ["", f"![{entry.name} on two modes](gallery/{entry.name}.png)"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.tools.rules_page FILE.md")
    target = pathlib.Path(sys.argv[1])
    target.write_text(page(), encoding="utf-8")
    pictures.gallery(target.parent / "gallery", load("configs/leaderboard.py").rules)
    print(f"{target} and {target.parent / 'gallery'}")

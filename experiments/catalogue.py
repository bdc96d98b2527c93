"""What the library offers, read from its docstrings: `--list` prints it, docs/rules.md is written from it.

python -m experiments.main --list
python -m experiments.catalogue docs/rules.md
"""

import inspect
import pathlib
import re
import sys
from types import ModuleType
from typing import NamedTuple

from experiments import registry
from guidance import guides, rules, sampling, weights

FAMILIES = (
    ("rules", rules, "How the predictions are combined; used as `guides.guided(rule, weight, null)`."),
    ("weights", weights, "How much and when: functions (*, t, s, cond) -> omega."),
    ("guides", guides, "Rules with their weights and branches, as samplers take them."),
    ("sampling", sampling, "Grids of times and steps between them, for `sampling.sample`."),
)


class Entry(NamedTuple):
    """One public name: how to call it, its docstring in parts, and the source that it names ("" for helpers)."""

    name: str
    signature: str
    summary: str
    body: str
    source: str


def entries(module: ModuleType) -> list[Entry]:
    """The public functions of a package that name a source, in alphabetical order."""
    found = [_entry(name, getattr(module, name)) for name in sorted(module.__all__)]
    return [entry for entry in found if entry is not None and entry.source]


def _entry(name: str, value) -> Entry | None:
    if not inspect.isfunction(value):
        return None
    summary, _, rest = inspect.getdoc(value).partition("\n")
    body, _, source = rest.strip().partition("Source:")
    if not source and "Source:" in summary:
        summary, _, source = summary.partition("Source:")
    shown = ", ".join(_parameter(p) for p in inspect.signature(value).parameters.values())
    return Entry(name, f"{name}({shown})", summary.strip(), body.strip(), " ".join(source.split()))


def _parameter(parameter: inspect.Parameter) -> str:
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"*{parameter.name}"
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    default = parameter.default
    return f"{parameter.name}={f'{default:.4g}' if isinstance(default, float) else default}"


def listing() -> str:
    """The text of --list: every name with its first line and its source."""
    lines = []
    for title, module, meaning in FAMILIES:
        lines += [f"guidance.{title}: {meaning}"]
        for entry in entries(module):
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
        "branch is attenuated by half, which CFG with omega = 1 repairs exactly; the titles show the shares.",
        "",
        inspect.getdoc(sys.modules["guidance.rules.stacking"]),
    ]
    for title, module, meaning in FAMILIES[0], FAMILIES[2]:
        lines += ["", f"## guidance.{title}", "", meaning]
        for entry in entries(module):
            lines += ["", f"### {entry.name}", "", f"`{title}.{entry.signature}`", "", entry.summary, ""]
            lines += [entry.body, "", f"Source: {entry.source}"]
            if title == "rules" and entry.name in registry.named("rule"):
                lines += ["", f"![{entry.name} on two modes](gallery/{entry.name}.png)"]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    from experiments.leaderboard import pictures  # matplotlib, which a listing does not need

    if len(sys.argv) != 2:
        sys.exit("usage: python -m experiments.catalogue FILE.md")
    target = pathlib.Path(sys.argv[1])
    target.write_text(page(), encoding="utf-8")
    pictures.gallery(target.parent / "gallery")
    print(f"{target} and {target.parent / 'gallery'}")

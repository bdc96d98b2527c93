"""What the leaderboard leaves: the page, the CSV and the pictures, all from the rows of results.json."""

import csv
import io

import numpy as np

from experiments.leaderboard import images, pictures
from experiments.runtime import records

LEAD = "energy_distance"
COMMAND = "python -m experiments.main --config=configs/leaderboard.py --workdir=runs/leaderboard"
INTRODUCTION = """## Mixtures

Unbiased energy distance to the true law per condition, times 1000 (lower is better; it may be negative), mean over
{seeds} seeds, and its standard error. Each row is tuned for each column: its knob is the best of {budget} on {tuning}
other seeds; learned weights are trained anew for each seed and never see the samples that are measured. All rows of a
table have the same number of network evaluations per sample, so that unguided sampling takes twice the steps. Every
column is one mixture with one known model error (`experiments/leaderboard/problems.py`). Bold: within two standard
errors of the best of its column. The CSV adds mode shares, widths, norms and likelihoods.
"""


def write(workdir, rows, config) -> None:
    """Writes leaderboard.md, leaderboard.csv and the pictures into the folder."""
    records.write_atomically(workdir / "leaderboard.csv", as_csv(rows))
    mixtures = [row for row in rows if row.problem not in images.PROBLEMS]
    captions = pictures.draw(workdir, mixtures, config) if mixtures else []
    if "mnist" in config.columns:
        captions.append(images.draw(workdir, config))
    records.write_atomically(workdir / "leaderboard.md", as_page(rows, config, captions))


def as_csv(rows) -> str:
    """One line for each problem, NFE and method, a column for each metric and its standard error."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    lines = {}
    for row in rows:
        line = lines.setdefault((row.problem, row.nfe, row.method), {"weight": row.weight, "seeds": row.seeds})
        line |= {row.metric: row.value, f"{row.metric}_se": row.standard_error}
    columns = ["weight", "seeds", *(name for metric in metrics for name in (metric, f"{metric}_se"))]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["problem", "nfe", "method", *columns])
    for (problem, nfe, method), line in lines.items():
        writer.writerow([problem, f"{nfe:g}", method, *(_short(line.get(name)) for name in columns)])
    return text.getvalue()


def standings(rows, nfe: float) -> list[tuple[str, float, dict]]:
    """(method, mean rank over the problems, {problem: row}) at one NFE, best first; true data are not ranked."""
    cells = {}
    for row in rows:
        if row.metric == LEAD and row.nfe == nfe:
            cells.setdefault(row.method, {})[row.problem] = row
    problems = list(next(iter(cells.values())))
    values = np.array([[records.comparable(cells[method][p]) for p in problems] for method in cells])
    ranks = 1 + (values[None] < values[:, None]).sum(1) + ((values[None] == values[:, None]).sum(1) - 1) / 2
    order = np.argsort(ranks.mean(1), kind="stable")
    methods = list(cells)
    return [(methods[i], float(ranks[i].mean()), cells[methods[i]]) for i in order]


def as_page(rows, config, captions) -> str:
    """The whole page; `captions` are (file name, caption) pairs of its pictures."""
    mixtures = [row for row in rows if row.problem not in images.PROBLEMS]
    lines = ["# Leaderboard", "", f"Written by `{COMMAND}`. All numbers: `leaderboard.csv`.", ""]
    lines += [] if not mixtures else _mixtures(mixtures, config)
    for problem, introduction in images.PROBLEMS.items():
        own = [row for row in rows if row.problem == problem]
        lines += [] if not own else [*introduction.format(seeds=config.seeds).splitlines(), "", *_images(own), ""]
    lines += ["## Pictures", ""] if captions else []
    lines += [line for name, caption in captions for line in (f"![{caption}]({name})", "", caption, "")]
    return "\n".join(lines).rstrip() + "\n"


def _mixtures(rows, config) -> list[str]:
    """One table for each NFE, a column for each mixture."""
    floors = {row.problem: row for row in rows if row.metric == LEAD and row.method == "true data"}
    ranked = [row for row in rows if row.method != "true data"]
    numbers = {"seeds": config.seeds, "budget": len(config.omegas), "tuning": config.tuning_seeds}
    lines = INTRODUCTION.format(**numbers).splitlines()
    for nfe in sorted({row.nfe for row in ranked}):
        table = standings(ranked, nfe)
        problems = list(table[0][2])
        lines += ["", f"### NFE {nfe:g}", "", "| method | mean rank | " + " | ".join(problems) + " |"]
        lines += ["|---" * (len(problems) + 2) + "|"]
        best = {p: min((cells[p] for _, _, cells in table), key=records.comparable) for p in problems}
        for method, rank, cells in table:
            shown = [_cell(cells[p], best[p], 1000, 1) for p in problems]
            lines.append(f"| {method} | {rank:.1f} | " + " | ".join(shown) + " |")
        lines.append("| *true data* | | " + " | ".join(_cell(floors[p], None, 1000, 1) for p in problems) + " |")
    return [*lines, ""]


def _images(rows) -> list[str]:
    """One table, a group of columns for each NFE, best first at the highest."""
    cells = {(row.method, row.nfe, row.metric): row for row in rows}
    nfes = sorted({row.nfe for row in rows if row.method != "true data"})
    metrics = list(dict.fromkeys(row.metric for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows if row.method != "true data"))
    methods.sort(key=lambda method: records.comparable(cells[method, nfes[-1], metrics[0]]))
    lines = ["| method | " + " | ".join(f"{_words(m)}, NFE {nfe:g}" for nfe in nfes for m in metrics) + " |"]
    lines += ["|---" * (1 + len(nfes) * len(metrics)) + "|"]
    for method in methods:
        shown = []
        for nfe in nfes:
            leader = min((cells[m, nfe, metrics[0]] for m in methods), key=records.comparable)
            shown += [_cell(cells[method, nfe, m], leader if m == metrics[0] else None, 1, 3) for m in metrics]
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    if ("true data", 0.0, metrics[0]) in cells:
        shown = [_cell(cells["true data", 0.0, m], None, 1, 3) for _ in nfes for m in metrics]
        lines.append("| *true data* | " + " | ".join(shown) + " |")
    return lines


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _cell(row, best, unit: float, digits: int) -> str:
    """Mean and standard error times `unit`; bold within two standard errors of the best."""
    if row.value is None:
        return "not finite"
    error = row.standard_error or 0.0
    text = f"{unit * row.value:.{digits}f} ± {unit * error:.{digits}f}"
    close = best is not None and row.value <= records.comparable(best) + 2 * np.hypot(
        error, best.standard_error or 0.0
    )
    return f"**{text}**" if close else text


def _short(value):
    return f"{value:.6g}" if isinstance(value, float) else value

"""What the leaderboard leaves, from the rows of results.json: page, tables as LaTeX, CSV and pictures."""

import numpy as np

from experiments.leaderboard import images, pictures
from experiments.runtime.writing import write_whole
from guidance.tables import Table, comma_separated, comparable, number

LEAD, TRUTH = "energy_distance", "true data"
COMMAND = "python -m experiments.main --config=configs/leaderboard.py --workdir=runs/leaderboard"
INTRODUCTION = """## Mixtures

A number is the unbiased energy distance to the true law for each condition, times 1000. It is a mean over {seeds}
seeds with its standard error. Lower is better, and it may be negative. Every column is one mixture with one known
model error (`experiments/leaderboard/problems.py`). All rows of a table have the same number of network evaluations
per sample (NFE), so unguided sampling takes twice the steps.

Each row is tuned for each column: its knob is the best of {budget} on {tuning} other seeds. Learned weights are
trained anew for each seed. They never see the samples that are measured.

Bold means within two standard errors of the best of its column. The CSV adds mode shares, widths, norms and
likelihoods. A row is named by its call. The rules apg, magnitude_aware and gap_normalised compete with other knobs
than the library's; `configs/leaderboard.py` spells them.
"""


def write(workdir, rows, config) -> None:
    """Writes leaderboard.md, each of its tables as .tex, leaderboard.csv and the pictures into the folder."""
    write_whole(workdir / "leaderboard.csv", as_csv(rows))
    for name, table in tables(rows).items():
        write_whole(workdir / f"leaderboard_{name.replace(', ', '_')}.tex", table.latex())
    mixtures = [row for row in rows if row.problem not in images.PROBLEMS]
    captions = pictures.draw(workdir, mixtures, config) if mixtures else []
    if "mnist" in config.columns:
        captions.append(images.draw(workdir, config))
    write_whole(workdir / "leaderboard.md", as_page(rows, config, captions))


def as_csv(rows) -> str:
    """Returns one line for each problem, NFE and method, a column for each metric and its standard error."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    lines = {}
    for row in rows:
        line = lines.setdefault((row.problem, row.nfe, row.method), {"weight": row.weight, "seeds": row.seeds})
        line |= {row.metric: row.value, f"{row.metric}_se": row.standard_error}
    columns = ["weight", "seeds", *(name for metric in metrics for name in (metric, f"{metric}_se"))]
    cells = ([*key, *map(line.get, columns)] for key, line in lines.items())
    return comma_separated(["problem", "nfe", "method", *columns], cells)


def standings(rows, nfe: float) -> list[tuple[str, float, dict]]:
    """Returns (method, mean rank over the problems, {problem: row}) at one NFE, best first."""
    cells = {}
    for row in rows:
        if row.metric == LEAD and row.nfe == nfe:
            cells.setdefault(row.method, {})[row.problem] = row
    problems = list(next(iter(cells.values())))
    values = np.array([[comparable(cells[method][p]) for p in problems] for method in cells])
    ranks = 1 + (values[None] < values[:, None]).sum(1) + ((values[None] == values[:, None]).sum(1) - 1) / 2
    order = np.argsort(ranks.mean(1), kind="stable")
    methods = list(cells)
    return [(methods[i], float(ranks[i].mean()), cells[methods[i]]) for i in order]


def tables(rows) -> dict[str, Table]:
    """Returns {name: table}: one table of all mixtures for each NFE, and one for each problem of images."""
    mixtures = [row for row in rows if row.problem not in images.PROBLEMS]
    found = {f"nfe_{nfe:g}": _mixtures(mixtures, nfe) for nfe in _nfes(mixtures)}
    by_problem = {problem: [row for row in rows if row.problem == problem] for problem in images.PROBLEMS}
    return found | {problem: _images(some) for problem, some in by_problem.items() if some}


def as_page(rows, config, captions) -> str:
    """Returns the whole page; `captions` are (file name, caption) pairs of its pictures."""
    found = tables(rows)
    parts = ["# Leaderboard", f"Written by `{COMMAND}`. All numbers: `leaderboard.csv`. Each table as LaTeX: `*.tex`."]
    numbers = {"seeds": config.seeds, "budget": len(config.omegas), "tuning": config.tuning_seeds}
    nfes = _nfes([row for row in rows if row.problem not in images.PROBLEMS])
    parts += [INTRODUCTION.format(**numbers).strip()] if nfes else []
    for nfe in nfes:
        parts += [f"### NFE {nfe:g}", found[f"nfe_{nfe:g}"].markdown()]
    for problem, introduction in images.PROBLEMS.items():
        if problem in found:
            parts += [introduction.format(seeds=config.seeds).strip(), found[problem].markdown()]
    parts += ["## Pictures"] if captions else []
    parts += [part for name, caption in captions for part in (f"![{caption}]({name})", caption)]
    return "\n\n".join(parts) + "\n"


def _nfes(rows) -> list[float]:
    return sorted({row.nfe for row in rows if row.method != TRUTH})


def _mixtures(rows, nfe: float) -> Table:
    """Returns the table of one NFE, best mean rank first, a column for each mixture; values times 1000."""
    floors = {row.problem: row for row in rows if row.metric == LEAD and row.method == TRUTH}
    ranked = standings([row for row in rows if row.method != TRUTH], nfe)
    problems = list(ranked[0][2])
    best = {p: min((cells[p] for _, _, cells in ranked), key=comparable) for p in problems}
    body = [[method, f"{rank:.1f}", *(_cell(cells[p], 1000) for p in problems)] for method, rank, cells in ranked]
    body.append([TRUTH, "", *(_cell(floors[p], 1000) for p in problems)])
    bold = {
        (i, j + 2) for i, (*_, cells) in enumerate(ranked) for j, p in enumerate(problems) if _close(cells[p], best[p])
    }
    caption = f"energy distance times 1000 at NFE {nfe:g}, mean and standard error"
    return Table(caption, ["method", "mean rank", *problems], body, frozenset(bold))


def _images(rows) -> Table:
    """Returns the table of one problem, a group of columns for each NFE, best first at the highest."""
    cells = {(row.method, row.nfe, row.metric): row for row in rows}
    nfes = _nfes(rows)
    metrics = list(dict.fromkeys(row.metric for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows if row.method != TRUTH))
    methods.sort(key=lambda method: comparable(cells[method, nfes[-1], metrics[0]]))
    best = {nfe: min((cells[m, nfe, metrics[0]] for m in methods), key=comparable) for nfe in nfes}
    columns = [(nfe, metric) for nfe in nfes for metric in metrics]
    body = [[method, *(_cell(cells[method, *column]) for column in columns)] for method in methods]
    if (TRUTH, 0.0, metrics[0]) in cells:
        body.append([TRUTH, *(_cell(cells[TRUTH, 0.0, metric]) for _, metric in columns)])
    bold = {
        (i, j + 1)
        for i, method in enumerate(methods)
        for j, (nfe, metric) in enumerate(columns)
        if metric == metrics[0] and _close(cells[method, nfe, metric], best[nfe])
    }
    head = ["method", *(f"{metric.replace('_', ' ')}, NFE {nfe:g}" for nfe, metric in columns)]
    return Table(f"{rows[0].problem}, mean and standard error", head, body, frozenset(bold))


def _cell(row, unit: float = 1) -> str:
    """Returns mean and standard error times `unit`."""
    return number(row.value and unit * row.value, row.standard_error and unit * row.standard_error)


def _close(row, best) -> bool:
    """Returns whether a value is within two standard errors (of the difference) of the best."""
    if row.value is None:
        return False
    return row.value <= comparable(best) + 2 * np.hypot(row.standard_error or 0, best.standard_error or 0)

"""Job `report`: pictures, tables and one self-contained report.html from what the other jobs left in the folder."""

import base64
import functools
import html
from collections.abc import Callable, Set

from experiments.config import ConfigError
from experiments.config.loading import flat
from experiments.jobs import evaluate, figures, learn, selection, train
from experiments.problems.interface import require
from experiments.runtime import launch, progress, results
from experiments.runtime.ledger import Ledger
from experiments.runtime.results import DIFFERENCE, IN_FULL, LEARNED, NONE, SHARE, TUNED
from experiments.runtime.writing import write_whole
from guidance import sampling
from guidance.tables import Table, comparable, evaluations, number

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; } img { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9em; }
td, th { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
td:nth-child(1), th:nth-child(1), td:nth-child(2), th:nth-child(2) { text-align: left; }
tr.learned { background: #eef6ee; } caption { text-align: left; font-weight: 600; padding: 0.6em 0; }
pre { background: #f5f5f5; padding: 0.8em; overflow-x: auto; font-size: 0.85em; }
"""


def run(problem, config, workdir, bases: list | None = None, learned: dict[str, list] | None = None) -> None:
    """Writes report.html, its tables as LaTeX, and its pictures as PNG and CSV; prints the paths.

    bases, learned: what `train.run` and `learn.run` return, where they have run.
    """
    require(problem, config.job, "data", "instrument")
    try:
        rows = results.read(workdir / "results.json")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{workdir / 'results.json'} cannot be read ({error}); allowed: job=evaluate first"
        ) from None
    shown = _draw(problem, config, workdir, rows, bases, learned) if config.figures else {}
    if not launch.primary():
        return
    tables = _tables(problem, config, rows)
    for name, (table, _) in tables.items():
        write_whole(workdir / f"{name}.tex", table.latex())
    for name, (picture, *_) in shown.items():
        with progress.waiting(f"writing {name}.png"):
            picture.save(workdir / f"{name}.png")
        print(workdir / f"{name}.png")
    report = workdir / "report.html"
    write_whole(report, _page(problem, config, workdir, list(tables.values()), shown))
    print(report)


def _draw(problem, config, workdir, rows, bases, learned) -> dict:
    """Returns {file name: (picture, title, caption)}."""
    bases = bases or train.run(problem, config, workdir)
    learned = learned or learn.run(problem, config, workdir, bases)
    ledger = Ledger(workdir / "evaluations.jsonl")
    steps = config.eval.steps[len(config.eval.steps) // 2]
    detailed = _detailed(ledger, config.seed, steps)
    samples = {}
    # one batch is enough to look at
    count = min(config.eval.batch or config.eval.samples, config.eval.samples)
    samplers = evaluate.Samplers(problem, config, bases, workdir, count)
    noise_key, _ = evaluate.keys(config.seed)
    for label, entry in detailed.items():
        with progress.waiting(f"samples of {label} for the figures"):
            samples[label] = samplers(0, entry["rule"], entry["table"], noise_key)[0]
    tasks = {task.name: task for task in learn.tasks(problem, config)}
    weights = {name: (tasks[name].weight(learned[name][0]), tasks[name].steps) for name in learned}
    grid = sampling.uniform_grid(steps)
    shown = _selection(problem, config, workdir) | {
        "omega": (
            functools.partial(figures.omega_over_time, problem, grid, detailed),
            f"Guidance weights over the {steps} steps of the sampler",
            f"Seed {config.seed}. Every weight holds over the whole step at whose start it is evaluated. Coloured: "
            "learned weights, a line for each condition. Grey: the best hand-tuned weights. omega = 0 is unguided, "
            "scale = 1 + omega.",
        ),
        "samples": (
            functools.partial(figures.samples, problem, samples),
            f"Samples after {steps} steps, and true data",
            "All methods start from the same noise. Every panel has the same number of samples of each condition.",
        ),
        "sweep": (
            functools.partial(figures.sweep, problem, rows),
            "Constant guidance weights against learned ones",
            "Mean and standard error over seeds. Lines across: learned weights, the best interval (dashed), and true "
            "data against true data (dotted).",
        ),
        "quality_nfe": (
            functools.partial(figures.quality_against_nfe, problem, rows),
            "Quality against cost",
            "Mean and standard error over seeds, against network evaluations per sample. Solid: learned weights.",
        ),
    }
    if weights:
        shown["omega_map"] = (
            functools.partial(figures.omega_map, problem, weights),
            "Learned weights of every step from t down to s",
            "Mean over conditions. Rollout weights are trained on the gaps of their own grid only (dashed line): "
            "smaller gaps get the weight of that gap, larger ones are extrapolated.",
        )
    return {name: (_drawn(name, draw), *words) for name, (draw, *words) in shown.items()}


def _drawn(name: str, draw: Callable):
    with progress.waiting(f"drawing {name}.png"):
        return draw()


def _selection(problem, config, workdir) -> dict:
    """Returns what draws how checkpoints of the learned weights were chosen, if any were, with its words."""
    if not config.learn.select_every:
        return {}
    scores = list(Ledger(workdir / "selection.jsonl", selection.FIELDS).done.values())
    caption = (
        f"Score of every checkpoint of the learned weights on {scores[0]['samples']} samples, with noise that the "
        "evaluation does not see. The lowest, marked, is the one that is evaluated."
    )
    return {"selection": (functools.partial(figures.selection, problem, scores), "Choice of the checkpoints", caption)}


def _detailed(ledger, seed: int, steps: int) -> dict:
    """Returns {label: entry with its table} of the fully measured weights of one seed, in the order of evaluation."""
    wanted = {"seed": seed, "steps": steps}
    whole = [e for e in ledger.done.values() if {"label", "rule", "table", "metrics"} <= e.keys()]
    entries = [e for e in whole if wanted.items() <= e["key"].items()]
    return {entry["label"]: entry for entry in entries}  # of a run that has grown, the last is the best


def _page(problem, config, workdir, tables, pictures) -> str:
    parts = [
        f"<h1>Learned guidance: {html.escape(problem.name)}</h1>",
        "<p>Guided = D<sub>c</sub> + omega (D<sub>c</sub> - D<sub>u</sub>): omega = 0 is unguided, scale = 1 + omega. "
        f"Mean and standard error over {config.seeds} seeds, each with its own model, weights, noise and reference. "
        "Hand-tuned weights are the best of their grid on the very numbers shown, per seed. "
        "Floor: what true data score against true data. NFE: network evaluations per sample. "
        "The tables lie beside this page as LaTeX: table_*.tex.</p>",
    ]
    parts += [_as_html(table, marked) for table, marked in tables]
    for name, (_, title, caption) in pictures.items():
        image = base64.b64encode((workdir / f"{name}.png").read_bytes()).decode()
        parts.append(
            f"<h2>{html.escape(title)}</h2><img alt='{html.escape(title)}' src='data:image/png;base64,{image}'>"
            f"<p>{html.escape(caption)} Numbers: {name}.csv.</p>"
        )
    settings = "\n".join(f"{name} = {value}" for name, value in sorted(flat(config).items()))
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(settings)}</pre>")
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(problem.name)}</title>"
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _as_html(table: Table, marked: Set[int]) -> str:
    """Returns the table as HTML, with a colour behind the marked lines."""

    def line(cells, kind, style=""):
        return f"<tr{style}>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    body = [line(cells, "td", " class='learned'" if i in marked else "") for i, cells in enumerate(table.body)]
    return f"<table><caption>{html.escape(table.caption)}</caption>{line(table.head, 'th')}{''.join(body)}</table>"


def _tables(problem, config, rows) -> dict[str, tuple[Table, Set[int]]]:
    """Returns {file name: (table, its lines of learned weights)}: one for each leading metric, one for the others."""
    found = {f"table_{metric}": _main(config, rows, metric) for metric in problem.instrument.tuned}
    detail = [row for row in rows if row.kind == IN_FULL]
    return found | ({"table_details": _details(detail)} if detail else {})


def _main(config, rows, metric) -> tuple[Table, Set[int]]:
    """Returns the main table: each method at each number of steps, best first, and its gaps to hand-tuned ones."""
    differences = [r for r in rows if r.kind == DIFFERENCE and r.metric == f"{metric}_difference"]
    gaps = {(r.settings["learned"], r.settings["minus"], r.steps): r for r in differences}
    closed = {(r.method, r.steps): r for r in rows if r.kind == SHARE and r.metric == f"{metric}_gap_closed"}
    main = [r for r in rows if r.metric == metric and r.kind in (NONE, TUNED, LEARNED)]
    main.sort(key=lambda r: (r.steps, comparable(r)))
    body = []
    for row in main:
        gap = [gaps.get((row.method, family, row.steps)) for family in ("constant", "interval")]
        cells = [row.method, row.weight if len(row.weight) < 60 else "one for each seed", str(row.steps)]
        cells += [evaluations(row.nfe), _shown(row), _floor(row.floor), *map(_shown, gap)]
        body.append([*cells, _percent(closed.get((row.method, row.steps)))])
    head = (
        "method", "weight", "steps", "NFE", words(metric), "floor", "minus best constant", "minus best interval",
        "gap closed",
    )  # fmt: skip
    caption = f"{words(metric)} of {config.eval.samples} samples, lower is better"
    return Table(caption, head, body), {i for i, row in enumerate(main) if row.kind == LEARNED}


def _shown(row) -> str:
    return "" if row is None else number(row.value, row.standard_error)


def _percent(row) -> str:
    if row is None or row.value is None:
        return "" if row is None else number(None)
    return f"{number(100 * row.value, row.standard_error and 100 * row.standard_error)} %"


def _floor(value) -> str:
    """Returns a floor for people; not every number has one."""
    return "" if value is None else number(value)


def _details(rows) -> tuple[Table, Set[int]]:
    """Returns the table of everything else that was measured, at the weights tuned on the leading metric."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    floors = {row.metric: row.floor for row in rows}
    lines: dict[tuple, dict[str, str]] = {}
    for row in rows:
        lines.setdefault((row.method, str(row.steps)), {})[row.metric] = _shown(row)
    body = [[*key, *(cells.get(metric, "") for metric in metrics)] for key, cells in lines.items()]
    body.append(["true data", "", *(_floor(floors[metric]) for metric in metrics)])
    return Table("Everything else", ("method", "steps", *map(words, metrics)), body), set()


def words(metric: str) -> str:
    """Returns the name of a metric as people write it."""
    return metric.replace("_", " ")

"""Job `report`: pictures and one self-contained report.html from what the other jobs left in the folder."""

import base64
import html

from experiments.config import ConfigError
from experiments.jobs import evaluate, figures, learn, selection, train
from experiments.problems.interface import require
from experiments.runtime import launch, records
from experiments.runtime.records import DIFFERENCE, IN_FULL, LEARNED, NONE, SHARE, TUNED
from guidance import sampling

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; } img { max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9em; }
td, th { padding: 0.2em 0.8em; text-align: right; border-bottom: 1px solid #ddd; }
td:nth-child(1), th:nth-child(1), td:nth-child(2), th:nth-child(2) { text-align: left; }
tr.learned { background: #eef6ee; } caption { text-align: left; font-weight: 600; padding: 0.6em 0; }
pre { background: #f5f5f5; padding: 0.8em; overflow-x: auto; font-size: 0.85em; }
"""


def run(problem, config, workdir) -> None:
    """Writes the pictures (PNG) and report.html, and prints their paths."""
    require(problem, config.job, "data", "instrument")
    try:
        rows = records.read_results(workdir / "results.json")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{workdir / 'results.json'} cannot be read ({error}); allowed: job=evaluate first"
        ) from None
    pictures = _draw(problem, config, workdir, rows) if config.figures else {}
    if not launch.primary():
        return
    paths = []
    for name, (figure, caption) in pictures.items():
        path = workdir / f"{name}.png"
        figure.savefig(path, dpi=130, bbox_inches="tight")
        paths.append((path, caption))
    report = workdir / "report.html"
    records.write_atomically(report, _page(problem, config, rows, paths))
    for path in [path for path, _ in paths] + [report]:
        print(path)


def _draw(problem, config, workdir, rows) -> dict:
    """{file name: (figure, caption)}."""
    learned, bases = learn.run(problem, config, workdir), train.run(problem, config, workdir)
    ledger = records.Ledger(workdir / "evaluations.jsonl")
    steps = config.eval.steps[len(config.eval.steps) // 2]
    detailed = _detailed(ledger, config.seed, steps)
    samples = {}
    # one batch is enough to look at
    shown = min(config.eval.batch or config.eval.samples, config.eval.samples)
    samplers = evaluate.Samplers(problem, config, bases, workdir, shown)
    noise_key, _ = evaluate.keys(config.seed)
    for label, entry in detailed.items():
        samples[label] = samplers(0, entry["rule"], entry["table"], noise_key)[0]
    tasks = {task.name: task for task in learn.tasks(problem, config)}
    weights = {name: (tasks[name].weight(learned[name][0]), tasks[name].steps) for name in learned}
    grid = sampling.uniform_grid(steps)
    return _selection(problem, config, workdir) | {
        "omega": (
            figures.omega_over_time(problem, grid, detailed),
            f"Weights along the {steps}-step sampler, seed {config.seed}: learned, one line for each condition, "
            "beside the best hand-tuned ones. omega = 0 is unguided, scale = 1 + omega.",
        ),
        "omega_map": (
            figures.omega_map(problem, weights),
            "Learned omega(s, t) for a step from t down to s, mean over conditions. Rollout weights are trained on "
            "the gaps of their own grid only (dashed line): smaller gaps get the weight of that gap, larger ones are "
            "extrapolated.",
        ),
        "samples": (
            figures.samples(problem, samples),
            f"Samples at {steps} steps from the same noise, one colour for each condition, and true data.",
        ),
        "sweep": (
            figures.sweep(problem, rows),
            "Mismatch of the samples against the constant weight, mean and standard error over seeds; learned weights "
            "and the best interval as lines, true data against true data dotted.",
        ),
        "quality_nfe": (
            figures.quality_against_nfe(problem, rows),
            "Quality against network evaluations per sample.",
        ),
    }


def _selection(problem, config, workdir) -> dict:
    """The picture of how the checkpoints of the learned weights were chosen, where they were."""
    if not config.learn.select_every:
        return {}
    scores = list(records.Ledger(workdir / "selection.jsonl", selection.FIELDS).done.values())
    caption = (
        f"Score of the checkpoints of each learned weight on {scores[0]['samples']} samples, with noise that the "
        "evaluation does not see; the lowest, marked, is the one that is evaluated."
    )
    return {"selection": (figures.selection(problem, scores), caption)}


def _detailed(ledger, seed: int, steps: int) -> dict:
    """{label: entry with its table} of the fully measured weights of one seed, in the order of evaluation."""
    wanted = {"seed": seed, "steps": steps}
    whole = [e for e in ledger.done.values() if {"label", "rule", "table", "metrics"} <= e.keys()]
    entries = [e for e in whole if wanted.items() <= e["key"].items()]
    return {entry["label"]: entry for entry in entries}  # of a run that has grown, the last is the best


def _page(problem, config, rows, pictures) -> str:
    parts = [
        f"<h1>Learned guidance: {html.escape(problem.name)}</h1>",
        "<p>Guided = D<sub>c</sub> + omega (D<sub>c</sub> - D<sub>u</sub>): omega = 0 is unguided, scale = 1 + omega. "
        f"Mean and standard error over {config.seeds} seeds, each with its own model, weights, noise and reference. "
        "Hand-tuned weights are the best of their grid on the very numbers shown, per seed. "
        "Floor: what true data score against true data.</p>",
    ]
    parts += [_table(config, rows, metric) for metric in problem.instrument.tuned]
    parts.append(_details(problem, rows))
    for path, caption in pictures:
        image = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f"<h2>{path.stem}</h2><img alt='{path.stem}' src='data:image/png;base64,{image}'><p>{caption}</p>"
        )
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(str(config))}</pre>")
    body = "\n".join(parts)
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(problem.name)}</title>"
        f"<style>{STYLE}</style><body>{body}</body></html>\n"
    )


def _table(config, rows, metric) -> str:
    """The main table: each method at each number of steps, best first, and its paired gap to the hand-tuned."""
    differences = [r for r in rows if r.kind == DIFFERENCE and r.metric == f"{metric}_difference"]
    gaps = {(r.settings["learned"], r.settings["minus"], r.steps): r for r in differences}
    closed = {(r.method, r.steps): r for r in rows if r.kind == SHARE and r.metric == f"{metric}_gap_closed"}
    body = []
    main = [r for r in rows if r.metric == metric and r.kind in (NONE, TUNED, LEARNED)]
    for row in sorted(main, key=lambda r: (r.steps, records.comparable(r))):
        cells = [row.method, row.weight if len(row.weight) < 60 else "one for each seed", str(row.steps)]
        cells += [f"{row.nfe:g}", figures.number(row.value, row.standard_error), _floor(row.floor)]
        for family in ("constant", "interval"):
            gap = gaps.get((row.method, family, row.steps))
            cells.append(figures.number(gap.value, gap.standard_error) if gap else "")
        share = closed.get((row.method, row.steps))
        cells.append(("not finite" if share.value is None else f"{100 * share.value:.1f} %") if share else "")
        style = " class='learned'" if row.kind == LEARNED else ""
        body.append(f"<tr{style}>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    header = (
        "method",
        "weight",
        "steps",
        "NFE",
        metric,
        "floor",
        "minus best constant",
        "minus best interval",
        "gap closed",
    )
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    caption = f"{metric} of {config.eval.samples} samples, lower is better"
    return f"<table><caption>{caption}</caption><tr>{head}</tr>{''.join(body)}</table>"


def _floor(value) -> str:
    """A floor for people; not every number has one."""
    return "" if value is None else figures.number(value, None)


def _details(problem, rows) -> str:
    """Everything else that was measured, at the weights tuned on the leading metric."""
    detail = [r for r in rows if r.kind == IN_FULL]
    if not detail:
        return ""
    names = list(dict.fromkeys(r.metric for r in detail))
    floors = {r.metric: r.floor for r in detail}
    lines = {}
    for row in detail:
        lines.setdefault((row.steps, row.method), {})[row.metric] = figures.number(row.value, row.standard_error)
    body = "".join(
        f"<tr><td>{html.escape(method)}</td><td>{steps} steps</td>"
        + "".join(f"<td>{html.escape(cells.get(n, ''))}</td>" for n in names)
        + "</tr>"
        for (steps, method), cells in lines.items()
    )
    floor = "<tr><td>true data</td><td></td>" + "".join(f"<td>{_floor(floors[n])}</td>" for n in names)
    head = "<th>method</th><th></th>" + "".join(f"<th>{html.escape(n)}</th>" for n in names)
    return f"<table><caption>Everything else</caption><tr>{head}</tr>{body}{floor}</tr></table>"

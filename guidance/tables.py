"""What was measured, in rows: their means and errors, their table for people, and their picture.

`guidance.compare` makes such rows, and so do the jobs. Imports no JAX, and matplotlib only where something is drawn.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One number and what it belongs to.

    problem         what was sampled, as in "mixture under"; may be empty
    method          how the weight was found: unguided, constant, interval, clamp_linear, rollout, ...
    weight          the weight in words, as in "omega = 0.4 on t in (0.2, 0.8]"; may be empty
    settings        its knobs, {"omega": 0.4, "lo": 0.2, "hi": 0.8}; {} for learned weights
    sampler         step and grid
    steps, nfe      sampler steps; network evaluations per sample, all branches together
    seeds           number of independent repetitions behind the value
    metric          what was measured, as in "energy_distance"
    value           mean over the seeds; None where it is not finite
    standard_error  of that mean; None for a single seed
    floor           what true data score against true data; None where there is no such number
    kind            what the row is about, in the words of who made it; None where nothing is said
    """

    problem: str
    method: str
    weight: str
    settings: dict[str, Any]
    sampler: str
    steps: int
    nfe: float
    seeds: int
    metric: str
    value: float | None
    standard_error: float | None = None
    floor: float | None = None
    kind: str | None = None


def mean_row(
    problem: str,
    method: str,
    weight: str,
    settings,
    sampler: str,
    steps: int,
    nfe: float,
    metric: str,
    values,
    *,
    floor=None,
    kind=None,
) -> Row:
    """The row of one value for each seed: their mean, and its standard error s / sqrt(n) where there are several.

    Both are None where one of the values is not finite.
    """
    values, n = [float(value) for value in values], len(values)
    finite = all(map(math.isfinite, values))
    mean = statistics.fmean(values) if finite else None
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 and finite else None
    return Row(problem, method, weight, settings, sampler, steps, nfe, n, metric, mean, error, floor, kind)


def comparable(row: Row) -> float:
    """The value of a row, to sort by and to draw: infinite where it is not finite."""
    return math.inf if row.value is None else row.value


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned plain text: best value first within each problem, metric and number of steps.

    Columns in which nothing stands are left out.
    """
    if not rows:
        return "no results"
    header = ("problem", "metric", "steps", "nfe", "method", "weight", "value", "floor", "seeds")
    ordered = sorted(rows, key=lambda r: (r.problem, r.metric, r.steps, comparable(r)))
    lines = [
        (
            row.problem, row.metric, f"{row.steps}", f"{row.nfe:g}", row.method, row.weight,
            _worth(row), _figure(row.floor), f"{row.seeds}",
        )
        for row in ordered
    ]  # fmt: skip
    shown = [i for i in range(len(header)) if any(line[i] not in ("", "-") for line in lines)]
    head, *body = ([cells[i] for i in shown] for cells in (header, *lines))
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, rule, *body)
    )


def against_nfe(rows: Sequence[Row], metric: str, style: Callable[[Row], dict[str, Any]]) -> Any:
    """A matplotlib figure of one metric against network evaluations per sample, with standard errors.

    A line for each method (or settings["line"]) over the numbers of steps, drawn as `style` says of a row of it.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing is shown, no backend chosen
    from matplotlib.ticker import LogLocator, NullLocator

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")  # so that the legend beside the axes is kept when saved
    axes: Any = figure.subplots()
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row.metric == metric:
            curves.setdefault(row.settings.get("line", row.method), []).append(row)
    for method, own in curves.items():
        own = sorted(own, key=lambda row: row.nfe)
        axes.errorbar(
            [r.nfe for r in own], [math.nan if r.value is None else r.value for r in own],
            [r.standard_error or 0 for r in own], marker="o", ms=4, lw=1.3, label=method, **style(own[0]),
        )  # fmt: skip
    axes.set(xlabel="network evaluations per sample", ylabel=metric.replace("_", " "), xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    axes.grid(alpha=0.2)
    # beside the axes it covers nothing, however many lines there are
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _worth(row: Row) -> str:
    if row.value is None:
        return "not finite"
    return _figure(row.value) + ("" if row.standard_error is None else f" ± {row.standard_error:.1g}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

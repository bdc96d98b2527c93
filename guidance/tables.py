"""Measured numbers in rows: means and errors, and what people get of them: tables, LaTeX, CSV, a picture.

`guidance.compare` makes such rows, and so do the jobs. Imports no JAX, and matplotlib only where something is drawn.
"""

import csv
import io
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
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
    """Returns the row of one value for each seed: their mean, and its standard error s / sqrt(n) where n > 1.

    Both are None where one of the values is not finite.
    """
    values, n = [float(value) for value in values], len(values)
    finite = all(map(math.isfinite, values))
    mean = statistics.fmean(values) if finite else None
    error = statistics.stdev(values) / math.sqrt(n) if n > 1 and finite else None
    return Row(problem, method, weight, settings, sampler, steps, nfe, n, metric, mean, error, floor, kind)


def comparable(row: Row) -> float:
    """Returns the value of a row, to sort by; infinity where it is not finite."""
    return math.inf if row.value is None else row.value


# ---- numbers for people


def number(value: float | None, error: float | None = None) -> str:
    """Returns a value with its standard error, both to the same decimal place: "0.215 ± 0.017", "0.01 ± 0.24".

    The error has two significant digits. A value without an error has three, or all digits before the point. None is
    the mean of values that are not all finite.
    """
    if value is None:
        return "not finite"
    if not error or error < 1e-9 * abs(value):  # rounding in a mean of equal values is no error
        plain = f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
        return plain if error is None else f"{plain} ± 0"
    power = math.floor(math.log10(max(abs(value), error)))
    if not -5 <= power < 7:
        return f"({number(value / 10**power, error / 10**power)})e{power:+03d}"
    place = 1 - int(f"{error:.1e}".partition("e")[2])  # decimals of the error's second digit
    # adding 0.0 turns -0.0 into 0.0
    return " ± ".join(f"{round(figure, place) + 0.0:.{max(place, 0)}f}" for figure in (value, error))


def evaluations(nfe: float) -> str:
    """Returns a mean number of network evaluations, to one decimal: "20", "17.3"."""
    return f"{nfe:.1f}".removesuffix(".0")


# ---- tables


class Table(NamedTuple):
    """A table of text in three forms. bold: (line, column) of the cells that stand out."""

    caption: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    bold: frozenset[tuple[int, int]] = frozenset()

    def text(self) -> str:
        """Returns the table as aligned plain text, without its caption."""
        widths = [max(map(len, column)) for column in zip(self.head, *self.body, strict=True)]
        rule = ["-" * width for width in widths]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in (self.head, rule, *self.body)
        )

    def markdown(self) -> str:
        """Returns the table as Markdown, without its caption."""
        lines = self._marked(lambda cell: cell, "**{}**")
        head, *body = (f"| {' | '.join(line)} |" for line in (self.head, *lines))
        return "\n".join([head, "|---" * len(self.head) + "|", *body])

    def latex(self) -> str:
        r"""Returns the table as a LaTeX tabular with the rules of booktabs, for `\input` in a table environment."""
        columns = list(zip(*self.body, strict=True)) or [()] * len(self.head)
        align = "".join("r" if all(map(_is_number, column)) else "l" for column in columns)
        lines = [list(map(_latex, self.head)), *self._marked(_latex, r"\textbf{{\boldmath {}}}")]
        head, *body = (rf"{' & '.join(line)} \\" for line in lines)
        return "\n".join(
            [rf"% {self.caption}; needs \usepackage{{booktabs}}", rf"\begin{{tabular}}{{{align}}}", r"\toprule", head,
             r"\midrule", *body, r"\bottomrule", r"\end{tabular}", ""]
        )  # fmt: skip

    def _marked(self, form: Callable[[str], str], bold: str) -> list[list[str]]:
        """Returns the body, every cell in its form, and those of `bold` in that."""
        return [
            [bold.format(form(cell)) if (i, j) in self.bold else form(cell) for j, cell in enumerate(line)]
            for i, line in enumerate(self.body)
        ]


def listing(rows: Sequence[Row]) -> Table:
    """Returns the rows as a table: best value first within each problem, metric and number of steps.

    Columns in which nothing stands are left out.
    """
    head = ("problem", "metric", "steps", "nfe", "method", "weight", "value", "floor", "seeds")
    lines = [
        (
            row.problem, row.metric, f"{row.steps}", evaluations(row.nfe), row.method, row.weight,
            number(row.value, row.standard_error), "" if row.floor is None else number(row.floor), f"{row.seeds}",
        )
        for row in sorted(rows, key=lambda r: (r.problem, r.metric, r.steps, comparable(r)))
    ]  # fmt: skip
    shown = [i for i in range(len(head)) if any(line[i] for line in lines)]
    return Table("means and standard errors", [head[i] for i in shown], [[line[i] for i in shown] for line in lines])


def table(rows: Sequence[Row]) -> str:
    """Returns the rows as `listing` orders them, in aligned plain text."""
    return listing(rows).text() if rows else "no results"


_NUMBER = re.compile(r"\(?-?\d[\d.]*(e[+-]\d+)?( ± \d[\d.]*)?\)?(e[+-]\d+)?( %)?")
_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", **{c: f"{{{c}}}" for c in "[]*"},
    **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip


def _is_number(cell: str) -> bool:
    return cell in ("", "not finite") or _NUMBER.fullmatch(cell) is not None


def _latex(cell: str) -> str:
    """Returns a cell as LaTeX: numbers in mathematics, so that a minus is one; in words, all that LaTeX would read."""
    if not _NUMBER.fullmatch(cell):
        return "".join(_SPECIAL.get(c, c) for c in cell)
    powers = re.sub(r"e([+-]\d+)", lambda found: rf" \times 10^{{{int(found[1])}}}", cell)
    return "$" + powers.replace("±", r"\pm").replace("%", r"\%") + "$"


# ---- data


def comma_separated(columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Returns lines of values as CSV: floats to six significant digits; empty where a value is None or not finite."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_plain(value) for value in line] for line in lines)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    return f"{float(value):.6g}" if math.isfinite(value) else None


COLUMNS = ("problem", "method", "weight", "sampler", "steps", "nfe", "seeds", "metric", "value", "standard_error",
           "floor")  # fmt: skip


def rows_as_csv(rows: Sequence[Row]) -> str:
    """Returns the rows as CSV, one line for each."""
    return comma_separated(COLUMNS, [[getattr(row, name) for name in COLUMNS] for row in rows])


# ---- the picture


def against_nfe(rows: Sequence[Row], metric: str, style: Callable[[Row], dict[str, Any]]) -> Any:
    """Returns a matplotlib figure of one metric against network evaluations per sample, with standard errors.

    A line for each method (or settings["line"]) over the numbers of steps, drawn as `style` says of a row of it.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing is shown, no backend chosen
    from matplotlib.ticker import LogLocator, NullLocator

    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row.metric == metric:
            curves.setdefault(row.settings.get("line", row.method), []).append(row)
    figure = Figure(figsize=(6.4, max(3.6, 0.8 + 0.16 * len(curves))), layout="constrained")
    axes: Any = figure.subplots()
    for i, (method, own) in enumerate(curves.items()):
        own = sorted(own, key=lambda row: row.nfe)
        axes.errorbar(
            [r.nfe for r in own], [math.nan if r.value is None else r.value for r in own],
            [r.standard_error or 0 for r in own], marker="osD^v"[i // 10 % 5], ms=4, lw=1.3, label=method,
            **style(own[0]),
        )  # fmt: skip
    axes.set(xlabel="network evaluations per sample", ylabel=metric.replace("_", " "), xscale="log")
    least, most = (find(row.nfe for own in curves.values() for row in own) for find in (min, max))
    axes.set_xlim(0.85 * least, most / 0.85)  # from the data: a single number of evaluations has no range of its own
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most > 8 * least else (1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.set_ylim(min(0, low), high + 0.04 * (high - min(0, low)))
    axes.grid(alpha=0.2)
    # beside the axes the legend covers nothing, however many lines there are
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure

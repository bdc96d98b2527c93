"""Draws figures to files without pyplot, which would choose a backend.

`Picture.save` writes every figure as a PNG, and the numbers in it as a CSV with the same stem.
"""

import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.runtime.writing import write_whole
from guidance import tables

COLUMNS = 4  # panels in a row
SHOWN = 10  # the largest number of conditions that get a line
POINTS = ("condition", "x1", "x2")  # columns of what `Instrument.picture` returns


class Picture(NamedTuple):
    """A figure and the numbers in it, as the lines of a table. A figure of images has no columns and no lines."""

    figure: Figure
    columns: Sequence[str] = ()
    lines: Sequence[Sequence[Any]] = ()

    def save(self, path, dpi: int = 130) -> None:
        """Writes the figure to `path` and its data beside it, as CSV."""
        path, image = pathlib.Path(path), io.BytesIO()
        self.figure.savefig(image, format="png", dpi=dpi, bbox_inches="tight", pil_kwargs={"optimize": True})
        write_whole(path, image.getvalue())
        if self.columns:
            write_whole(path.with_suffix(".csv"), tables.comma_separated(self.columns, self.lines))


def subplots(
    rows: int = 1, columns: int = 1, *, figsize=None, layout: str | None = None, **more
) -> tuple[Figure, Any]:
    """Returns (figure, axes) as `pyplot.subplots` does, without pyplot's global state."""
    figure = FigureCanvasAgg(Figure(figsize=figsize, layout=layout)).figure
    return figure, figure.subplots(rows, columns, **more)


def panels(count: int, width: float, height: float, columns: int = COLUMNS, **more) -> tuple[Figure, Any]:
    """Returns (figure, its `count` >= 1 panels, row by row); width and height are those of one panel, in inches."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="compressed", **more
    )
    for axes in grid.flat[count:]:
        axes.remove()
    return figure, grid.flat[:count]


def legend(figure: Figure, **more) -> None:
    """Puts one legend beside the panels, where it covers nothing; it has every label of every panel once."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.set_figheight(max(figure.get_figheight(), 0.4 + 0.16 * len(found)))
        placed = figure.legend(
            found.values(), found.keys(), loc="outside right upper", fontsize=8, frameon=False, **more
        )
        # the panels keep their width
        figure.set_figwidth(figure.get_figwidth() + placed.get_window_extent().width / figure.dpi)


def steps(axes, edges, omega, **style) -> None:
    """Draws omega [steps] where a sampler uses it: omega[i] over the whole step from edges[i] down to edges[i + 1].

    A weight is evaluated at the start of a step and holds until its end, so that an interval (0.2, 0.8] ends at 0.2.
    """
    axes.stairs(omega, edges, baseline=None, **style)


def over_conditions(axes, t, s, omega, names: Sequence[str]) -> list[tuple[str, float, float, float]]:
    """Draws omega [k, G] of the steps from t [k] down to s [k], with one line per condition; names: [G].

    If each step starts where the last one ends, `steps` draws the line; otherwise it is a curve over t. Of more than
    SHOWN conditions only SHOWN, evenly spaced, are drawn, with the mean of all in black. A weight that does not depend
    on the condition gets one black line. Returns the rows (name of the line, t, s, omega) that it has drawn.
    """
    one_run = np.array_equal(t[1:], s[:-1])
    omega = np.asarray(omega)
    count = omega.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(SHOWN, count)).astype(int))
    lines = [(names[c], omega[:, c], {"color": f"C{i}", "lw": 1.6}) for i, c in enumerate(shown)]
    if count > len(shown):
        lines.append((f"mean of {count}", omega.mean(axis=1), {"color": "black", "lw": 2.4}))
    if (omega == omega[:, :1]).all():
        lines = [("every condition", omega[:, 0], {"color": "black", "lw": 1.6})]
    for name, values, style in lines:
        if one_run:
            steps(axes, [*t, s[-1]], values, label=name, **style)
        else:
            axes.plot(t, values, label=name, **style)
    return [(name, *row) for name, values, _ in lines for row in zip(t, s, values, strict=True)]


def time_axis(axes) -> None:
    """Lets time run from noise on the left to data on the right."""
    axes.set(xlabel="t  (1 noise, 0 data)", xlim=(1, 0))
    axes.grid(alpha=0.2)

"""Figures that are drawn to files only: without pyplot there is no backend to choose and no open figure to close."""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def subplots(
    rows: int = 1, columns: int = 1, *, figsize=None, layout: str | None = None, **more
) -> tuple[Figure, Any]:
    """(figure, axes) as `pyplot.subplots` returns them; nothing of it is known to matplotlib's own state."""
    figure = FigureCanvasAgg(Figure(figsize=figsize, layout=layout)).figure
    return figure, figure.subplots(rows, columns, **more)

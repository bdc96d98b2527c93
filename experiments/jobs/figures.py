"""The pictures of a report. Each function returns a `drawing.Picture`: a figure, and the numbers that are drawn."""

import itertools

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments.config.expressions import TWICE
from experiments.jobs.candidates import UNGUIDED
from experiments.problems.images import judge
from experiments.problems.interface import shares
from experiments.runtime import drawing
from experiments.runtime.drawing import Picture
from experiments.runtime.results import GIVEN, LEARNED, NONE, TUNED
from guidance import tables
from guidance.conditions import are_labels, repeated, size, taken

COLOURS = {
    "rollout": "C2", "self_consistency": "C0", "l2": "C1", "constant": "0.25", "interval": "0.5",
    "clamp_linear": "0.7", "unguided": "C3", TWICE: "#ff9896",
}  # fmt: skip
OF_FAMILIES = [matplotlib.colormaps["tab20"].colors[i] for i in (8, 10, 12, 16, 18, 9, 11, 13, 17, 19)]
OF_FAMILIES += matplotlib.colormaps["tab20b"].colors[::2] + ("#006d5b",)
HAND_MADE = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 4)))  # grey lines of the best hand-made weights
POINTS = 400  # of each condition that a scatter plot shows, at most


def shades(families) -> dict:
    """Returns {family: its colour}, one for each; hand-made and learned weights of a rule are one family."""
    others = [family for family in dict.fromkeys(families) if family not in COLOURS]
    return COLOURS | {family: OF_FAMILIES[i % len(OF_FAMILIES)] for i, family in enumerate(others)}


def _shades(rows) -> dict:
    return shades(_family(row) for row in rows if row.kind in (NONE, TUNED, LEARNED))


def _family(row) -> str:
    return row.settings["family"]


def _line(row) -> str:
    """Returns the method without its number of steps: what rows at several numbers of steps share."""
    return row.settings.get("line", row.method)


def names(problem) -> list[str]:
    """Returns what the conditions of a problem are called in legends."""
    known, conditions = problem.data.names, problem.model.conditions
    if known is not None:
        return list(known)
    return [f"{'class' if are_labels(conditions) else 'condition'} {c}" for c in range(size(conditions))]


def omega_over_time(problem, grid, detailed) -> Picture:
    """Draws omega over the steps of `grid`: a panel for each learned weight, a line for each condition.

    detailed: {label: entry of the ledger with its table}. The best hand-made weights are grey, in every panel.
    """
    learned = {label: entry for label, entry in detailed.items() if "learned" in entry["key"]}
    hand = {
        label: np.asarray(entry["table"])[:, 0]
        for label, entry in detailed.items()
        if label not in learned and entry["key"]["in full"] not in UNGUIDED
    }
    figure, panels = drawing.panels(max(1, len(learned)), 3.9, 3.4, sharey=True)
    grid, lines = np.asarray(grid), []
    for axes, label in itertools.zip_longest(panels, learned, fillvalue="hand-made weights"):
        for (name, omega), style in zip(hand.items(), itertools.cycle(HAND_MADE), strict=False):
            drawing.steps(axes, grid, omega, color="0.5", ls=style, label=name)
            lines += [(label, name, *row) for row in zip(grid[:-1], grid[1:], omega, strict=True)]
        if label in learned:
            drawn = drawing.over_conditions(axes, grid[:-1], grid[1:], learned[label]["table"], names(problem))
            lines += [(label, *row) for row in drawn]
        axes.set_title(label, fontsize=10)
        drawing.time_axis(axes)
    panels[0].set_ylabel("omega  (scale - 1)")
    drawing.legend(figure)
    return Picture(figure, ("weight", "line", "t", "s", "omega"), lines)


def omega_map(problem, weights) -> Picture:
    """Draws omega(s, t) over the triangle s < t, the mean over at most ten conditions: a panel for each weight.

    weights: {name: (weight, the number of steps that it is for or None)}, at least one.
    """
    side = jnp.linspace(0.01, 0.99, 60)
    t, s = jnp.meshgrid(side, side, indexing="ij")
    flat_t, flat_s = t.reshape(-1), s.reshape(-1)
    conditions, _ = shares(problem.model.conditions, 10)
    rows = np.arange(size(conditions))[:, None]
    below = np.asarray(s < t)
    figure, panels = drawing.panels(len(weights), 3.8, 3.2)
    lines = []
    for axes, (label, (weight, steps)) in zip(panels, weights.items(), strict=True):
        values = [weight(t=flat_t, s=flat_s, cond=repeated(taken(conditions, c), len(flat_t))) for c in rows]
        omega = np.where(below, np.mean([np.asarray(v) for v in values], 0).reshape(60, 60), np.nan)
        lowest = min(0, np.nanmin(omega))  # 0, or what a signed head has learned
        drawn = axes.pcolormesh(
            np.asarray(side), np.asarray(side), omega.T, cmap="viridis", vmin=lowest, rasterized=True
        )
        if steps:
            gap = 1 / steps
            axes.plot([gap, 1], [0, 1 - gap], "w--", lw=1)
        ticks = np.linspace(0, 1, 6)
        axes.set(xlabel="t  (start of the step)", ylabel="s  (its end)", aspect="equal", xlim=(0, 1), ylim=(0, 1))
        axes.set(xticks=ticks, yticks=ticks)
        axes.set_title(label, fontsize=10)
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="omega  (scale - 1)")
        lines += zip(itertools.repeat(label), np.asarray(t)[below], np.asarray(s)[below], omega[below], strict=False)
    return Picture(figure, ("weight", "t", "s", "omega"), lines)


def samples(problem, sets) -> Picture:
    """Draws true data and the samples of each method side by side, as many of each condition.

    sets: {label: samples [K, n, ...]}, at least one.
    """
    shown = {"true data": true_samples(problem, next(iter(sets.values())))} | sets
    figure, panels = drawing.panels(len(shown), 3.2, 3.3)
    points = []
    for axes, (label, x) in zip(panels, shown.items(), strict=True):
        drawn = problem.instrument.picture(axes, x[:, :POINTS])
        axes.set_title(label, fontsize=10)
        points += [(label, *point) for point in drawn or ()]
    drawing.legend(figure, markerscale=3)
    return Picture(figure, ("panel", *drawing.POINTS) if points else (), points)


def true_samples(problem, like):
    """Returns true samples of the conditions of samples `like` [K, n, ...], as many as a picture of those shows."""
    (groups, n), images = like.shape[:2], problem.model.to_images is not None
    conditions, _ = shares(problem.model.conditions, groups)
    if images:  # a sheet has so many at most
        conditions, n = taken(conditions, slice(judge.COLUMNS * judge.ROWS)), min(n, judge.ROWS)
    return problem.data.real(jax.random.key(0), problem.data.arrays, min(n, POINTS), conditions)


def sweep(problem, rows) -> Picture:
    """Draws the leading metric against the constant weight, a panel for each number of steps; the rest as lines."""
    metric = problem.instrument.tuned[0]
    shown, found = [row for row in rows if row.metric == metric], _shades(rows)
    steps = sorted({row.steps for row in shown})
    figure, panels = drawing.panels(len(steps), 4.0, 3.4)
    lines = []
    for axes, n in zip(panels, steps, strict=True):
        here = [row for row in shown if row.steps == n]
        lines += [(n, *line) for line in _constants(axes, f"{n} steps", here)]
        for row in here:
            if row.kind in (TUNED, LEARNED) and _family(row) not in ("constant", "clamp_linear"):
                _level(axes, row, found[_family(row)])
                lines.append((n, _line(row), None, row.value, row.standard_error))
        if here[0].floor is not None:
            axes.axhline(here[0].floor, color="k", ls=":", lw=1, label="true data")
            lines.append((n, "true data", None, here[0].floor, None))
            axes.set_ylim(bottom=min(axes.get_ylim()[0], here[0].floor - 0.04 * axes.get_ylim()[1]))
    panels[0].set_ylabel(metric.replace("_", " "))
    drawing.legend(figure)
    return Picture(figure, ("steps", "line", "omega", metric, "standard_error"), lines)


def _constants(axes, title: str, rows) -> list[tuple]:
    """Draws the constant weights among the rows, unguided as 0; returns (name, omega, value, error) of each."""
    name = "constant omega"
    points = sorted(
        (row.settings.get("omega", 0.0), np.nan if row.value is None else row.value, row.standard_error or 0.0)
        for row in rows
        if row.kind in (GIVEN, NONE) and row.method in ("constant", "unguided")
    )
    omega, value, error = map(np.asarray, zip(*points, strict=True))
    axes.errorbar(omega, value, error, fmt="o-", color="0.3", ms=3, lw=1, label=name)
    lost = omega[np.isnan(value)]
    title += "; not finite at " + ", ".join(f"{omega:g}" for omega in lost) if len(lost) else ""
    axes.set(title=title, xlabel="constant omega  (scale - 1)")
    # large weights can be off by orders of magnitude; what matters is near the unguided value
    at_zero = value[np.argmin(np.abs(omega))]
    if np.isfinite(at_zero):
        axes.set(ylim=(min(0, np.nanmin(value)), min(1.1 * np.nanmax(value), 2 * at_zero)))
    axes.grid(alpha=0.2)
    return [(name, *point) for point in points]


def _level(axes, row, colour) -> None:
    """Draws a row as a line across the panel, with a band of one standard error."""
    style = {"color": colour, "ls": "--" if row.kind == TUNED else "-", "lw": 1.4}
    if row.value is None:
        axes.plot([], [], label=f"{row.method}: not finite", **style)
        return
    axes.axhline(row.value, label=_line(row), **style)
    if row.standard_error:
        axes.axhspan(row.value - row.standard_error, row.value + row.standard_error, color=colour, alpha=0.12)


def selection(problem, scores) -> Picture:
    """Draws the score of every checkpoint of the learned weights against its update; the chosen one is marked."""
    metric = problem.instrument.tuned[0]
    figure, panels = drawing.panels(1, 5.2, 3.6)
    [axes] = panels
    curves, found, lines = {}, shades(entry["family"] for entry in scores), []
    for entry in scores:
        line = entry["task"], entry["family"], entry["seed"]
        curves.setdefault(line, []).append((entry["update"], entry["score"]))
    styles = dict(zip(sorted({seed for _, _, seed in curves}), itertools.cycle(HAND_MADE), strict=False))
    for (task, family, seed), points in curves.items():
        updates, values = zip(*sorted(points), strict=True)
        at = int(np.argmin(values))
        name, style = f"{task}, seed {seed}", {"color": found[family], "ls": styles[seed]}
        axes.plot(updates, values, marker="o", ms=3, lw=1.2, alpha=0.8, label=name, **style)
        axes.plot(updates[at], values[at], "o", ms=8, mfc="none", color=found[family])
        lines += [(task, seed, *point, int(i == at)) for i, point in enumerate(zip(updates, values, strict=True))]
    axes.set(xlabel="update", ylabel=metric.replace("_", " "))
    axes.grid(alpha=0.2)
    drawing.legend(figure)
    return Picture(figure, ("task", "seed", "update", metric, "chosen"), lines)


def quality_against_nfe(problem, rows) -> Picture:
    """Draws the leading metric against network evaluations per sample, a line for each method over its steps."""
    metric, found = problem.instrument.tuned[0], _shades(rows)
    shown = [row for row in rows if row.metric == metric and row.kind in (NONE, TUNED, LEARNED)]
    figure = tables.against_nfe(
        shown, metric, lambda row: {"color": found[_family(row)], "ls": "-" if row.kind == LEARNED else "--"}
    )
    lines = [(_line(row), row.steps, row.nfe, row.value, row.standard_error) for row in shown]
    return Picture(figure, ("line", "steps", "nfe", metric, "standard_error"), lines)

"""The pictures of a report; each function returns a matplotlib figure and computes nothing but what it draws."""

import jax.numpy as jnp
import matplotlib
import matplotlib.ticker
import numpy as np

from experiments.config.expressions import TWICE
from experiments.jobs.candidates import UNGUIDED
from experiments.problems.interface import shares
from experiments.runtime import drawing
from experiments.runtime.records import GIVEN, LEARNED, NONE, TUNED
from guidance import tables
from guidance.conditions import repeated, size, taken

COLUMNS = 4  # panels in a row
COLOURS = {
    "rollout": "C2", "self_consistency": "C0", "l2": "C1", "constant": "0.25", "interval": "0.5",
    "clamp_linear": "0.7", "unguided": "C3", TWICE: "#ff9896",
}  # fmt: skip
OF_FAMILIES = [matplotlib.colormaps["tab20"].colors[i] for i in (8, 10, 12, 16, 18, 9, 11, 13, 17, 19)]
OF_FAMILIES += matplotlib.colormaps["tab20b"].colors[::2] + ("#006d5b",)


def number(value, error) -> str:
    """A figure for people: three significant digits, with its standard error where there is one; None is a mean of
    values that are not all finite."""
    if value is None:
        return "not finite"
    return f"{value:.3g}" + ("" if error is None else f" ± {error:.1g}")


def shades(families) -> dict:
    """{family: its colour}: one for each; the hand-made and the learned weights of a rule are one family."""
    others = [family for family in dict.fromkeys(families) if family not in COLOURS]
    return COLOURS | {family: OF_FAMILIES[i % len(OF_FAMILIES)] for i, family in enumerate(others)}


def _shades(rows) -> dict:
    return shades(_family(row) for row in rows if row.kind in (NONE, TUNED, LEARNED))


def _family(row) -> str:
    return row.settings["family"]


def omega_over_time(problem, grid, detailed):
    """One panel for each learned weight: omega at every step, a line for each condition, hand-tuned ones in grey."""
    learned = {label: entry for label, entry in detailed.items() if "learned" in entry["key"]}
    tuned = {label: entry for label, entry in detailed.items() if entry["key"]["in full"] not in UNGUIDED}
    hand = {label: entry for label, entry in tuned.items() if label not in learned}
    figure, panels = _panels(max(1, len(learned)), 4.2, 3.4, sharey=True)
    times = np.asarray(grid[:-1])
    for axes, (label, entry) in zip(panels, learned.items(), strict=False):
        for name, style in zip(hand, ("-", "--", ":"), strict=False):
            omega = np.asarray(hand[name]["table"])[:, 0]
            axes.step(times, omega, style, color="0.55", where="mid", label=name)
        table = np.asarray(entry["table"])
        for c in range(table.shape[1]):
            axes.plot(times, table[:, c], color=f"C{c % 10}", lw=1.6, label=f"class {c}" if c < 4 else None)
        axes.set(title=label, xlabel="t  (1 noise, 0 data)", xlim=(1, 0))
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("omega  (scale - 1)")
    panels[-1].legend(fontsize=7, frameon=False)
    return figure


def _panels(count: int, width: float, height: float, **more):
    """(figure, its `count` panels in rows of up to COLUMNS); width and height of one in inches."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure, panels = drawing.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="compressed", **more
    )
    for axes in panels.flat[count:]:
        axes.remove()
    return figure, panels.flat[:count]


def omega_map(problem, weights):
    """omega(s, t) over the triangle s < t, mean over at most ten conditions, for every learned weight of one seed.

    weights: {name: (weight, the steps that it is for or None)}.
    """
    side = jnp.linspace(0.01, 0.99, 60)
    t, s = jnp.meshgrid(side, side, indexing="ij")
    flat_t, flat_s = t.reshape(-1), s.reshape(-1)
    conditions, _ = shares(problem.model.conditions, 10)
    rows = np.arange(size(conditions))[:, None]
    figure, panels = _panels(len(weights), 3.6, 3.2)
    for axes, (label, (weight, steps)) in zip(panels, weights.items(), strict=True):
        values = [weight(t=flat_t, s=flat_s, cond=repeated(taken(conditions, c), len(flat_t))) for c in rows]
        omega = np.where(np.asarray(s < t), np.mean([np.asarray(v) for v in values], 0).reshape(60, 60), np.nan)
        lowest = min(0, np.nanmin(omega))  # 0, or what a signed head has learned
        drawn = axes.pcolormesh(
            np.asarray(side), np.asarray(side), omega.T, cmap="viridis", vmin=lowest, rasterized=True
        )
        if steps:
            gap = 1 / steps
            axes.plot([gap, 1], [0, 1 - gap], "w--", lw=1)
        axes.set(title=label, xlabel="t", ylabel="s", aspect="equal")
        figure.colorbar(drawn, ax=axes, shrink=0.8)
    return figure


def samples(problem, sets):
    """True data and the samples of each method, side by side."""
    shown = {"true data": None} | sets
    figure, panels = _panels(len(shown), 3.2, 3.3)
    for axes, (label, x) in zip(panels, shown.items(), strict=True):
        problem.instrument.picture(axes, x)
        axes.set_title(label, fontsize=10)
    return figure


def sweep(problem, rows):
    """The leading metric against the constant weight, one panel for each number of steps; the rest as lines."""
    metric = problem.instrument.tuned[0]
    own, found = [row for row in rows if row.metric == metric], _shades(rows)
    steps = sorted({row.steps for row in own})
    figure, panels = drawing.subplots(1, len(steps), figsize=(4.4 * len(steps), 3.4), squeeze=False)
    for axes, n in zip(panels[0], steps, strict=True):
        here = [row for row in own if row.steps == n]
        points = sorted(
            (row.settings.get("omega", 0.0), _drawn(row), row.standard_error or 0.0)
            for row in here
            if row.kind in (GIVEN, NONE) and row.method in ("constant", "unguided")
        )
        omega, value, error = map(np.asarray, zip(*points, strict=True))
        axes.errorbar(omega, value, error, fmt="o-", color="0.3", ms=3, lw=1, label="constant omega")
        for row in here:
            if row.kind not in (TUNED, LEARNED) or _family(row) in ("constant", "clamp_linear"):
                continue
            shade, style = found[_family(row)], "--" if row.kind == TUNED else "-"
            if row.value is None:
                axes.plot([], [], color=shade, ls=style, lw=1.4, label=f"{row.method}: not finite")
                continue
            axes.axhline(row.value, color=shade, ls=style, lw=1.4, label=row.method)
            if row.standard_error:
                axes.axhspan(row.value - row.standard_error, row.value + row.standard_error, color=shade, alpha=0.12)
        if here[0].floor is not None:
            axes.axhline(here[0].floor, color="k", ls=":", lw=1, label="true data")
        # large weights can be off by orders of magnitude; what matters is near the unguided value
        at_zero = value[np.argmin(np.abs(omega))]
        axes.set(title=_beside_lost(f"{n} steps", omega[np.isnan(value)]), xlabel="omega")
        if np.isfinite(at_zero):
            axes.set(ylim=(min(0, np.nanmin(value)), min(1.1 * np.nanmax(value), 2 * at_zero)))
        axes.grid(alpha=0.2)
    panels[0][0].set_ylabel(metric.replace("_", " "))
    _legend_beside(panels[0][-1])
    return figure


def _drawn(row) -> float:
    """The value of a row where it can be drawn: NaN is left out."""
    return np.nan if row.value is None else row.value


def _beside_lost(title: str, omegas) -> str:
    """The title, and the weights that cannot be drawn."""
    return title if len(omegas) == 0 else f"{title}; not finite at " + ", ".join(f"{omega:g}" for omega in omegas)


def selection(problem, scores):
    """The score of every checkpoint of the learned weights against its update; the one that is kept is marked."""
    figure, axes = drawing.subplots(figsize=(5.2, 3.6))
    lines, found = {}, shades(entry["family"] for entry in scores)
    for entry in scores:
        line = entry["task"], entry["family"], entry["seed"]
        lines.setdefault(line, []).append((entry["update"], entry["score"]))
    for (task, family, seed), points in lines.items():
        updates, values = zip(*sorted(points), strict=True)
        at = int(np.argmin(values))
        axes.plot(updates, values, "o-", ms=3, lw=1.2, color=found[family], alpha=0.8, label=f"{task}, seed {seed}")
        axes.plot(updates[at], values[at], "o", ms=8, mfc="none", color=found[family])
    axes.set(xlabel="update", ylabel=problem.instrument.tuned[0].replace("_", " "))
    axes.grid(alpha=0.2)
    axes.legend(fontsize=7, frameon=False)
    return figure


def quality_against_nfe(problem, rows):
    """The leading metric against network evaluations per sample, a line for each method over the numbers of steps."""
    found = _shades(rows)
    return tables.against_nfe(
        [row for row in rows if row.kind in (NONE, TUNED, LEARNED)],
        problem.instrument.tuned[0],
        lambda row: {"color": found[_family(row)], "ls": "-" if row.kind == LEARNED else "--"},
    )


def _legend_beside(axes) -> None:
    """A legend that covers nothing, however many lines there are."""
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

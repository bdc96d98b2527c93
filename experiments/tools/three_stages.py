"""The three stages of guidance, on the set-up of their theory (arXiv 2509.22007), as one picture.

    python -m experiments.tools.three_stages --out docs/stages.png [--samples 4000] [--steps 400]

Prints the table of docs/stages.md as well, which says how to read the picture. Beside the picture it leaves the
numbers drawn, as CSV, and the table, as LaTeX.
guidance/metrics/paths.py defines its measures. About a minute on two cores.
"""

import argparse
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runtime import drawing
from experiments.runtime.drawing import Picture
from experiments.runtime.writing import write_whole
from guidance import guides, metrics, sampling, schedules, weights
from guidance.metrics import paths
from guidance.tables import Table
from guidance.truth import mixtures
from guidance.types import Array

# Assumption 3.1 of the source: a conditional mixture of narrow modes, an unconditional law N(0, I) that is a stand-in,
# not the mixture of all conditionals; rectified flow. The numbers are ours: a weak and a strong mode of equal norm.
MEANS, SHARES, VARIANCE = np.array([[-1.0, 2.0], [2.0, 1.0]]), np.array([0.3, 0.7]), 0.05
WEAK, STRONG = 0, 1
MEAN = SHARES @ MEANS
ACROSS = (MEANS[STRONG] - MEANS[WEAK]) / np.linalg.norm(MEANS[STRONG] - MEANS[WEAK])
SCHEDULE = schedules.rectified_flow()
OMEGAS, SHOWN = (0.0, 2.0, 4.0, 8.0), 2  # the weights, and the index of the one whose clouds are drawn


def mixture() -> mixtures.Mixture:
    """Returns the conditional law, label 0, with N(0, I) as the unconditional law, by the class prior (0, 1)."""
    return mixtures.from_classes([MEANS, [[0.0, 0.0]]], [VARIANCE, 1.0], [SHARES, [1.0]], class_prior=(0, 1))


def trajectories(omegas: Array, grid: Array, x: Array) -> Array:
    """Trajectories [runs, steps + 1, batch, 2] from x [batch, 2] at grid[0]; a run a row of omegas [runs, steps].

    DDIM, which for rectified flow is the Euler step of dx/dt = (x - D_omega)/t. All runs share their noise.
    """
    law = mixture()
    denoise, cond = mixtures.denoise(law, SCHEDULE), jnp.zeros(x.shape[0], int)

    def run(row):
        guide = guides.cfg(weights.table(grid, row), law.null, skip=False)
        key = jax.random.key(0)  # DDIM draws nothing
        return sampling.sample(
            key, denoise, guide, sampling.ddim(), SCHEDULE, grid, x, cond, trajectory=True
        ).trajectory

    return jax.vmap(run)(omegas)


def constants(omegas, steps: int) -> Array:
    """Rows of constant weights, [runs, steps]."""
    return jnp.broadcast_to(jnp.asarray(omegas, float)[:, None], (len(omegas), steps))


def triangles(omegas, grid: Array) -> Array:
    """Rows of the paper's remedy of equal mean: weak, strong, weak; [runs, steps]."""
    rise = weights.ramp("lambda", 1.0, of="omega")(t=grid[:-1], s=grid[1:], cond=None)
    return jnp.outer(jnp.asarray(omegas, float), rise)


def posteriors(path: Array, grid: Array) -> Array:
    """Returns p(mode | x_t) under the conditional law, [times, batch, 2], for a path [times, batch, 2]."""
    law = mixture()

    def at_one_time(x, t):
        return mixtures.responsibilities(law, SCHEDULE, x, t, jnp.zeros(x.shape[0], int))[:, : len(MEANS)]

    return paths.along(at_one_time, path, grid)


def boundary(time: float, omegas, reach: float = 4.0, points: int = 801, steps: int = 200) -> Array:
    """Returns, for each omega, the value of <x, ACROSS> at `time` below which a path ends in the weak mode.

    The modes have equal norm, so the component of x across them obeys an equation of its own: the fate of a path
    depends on that component alone, the basins are half-planes, and a line of starting points finds their edge.
    """
    grid = sampling.uniform_grid(steps, time)
    line = jnp.linspace(-reach, reach, points)
    starts = jnp.outer(line, jnp.asarray(ACROSS, line.dtype))
    ends = trajectories(constants(omegas, steps), grid, starts)[:, -1]
    final = metrics.nearest_mode(ends.reshape(-1, 2), jnp.asarray(MEANS, line.dtype))
    strong = final[:, STRONG].reshape(len(omegas), points) > 0
    return line[jnp.argmax(strong, axis=1)]


class Measured(NamedTuple):
    """What the picture shows; runs: the constants OMEGAS, then triangles of the same means (without omega = 0)."""

    grid: Array  # [times]
    path: Array  # [runs, times, batch, 2]
    distance: Array  # [runs, times]: E|x - w mean|^2, guided over unguided, w = 1 + omega of the run
    weak: Array  # [runs, times]: mean posterior of the weak mode
    spread: Array  # [runs, times]: standard deviation per dimension of what ends in the strong mode
    decided: Array  # [runs, times]: mean decidedness


def measure(samples: int, steps: int, seed: int = 0) -> Measured:
    """Runs all weights from the same noise and measures each stage."""
    grid = sampling.uniform_grid(steps)
    noise = jax.random.normal(jax.random.key(seed), (samples, 2))
    rows = jnp.concatenate([constants(OMEGAS, steps), triangles(OMEGAS[1:], grid)])
    path = jax.jit(trajectories)(rows, grid, noise)

    def of_run(run, omega):
        final = metrics.nearest_mode(run[-1], jnp.asarray(MEANS, run.dtype))
        probability = posteriors(run, grid)
        target = (1 + omega) * jnp.asarray(MEAN, run.dtype)
        whole = jnp.mean(jnp.sum((path[0] - target.reshape(1, 1, -1)) ** 2, axis=-1), axis=1)
        gain = jnp.mean(paths.shift_gain(run, path[0], target), axis=1)
        decided = jnp.mean(paths.decidedness(probability, jnp.asarray(SHARES, run.dtype)), axis=1)
        spread = paths.mode_spread(run, final)[:, STRONG]
        return 1 - gain / whole, jnp.mean(probability[..., WEAK], axis=1), spread, decided

    means = jnp.asarray([*OMEGAS, *OMEGAS[1:]])
    return Measured(grid, path, *jax.jit(lambda: jax.lax.map(lambda pair: of_run(*pair), (path, means)))())


def table(measured: Measured) -> Table:
    """Returns what each weight leaves at t = 0: the share of the weak mode, and the spread within the strong one."""
    names = [f"omega = {omega:g}" for omega in OMEGAS] + [f"triangle, mean {omega:g}" for omega in OMEGAS[1:]]
    found = zip(
        ["truth", *names], [SHARES[WEAK], *measured.weak[:, -1]], [VARIANCE**0.5, *measured.spread[:, -1]], strict=True
    )
    body = [(name, f"{share:.3f}", f"{spread:.2g}") for name, share, spread in found]
    return Table("at t = 0", ("weight", "share of the weak mode", "standard deviation in the strong mode"), body)


# ---- the picture

_SHADES = ("0.35", "#f2a93b", "#d9541e", "#7a1460")  # one colour for each omega, darker for stronger
_MODES = "tab:blue"


def picture(measured: Measured) -> Picture:
    """Draws the clouds of omega = 0 and of the shown omega in each stage, and below them a measure of each stage."""
    figure, panels = drawing.subplots(2, 3, figsize=(13.2, 8.6), layout="constrained")
    bounds = [float(t) for t in paths.stage_times(measured.decided[SHOWN], measured.grid)]
    middle = int(np.argmin(np.abs(np.asarray(measured.grid) - np.mean(bounds))))
    until = int(np.argmin(np.abs(np.asarray(measured.grid) - bounds[0])))
    lines = [
        *_direction_shift(panels[0][0], measured, until),
        *_mode_separation(panels[0][1], measured, middle),
        *_concentration(panels[0][2], measured),
        *_curves(panels[1][0], measured, measured.distance, bounds, "E |x − w m|²,  guided / unguided", first=1),
        *_curves(panels[1][1], measured, measured.weak, bounds, "posterior share of the weak mode", remedy=True),
        *_curves(
            panels[1][2], measured, measured.spread, bounds, "standard deviation in the strong mode", remedy=True
        ),
    ]
    panels[1][0].set_title("guided samples are nearer to w m, w = 1 + omega", fontsize=10)
    panels[1][0].legend(fontsize=8, loc="lower right")
    panels[1][1].set_title("the weak mode has lost its share before stage 3", fontsize=10)
    panels[1][1].axhline(SHARES[WEAK], color=_MODES, lw=1, ls=":", zorder=1)
    panels[1][1].text(0.01, SHARES[WEAK] + 0.005, "truth", ha="right", color=_MODES)
    panels[1][1].set_ylim(0, 0.36)
    panels[1][1].legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.82))
    panels[1][2].set_title("what guidance narrows, it narrows in stage 3", fontsize=10)
    panels[1][2].axhline(VARIANCE**0.5, color=_MODES, lw=1, ls=":", zorder=1)
    panels[1][2].text(0.99, 1.1 * VARIANCE**0.5, "truth", color=_MODES)
    panels[1][2].set(yscale="log", ylim=(1e-4, 2))
    panels[1][2].legend(fontsize=8, loc="lower left")
    figure.suptitle(
        "Classifier-free guidance in three stages: a weak (30 %) and a strong mode (70 %), exact denoisers, "
        "omega = scale − 1", fontsize=13,
    )  # fmt: skip
    return Picture(figure, ("panel", "line", "t", "x1", "x2", "value"), lines)


def _points(panel: str, run: int, time, x) -> list[tuple]:
    """Returns points [n, 2] at one time as lines of the data."""
    return [(panel, f"omega = {OMEGAS[run]:g}", float(time), *point, None) for point in x]


def _direction_shift(axes, measured, until):
    """Draws arrows from the noise to the end of stage 1; returns their ends, those of the noise at t = 1."""
    lines = []
    starts = np.asarray(measured.path[0, 0, :60])
    for run, shade in ((0, _SHADES[0]), (SHOWN, _SHADES[SHOWN])):
        ends = np.asarray(measured.path[run, until, :60])
        for at, x in ((0, starts), (until, ends)):
            lines += _points("direction shift", run, measured.grid[at], x)
        axes.quiver(*starts.T, *(ends - starts).T, color=shade, angles="xy", scale_units="xy", scale=1, width=0.006,
                    headwidth=3.5, alpha=0.8, label=f"omega = {OMEGAS[run]:g}")  # fmt: skip
    axes.plot(*np.outer([-2, 3], MEAN).T, "--", color=_MODES, lw=1)
    axes.plot(*MEAN, "*", color=_MODES, ms=14, mec="white", label="m, mean of the condition")
    axes.set_title(f"1  Direction shift, t = 1 to {float(measured.grid[until]):.2f}\n"
                   "every sample is driven along m, and outward", fontsize=11)  # fmt: skip
    _modes(axes)
    return lines


def _mode_separation(axes, measured, at):
    """Draws clouds in the middle of stage 2 and the edges of the basins; returns the points of the clouds."""
    lines = []
    time = float(measured.grid[at])
    edges = np.asarray(jax.jit(lambda: boundary(time, (OMEGAS[0], OMEGAS[SHOWN])))())
    along = np.array([-ACROSS[1], ACROSS[0]])
    for run, shade, edge in ((0, _SHADES[0], edges[0]), (SHOWN, _SHADES[SHOWN], edges[1])):
        cloud = np.asarray(measured.path[run, at, :400])
        axes.plot(*cloud.T, "o", color=shade, ms=2, alpha=0.5)
        lines += _points("mode separation", run, time, cloud)
        lost = float(np.mean(np.asarray(measured.path[run, at]) @ ACROSS < edge))
        line = edge * ACROSS + np.outer([-6, 6], along)
        axes.plot(*line.T, color=shade, lw=2, label=f"omega = {OMEGAS[run]:g}: {100 * lost:.0f} % left of its line")
    axes.set_title(f"2  Mode separation, t = {time:.2f}; left of the line: weak mode\n"
                   "the line has hardly moved, the cloud has", fontsize=11)  # fmt: skip
    _modes(axes)
    return lines


def _concentration(axes, measured):
    """Draws clouds of final samples around the strong mode; returns their points."""
    lines = []
    for run, shade, size in ((0, _SHADES[0], 2.5), (1, _SHADES[1], 2.5), (SHOWN, _SHADES[SHOWN], 4)):
        ends = np.asarray(measured.path[run, -1, :800])
        axes.plot(*ends.T, "o", color=shade, ms=size, alpha=0.6, label=f"omega = {OMEGAS[run]:g}")
        lines += _points("concentration", run, 0, ends)
    axes.set_title(
        "3  Concentration, t = 0, around the strong mode\nall guided samples of a mode become one", fontsize=11
    )
    angle = np.linspace(0, 2 * np.pi, 100)
    ring = MEANS[STRONG] + 2 * VARIANCE**0.5 * np.stack([np.cos(angle), np.sin(angle)], -1)
    axes.plot(*ring.T, color=_MODES, lw=1, ls=":", label="2 standard deviations, truth")
    axes.set(xlim=(1.1, 2.9), ylim=(0.15, 2.15), xlabel="x₁", ylabel="x₂", aspect="equal")
    axes.legend(fontsize=8, loc="upper left", framealpha=0.9)
    return lines


def _modes(axes):
    for mean, name, below in zip(MEANS, ("weak", "strong"), (9, -17), strict=True):
        axes.plot(*mean, "X", color=_MODES, ms=9, mec="white", zorder=5)
        box = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}
        axes.annotate(name, mean, (0, below), textcoords="offset points", ha="center", color=_MODES, fontsize=9,
                      bbox=box, zorder=5)  # fmt: skip
    axes.set(xlim=(-3.2, 4.2), ylim=(-3.6, 4.6), xlabel="x₁", ylabel="x₂", aspect="equal")
    axes.legend(fontsize=8, loc="lower right", framealpha=0.9)


def _curves(axes, measured, values, bounds, label, first=0, remedy=False):
    """Draws a line for each omega from `first` on, over time; dashed the triangle of equal mean. Returns the lines."""
    grid = np.asarray(measured.grid)
    shown = [
        (run, f"omega = {OMEGAS[run]:g}", {"color": _SHADES[run], "lw": 1.8}) for run in range(first, len(OMEGAS))
    ]
    if remedy:
        style = {"color": _SHADES[SHOWN], "lw": 1.4, "ls": "--"}
        shown.append((len(OMEGAS) + SHOWN - 1, f"triangle, mean {OMEGAS[SHOWN]:g}", style))
    lines = []
    for run, name, style in shown:
        axes.plot(measured.grid, values[run], label=name, **style)
        lines += [
            (label, name, float(t), None, None, float(v)) for t, v in zip(grid, np.asarray(values[run]), strict=True)
        ]
    for left, right, tint in zip((1, *bounds), (*bounds, 0), ("#e6eef9", "white", "#f7f1ea"), strict=True):
        axes.axvspan(left, right, color=tint, zorder=0)
    for number, centre in enumerate(((1 + bounds[0]) / 2, sum(bounds) / 2, bounds[1] / 2), start=1):
        axes.text(centre, 0.97, str(number), transform=axes.get_xaxis_transform(), va="top", ha="center",
                  fontsize=12, color="0.4", weight="bold")  # fmt: skip
    axes.set(
        xlabel=f"t  (1 noise, 0 data); shaded: the stages of omega = {OMEGAS[SHOWN]:g}", ylabel=label, xlim=(1, 0)
    )
    return lines


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Draws the three stages of guidance.")
    parser.add_argument("--out", default="docs/stages.png")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args(arguments)
    measured = measure(options.samples, options.steps)
    picture(measured).save(options.out, dpi=80)
    write_whole(pathlib.Path(options.out).with_suffix(".tex"), table(measured).latex())
    print(f"{table(measured).markdown()}\nwrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

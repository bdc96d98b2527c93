"""Pictures of the leaderboard: the quality-diversity plane, what each rule does to two modes, and its paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from experiments.config.expressions import COMBINATIONS, parse, shortened
from experiments.leaderboard import contenders as field
from experiments.leaderboard import evaluate
from experiments.leaderboard.problems import GUIDED, SCHEDULE, plane
from experiments.problems import construct
from experiments.runtime import drawing
from experiments.runtime.drawing import Picture
from guidance import sampling, weights
from guidance.truth import mixtures

PROBLEM = "attenuated"  # the one that is drawn: two classes of two modes each
STRONG = 3.0  # the omega of the gallery: far beyond the exact repair, so that each rule shows its character
STEPS = 20
UNGUIDED = "unguided"
LOW, HIGH = -2.6, 4.0  # of both axes
METRICS = ("mode_share_error", "variance_ratio")  # of the plane
KINDS = {"true data": "k", "learned": "C3", "rules": "0.35", "CFG, other weights and samplers": "C0"}


def draw(workdir, rows, config) -> list[tuple[str, str]]:
    """Writes all pictures, each with its data; returns (file name, caption) pairs."""
    group = plane(jax.random.key(config.seed))
    index = group.names.index(PROBLEM)
    captions = []
    for name, picture, caption in (
        ("plane", _plane(rows, max(config.nfe)), f"Share of the modes and their width at NFE {max(config.nfe)}; the "
         "truth is the cross. Guidance that is too strong loses modes (right) and narrows them (down)."),
        ("two_modes", _two_modes(group, index, config), "What each rule does to a class of two modes at omega = "
         f"{STRONG:g} (lambda = 1 for CFG++), {STEPS} steps: the true class as contours, samples, the shares of its "
         "modes (truth 0.6 and 0.4)."),
        ("paths", _paths(group, index), "Paths of twelve samples of one class from noise to data, omega = "
         f"{STRONG:g}."),
    ):  # fmt: skip
        picture.save(workdir / f"{name}.png", dpi=110)
        captions.append((f"{name}.png", caption))
    return captions


def _plane(rows, nfe) -> Picture:
    """Draws mode-share error against per-mode width, a named point for each method."""
    value = {}
    for row in rows:
        if row.nfe in (nfe, 0.0) and row.metric in METRICS:
            of_method = value.setdefault(row.method, {name: [] for name in METRICS})
            of_method[row.metric].append(np.nan if row.value is None else row.value)
    lines = [(name, np.mean(found[METRICS[0]]), np.median(found[METRICS[1]])) for name, found in value.items()]
    figure, axes = drawing.subplots(figsize=(9, 6.5), layout="constrained")
    for kind, colour in KINDS.items():
        points = [(x, y) for name, x, y in lines if _kind(name) == kind]
        if points:
            style = {"marker": "+", "ms": 12} if kind == "true data" else {"marker": "o", "ms": 4}
            axes.plot(*zip(*points, strict=True), ls="", color=colour, label=kind, **style)
    axes.axhline(1, color="0.8", lw=0.8, zorder=0)
    axes.set(
        xlabel="mode-share error (mean over problems)", ylabel="variance of a mode / truth (median over problems)"
    )
    axes.margins(0.1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7, 8, 9)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.2)
    drawing.legend(figure)
    _name_points(axes, lines)
    return Picture(figure, ("method", *METRICS), lines)


def _kind(method: str) -> str:
    if method == "true data":
        return method
    return "learned" if method.startswith("learned") else [*KINDS][3 if "," in method else 2]


def _name_points(axes, points) -> None:
    """Writes the name of each point (name, x, y) near it, where no other name and no point is; a line leads to it."""
    axes.figure.draw_without_rendering()  # from here on the places of points in the picture are known
    at = {name: axes.transData.transform((x, y)) for name, x, y in points if np.isfinite([x, y]).all()}
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in at.values()]
    angles = np.pi / 8 * np.array([0, 2, -2, 8, 6, -6, 1, -1, 7, -7, 4, -4, 3, -3, 5, -5])
    to_points = 72 / axes.figure.dpi
    for (name, x, y), place in zip((p for p in points if p[0] in at), at.values(), strict=True):
        text = axes.annotate(
            name, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=7, color=KINDS[_kind(name)],
            ha="center", va="center",
        )  # fmt: skip
        size = text.get_window_extent().size
        for radius, angle in itertools.product(range(6, 300, 6), angles):
            side = np.array([np.cos(angle), np.sin(angle)])
            offset = side * (radius + size / 2)
            box = Bbox.from_bounds(*(place + offset - size / 2), *size)
            if not any(map(box.overlaps, taken)) and box.x0 > axes.bbox.x0 and box.x1 < axes.bbox.x1:
                break
        text.set_position(to_points * offset)
        if radius > 12:
            line = {"arrowstyle": "-", "lw": 0.5, "color": "0.6", "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (x, y), xytext=to_points * side * radius, textcoords="offset points", arrowprops=line)
        taken.append(box)


def _two_modes(group, index, config) -> Picture:
    """Draws samples of each rule, a panel each."""
    truth = jax.tree.map(lambda a: a[index], group.truth)
    found = rule_samples(group, index, config.rules)
    figure, panels = drawing.panels(len(found), 2.6, 2.9, columns=5)
    for axes, (text, x) in zip(panels, found.items(), strict=True):
        two_mode_panel(axes, truth, _shown(text), x)
    return Picture(figure, ("rule", "x1", "x2"), [(_shown(text), *point) for text, x in found.items() for point in x])


def rule_samples(group, index, calls, omega: float = STRONG, n: int = 400) -> dict[str, np.ndarray]:
    """Returns {call of a rule: samples of class 0 [n, 2]} at a constant weight, unguided first.

    Rules whose knob is lambda get omega / STRONG.
    """
    times = sampling.uniform_grid(STEPS)
    found = {}
    for text in (UNGUIDED, *calls):
        guide = field.unguided if text == UNGUIDED else field.by_rule(construct.rule(text))
        knob = omega if text == UNGUIDED or field.weight_of(text) == "omega" else omega / STRONG
        run = evaluate.sampler(group, guide, sampling.ddim(), n)
        table = jnp.full((STEPS, GUIDED), knob)
        found[text] = np.asarray(run(table, times, STEPS, jax.random.key(5), index)[0])
    return found


def gallery(folder, calls) -> None:
    """Writes a picture of each rule, by its name: at omega = 1, which repairs this model, and at omega = STRONG."""
    group = plane(jax.random.key(0))
    index = group.names.index(PROBLEM)
    truth = jax.tree.map(lambda a: a[index], group.truth)
    mild, strong = (rule_samples(group, index, calls, omega) for omega in (1.0, STRONG))
    folder.mkdir(exist_ok=True)
    for text in calls:
        figure, panels = drawing.panels(2, 2.6, 2.8)
        lines = []
        for axes, x, words in zip(panels, (mild[text], strong[text]), _words(text), strict=True):
            two_mode_panel(axes, truth, words, x)
            lines += [(words, *point) for point in x]
        name = parse("rule", text, COMBINATIONS)[0].name
        Picture(figure, ("weight", "x1", "x2"), lines).save(folder / f"{name}.png", dpi=80)


def _words(name):
    knob = field.weight_of(name)
    return ("omega = 1", f"omega = {STRONG:g}") if knob == "omega" else (f"{knob} = 0.33", f"{knob} = 1")


def _shown(text):
    return text if text == UNGUIDED else shortened(text, COMBINATIONS)


def two_mode_panel(axes, truth, name, x) -> None:
    """Draws the true class as contours and samples [n, 2] as points.

    The title has the shares of the modes and, if there are any, the number of samples beyond the frame.
    """
    side = jnp.linspace(LOW, HIGH, 100)
    points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_p = mixtures.log_density(truth, SCHEDULE, points, jnp.zeros(10_000), jnp.zeros(10_000, jnp.int32))
    log_p = np.asarray(log_p).reshape(100, 100)
    axes.contour(
        side, side, log_p, levels=log_p.max() - np.array([4.5, 2.0, 0.5]), colors="C2", linewidths=0.8, linestyles="-"
    )
    axes.scatter(*x.T, s=5, color="C0", alpha=0.7, linewidths=0)
    zero = jnp.zeros(len(x))
    shares = np.asarray(
        mixtures.responsibilities(truth, SCHEDULE, jnp.asarray(x), zero, jnp.zeros(len(x), jnp.int32))
    ).mean(0)
    beyond = np.sum((x < LOW) | (x > HIGH), axis=-1).astype(bool).sum()
    words = f", {beyond} outside" if beyond else ""
    axes.set_title(f"{name}\n{shares[0]:.2f} / {shares[1]:.2f}{words}", fontsize=9)
    axes.set(xticks=[], yticks=[], xlim=(LOW, HIGH), ylim=(LOW, HIGH), aspect="equal")


def _paths(group, index) -> Picture:
    """Draws a few trajectories for some rules that differ."""
    truth, model = jax.tree.map(lambda a: a[index], (group.truth, group.model))
    shown = ("unguided", "cfg", "angle_domain", "apg(cap=2.5)", "cfg_rescale", "cfg_zero_star")
    figure, panels = drawing.panels(len(shown), 2.6, 2.8, columns=3)
    times, n, lines = sampling.uniform_grid(40), 12, []
    for axes, name in zip(panels, shown, strict=True):
        build = field.unguided if name == "unguided" else field.by_rule(construct.rule(name))
        guide = build(weights.constant(STRONG), truth.null)
        denoise, cond = group.denoise(model), jnp.zeros(n, jnp.int32)
        inputs = denoise, guide, sampling.ddim(), SCHEDULE, times, (2,), cond
        keys = jax.random.key(2), jax.random.key(0)
        out = np.asarray(sampling.from_noise(keys, *inputs, trajectory=True).trajectory)
        two_mode_panel(axes, truth, name, out[-1])
        axes.set_title(name, fontsize=9)
        for i, path in enumerate(out.transpose(1, 0, 2)):
            axes.plot(*path.T, color="C0", lw=0.7, alpha=0.7)
            lines += [(name, i, float(t), *point) for t, point in zip(times, path, strict=True)]
    return Picture(figure, ("rule", "sample", "t", "x1", "x2"), lines)

"""Pictures of the leaderboard: the quality-diversity plane, what each rule does to two modes, and its paths."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.config.expressions import COMBINATIONS, parse, shortened
from experiments.leaderboard import contenders as field
from experiments.leaderboard import evaluate
from experiments.leaderboard.problems import GUIDED, SCHEDULE, plane
from experiments.problems import construct
from experiments.runtime import drawing
from guidance import sampling, weights
from guidance.sampling.sample import sample
from guidance.truth import mixtures

PROBLEM = "attenuated"  # the one that is drawn: two classes of two modes each
STRONG = 3.0  # the omega of the gallery: far beyond the exact repair, so that each rule shows its character
STEPS = 20
UNGUIDED = "unguided"
LOW, HIGH = -1.7, 4.3  # of both axes


def draw(workdir, rows, config) -> list[tuple[str, str]]:
    """Writes all pictures; returns (file name, caption) pairs."""
    group = plane(jax.random.key(config.seed))
    index = group.names.index(PROBLEM)
    standing = _plane(rows, max(config.nfe))
    modes = _two_modes(group, index, config)
    paths = _paths(group, index)
    captions = []
    for name, figure, caption in (
        ("plane", standing, f"Share of the modes and their width at NFE {max(config.nfe)}; the truth is the cross. "
         "Guidance that is too strong loses modes (right) and narrows them (down)."),
        ("two_modes", modes, f"What each rule does to a class of two modes at omega = {STRONG:g} (lambda = 1 for "
         f"CFG++), {STEPS} steps: the true class as contours, samples, the shares of its modes (truth 0.6 and 0.4)."),
        ("paths", paths, f"Paths of twelve samples of one class from noise to data, omega = {STRONG:g}."),
    ):  # fmt: skip
        figure.savefig(workdir / f"{name}.png", dpi=110, bbox_inches="tight")
        captions.append((f"{name}.png", caption))
    return captions


def _plane(rows, nfe):
    """Mode-share error against per-mode width, a point for each method."""
    own = [row for row in rows if row.nfe in (nfe, 0.0)]
    value = {}
    for row in own:
        if row.metric in ("mode_share_error", "variance_ratio"):
            value.setdefault(row.method, {}).setdefault(row.metric, []).append(row.value)
    figure, axes = drawing.subplots(figsize=(7.5, 5.5))
    for method, found in value.items():
        x, y = np.mean(found["mode_share_error"]), np.median(found["variance_ratio"])
        learned = method.startswith("learned")
        colour = "C3" if learned else "k" if method == "true data" else "C0" if "," in method else "0.35"
        axes.plot(x, y, "+" if method == "true data" else "o", color=colour, ms=12 if method == "true data" else 5)
        if "," not in method:  # the blue ones crowd together
            axes.annotate(method, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour)
    axes.plot([], [], "o", color="C0", ms=5, label="CFG, other weights and samplers")
    axes.legend(fontsize=7, frameon=False)
    axes.axhline(1, color="0.8", lw=0.8, zorder=0)
    axes.set(
        xlabel="mode-share error (mean over problems)", ylabel="variance of a mode / truth (median over problems)"
    )
    axes.set_yscale("log")
    axes.grid(alpha=0.2, which="both")
    return figure


def _two_modes(group, index, config):
    """Small multiples: one panel for each rule."""
    truth = jax.tree.map(lambda a: a[index], group.truth)
    columns, panels = 5, len(config.rules) + 1
    figure, grid = drawing.subplots(-(-panels // columns), columns, figsize=(13, 3.1 * -(-panels // columns)))
    for axes in grid.flat:
        axes.axis("off")
    for axes, (text, x) in zip(grid.flat, rule_samples(group, index, config.rules).items(), strict=False):
        axes.axis("on")
        two_mode_panel(axes, truth, _shown(text), x)
    figure.tight_layout(h_pad=2.0)
    return figure


def rule_samples(group, index, calls, omega: float = STRONG, n: int = 400) -> dict[str, np.ndarray]:
    """{call of a rule: samples of class 0 [n, 2]} at a constant weight, unguided first; lambda is omega/STRONG."""
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
    """Draws rules, a picture each by its name, at omega = 1, which repairs this model, and at omega = STRONG."""
    group = plane(jax.random.key(0))
    index = group.names.index(PROBLEM)
    truth = jax.tree.map(lambda a: a[index], group.truth)
    mild, strong = (rule_samples(group, index, calls, omega) for omega in (1.0, STRONG))
    folder.mkdir(exist_ok=True)
    for text in calls:
        figure, panels = drawing.subplots(1, 2, figsize=(5.2, 2.7))
        for axes, x, words in zip(panels, (mild[text], strong[text]), _words(text), strict=True):
            two_mode_panel(axes, truth, words, x)
        figure.tight_layout()
        figure.savefig(folder / f"{parse('rule', text, COMBINATIONS)[0].name}.png", dpi=60)


def _words(name):
    own = field.weight_of(name)
    return ("omega = 1", f"omega = {STRONG:g}") if own == "omega" else (f"{own} = 0.33", f"{own} = 1")


def _shown(text):
    return text if text == UNGUIDED else shortened(text, COMBINATIONS)


def two_mode_panel(axes, truth, name, x) -> None:
    """The true class as contours, the samples as points, the mode shares in the title."""
    side = jnp.linspace(LOW, HIGH, 100)
    points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    log_p = mixtures.log_density(truth, SCHEDULE, points, jnp.zeros(10_000), jnp.zeros(10_000, jnp.int32))
    log_p = np.asarray(log_p).reshape(100, 100)
    axes.contour(
        side, side, log_p, levels=log_p.max() - np.array([4.5, 2.0, 0.5]), colors="C2", linewidths=0.8, linestyles="-"
    )
    axes.scatter(*np.clip(x, LOW, HIGH).T, s=3, color="C0", alpha=0.5, linewidths=0)
    zero = jnp.zeros(len(x))
    shares = np.asarray(
        mixtures.responsibilities(truth, SCHEDULE, jnp.asarray(x), zero, jnp.zeros(len(x), jnp.int32))
    ).mean(0)
    axes.set_title(f"{name}\n{shares[0]:.2f} / {shares[1]:.2f}", fontsize=9)
    axes.set(xticks=[], yticks=[], xlim=(LOW, HIGH), ylim=(LOW, HIGH), aspect="equal")


def _paths(group, index):
    """A few trajectories for some rules that differ."""
    truth, model = jax.tree.map(lambda a: a[index], (group.truth, group.model))
    shown = ("cfg", "angle_domain", "apg(cap=2.5)", "cfg_rescale", "cfg_zero_star")
    figure, panels = drawing.subplots(1, len(shown) + 1, figsize=(15, 2.9))
    times, n = sampling.uniform_grid(40), 12
    x = sampling.initial_noise(jax.random.key(2), SCHEDULE, times, (2,), jnp.arange(n))
    for axes, name in zip(panels, ("unguided", *shown), strict=True):
        build = field.unguided if name == "unguided" else field.by_rule(construct.rule(name))
        guide = build(weights.constant(STRONG), truth.null)
        denoise, cond = group.denoise(model), jnp.zeros(n, jnp.int32)
        out = sample(
            jax.random.key(0), denoise, guide, sampling.ddim(), SCHEDULE, times, x, cond, trajectory=True
        ).trajectory
        two_mode_panel(axes, truth, name, np.asarray(out[-1]))
        axes.set_title(name, fontsize=9)
        for path in np.asarray(out).transpose(1, 0, 2):
            axes.plot(*np.clip(path, LOW, HIGH).T, color="C0", lw=0.7, alpha=0.7)
    figure.tight_layout()
    return figure

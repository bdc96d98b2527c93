"""What the pictures of a report show, read back from what was drawn; and the three stages, measured by NumPy."""

import csv
import io

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.patches import StepPatch

from experiments import problems
from experiments.jobs import figures
from experiments.main import load
from experiments.runtime import drawing, results
from experiments.runtime.results import GIVEN, NONE, TUNED
from experiments.tools import three_stages
from guidance import sampling, weights
from guidance.tables import Row
from tests.conftest import REPOSITORY
from tests.experiments import two_numbers


@pytest.fixture
def problem():
    return two_numbers.problem(two_numbers.Measured())


def row(kind, method, steps, nfe, value, error, **settings):
    return Row("p", method, "w", settings, "ddim", steps, nfe, 3, "error", value, error, 0.05, kind)


LEARNED = {"family": "rollout", "line": "rollout"}
ROWS = [
    row(NONE, "unguided", 10, 10, 0.9, 0.01, family="unguided"), row(GIVEN, "constant", 10, 20, 0.5, 0.02, omega=1.0),
    row(GIVEN, "constant", 10, 20, 0.7, 0.03, omega=0.5),
    row(TUNED, "best constant", 10, 20, 0.45, 0.04, family="constant"),
    row(results.LEARNED, "rollout@10", 10, 20, 0.3, 0.05, **LEARNED),
    row(NONE, "unguided", 5, 5, 1.1, 0.01, family="unguided"), row(GIVEN, "constant", 5, 10, 0.8, 0.02, omega=1.0),
    row(results.LEARNED, "rollout@5", 5, 10, 0.6, 0.06, **LEARNED),
]  # fmt: skip


def lines(axes):
    """{label: (x, y)} of what has a label; of stairs the edges and the values."""
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    for container in axes.containers:
        found[container.get_label()] = tuple(map(list, container.lines[0].get_data()))
    for patch in axes.patches:
        if isinstance(patch, StepPatch):
            found[patch.get_label()] = (list(patch.get_data().edges), list(patch.get_data().values))
    return {label: data for label, data in found.items() if not label.startswith("_")}


def legend(picture):
    [shown] = picture.figure.legends
    return [text.get_text() for text in shown.get_texts()]


def numbers(picture, name, *columns):
    """The columns of the lines of the data in which `name` stands."""
    at = [list(picture.columns).index(column) for column in columns]
    return [tuple(line[i] for i in at) for line in picture.lines if name in line]


def test_the_sweep(problem):
    """A panel for each number of steps: constants over omega, unguided among them as 0; the learned one as a line."""
    drawn = figures.sweep(problem, ROWS)
    few, many = drawn.figure.get_axes()
    assert [axes.get_title() for axes in (few, many)] == ["5 steps", "10 steps"]
    shown = lines(many)
    assert shown["constant omega"] == ([0.0, 0.5, 1.0], [0.9, 0.7, 0.5])
    assert shown["rollout"][1] == [0.3, 0.3] and shown["true data"][1] == [0.05, 0.05]
    assert lines(few)["rollout"][1] == [0.6, 0.6]
    bands = [patch.get_extents().transformed(many.transData.inverted()) for patch in many.patches]
    assert [(band.y0, band.y1) for band in bands] == [pytest.approx((0.25, 0.35))]
    assert sorted(legend(drawn)) == ["constant omega", "rollout", "true data"]
    assert numbers(drawn, "rollout", "steps", "error", "standard_error") == [(5, 0.6, 0.06), (10, 0.3, 0.05)]
    constants = numbers(drawn, "constant omega", "steps", "omega", "error", "standard_error")
    assert constants == [(5, 0, 1.1, 0.01), (5, 1, 0.8, 0.02), (10, 0, 0.9, 0.01), (10, 0.5, 0.7, 0.03),
                         (10, 1, 0.5, 0.02)]  # fmt: skip


def test_the_legend_has_what_is_in_any_panel(problem):
    """A method that was evaluated at one number of steps only is named, wherever its panel is."""
    rows = [r for r in ROWS if r.method != "rollout@10"] + [row(TUNED, "best ramp", 10, 20, 0.4, 0.1, family="ramp")]
    assert set(legend(figures.sweep(problem, rows))) == {"constant omega", "rollout", "best ramp", "true data"}


def test_quality_against_evaluations(problem):
    """A line for each method over the numbers of steps, whatever was learned for which."""
    drawn = figures.quality_against_nfe(problem, ROWS)
    [axes] = drawn.figure.get_axes()
    shown = lines(axes)
    assert shown["rollout"] == ([10, 20], [0.6, 0.3]) and shown["unguided"] == ([5, 10], [1.1, 0.9])
    assert shown["best constant"] == ([20], [0.45]) and "constant" not in shown
    [bars] = [c.lines[2][0] for c in axes.containers if c.get_label() == "rollout"]
    half = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    assert half == pytest.approx([0.06, 0.05])
    found = numbers(drawn, "rollout", "steps", "nfe", "error", "standard_error")
    assert sorted(found) == [(5, 10, 0.6, 0.06), (10, 20, 0.3, 0.05)]


@pytest.mark.parametrize("count, height", [(1, 0.5), (1, -0.5), (30, 2.0)])
def test_one_number_of_steps_is_drawn_whole(problem, count, height):
    """Every error bar and the legend lie inside, however few numbers of evaluations and however many methods."""
    rows = [row(TUNED, f"a method of a long name {i}", 10, 20, height, 0.3, family=str(i)) for i in range(count)]
    figure = figures.quality_against_nfe(problem, rows).figure
    figure.savefig(io.BytesIO())  # which places the legend
    [axes] = figure.get_axes()
    low, high = axes.get_ylim()
    assert low < height - 0.3 and high > height + 0.3 and axes.get_xlim()[0] < 20 < axes.get_xlim()[1]
    box = axes.get_legend().get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and figure.bbox.y0 <= box.y0
    assert not box.overlaps(axes.get_window_extent())


def test_the_chosen_checkpoint_is_marked(problem):
    said = {"task": "l2", "family": "l2", "seed": 0}
    scores = [said | {"update": u, "score": v} for u, v in ((20, 0.4), (10, 0.3), (30, 0.5))]
    drawn = figures.selection(problem, scores)
    [axes] = drawn.figure.get_axes()
    curve, mark = axes.get_lines()
    assert list(curve.get_xdata()) == [10, 20, 30] and list(curve.get_ydata()) == [0.3, 0.4, 0.5]
    assert np.ravel(mark.get_xdata()).tolist() == [10] and np.ravel(mark.get_ydata()).tolist() == [0.3]
    assert numbers(drawn, "l2", "update", "error", "chosen") == [(10, 0.3, 1), (20, 0.4, 0), (30, 0.5, 0)]


def test_weights_along_the_sampler(problem):
    """A line for each class over the steps that it guides; the best hand-made one in every panel."""
    entries = {
        "unguided": {"table": [[0.0, 0.0]] * 3, "key": {"in full": "unguided"}},
        "best constant": {"table": [[0.5, 0.5]] * 3, "key": {"in full": "constant"}},
        "l2": {"table": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "key": {"in full": "l2", "learned": "l2"}},
    }
    drawn = figures.omega_over_time(problem, np.array([1.0, 0.6, 0.3, 0.0]), entries)
    [axes] = drawn.figure.get_axes()
    shown = lines(axes)
    assert axes.get_title() == "l2" and set(legend(drawn)) == shown.keys() == {"best constant", "class 0", "class 1"}
    assert shown["class 0"] == ([1.0, 0.6, 0.3, 0.0], [1.0, 3.0, 5.0]) and shown["class 1"][1] == [2.0, 4.0, 6.0]
    assert shown["best constant"][1] == [0.5, 0.5, 0.5]
    assert numbers(drawn, "class 1", "t", "s", "omega") == [(1.0, 0.6, 2.0), (0.6, 0.3, 4.0), (0.3, 0.0, 6.0)]
    assert {line[1] for line in drawn.lines} == shown.keys()


def test_steps_are_drawn_where_the_sampler_uses_them():
    """A step starts at the time at which its weight is evaluated: (0.2, 0.8] of ten steps runs from 0.8 to 0.2."""
    grid = np.asarray(sampling.uniform_grid(10))
    table = weights.tabulated(weights.interval(2.0, 0.2, 0.8), grid, np.arange(2))
    _, axes = drawing.subplots()
    drawing.over_conditions(axes, grid[:-1], grid[1:], table, ["a", "b"])
    corners = axes.patches[0].get_path().vertices
    np.testing.assert_allclose(corners[corners[:, 1] > 1, 0][[0, -1]], [0.8, 0.2], atol=1e-6)
    drawing.over_conditions(axes, grid[:-1], grid[:-1] - 0.05, table, ["a", "b"])  # steps that leave gaps: a curve
    [curve] = axes.get_lines()
    np.testing.assert_array_equal(curve.get_xdata(), grid[:-1])


@pytest.mark.parametrize("count", [1, 7, 10, 23])
def test_every_class_that_is_drawn_is_named(count):
    figure, axes = drawing.subplots(layout="compressed")
    omega = np.arange(2 * count).reshape(2, count) ** 2
    lines_of = drawing.over_conditions(axes, [1.0, 0.5], [0.5, 0.0], omega, [f"n{c}" for c in range(count)])
    drawing.legend(figure)
    named = legend(drawing.Picture(figure))
    classes = [name for name in named if name[0] == "n"]
    assert len(axes.patches) == len(named) and named == list(dict.fromkeys(line[0] for line in lines_of))
    if count == 1:
        assert named == ["every condition"]
    elif count <= 10:
        assert named == [f"n{c}" for c in range(count)]
    else:
        assert len(classes) == 10 and {"n0", "n22"} <= set(classes) and named[-1] == "mean of 23"
    for patch, name in zip(axes.patches, named, strict=True):
        column = {"every condition": omega[:, 0], "mean of 23": omega.mean(1)}.get(name)
        expected = omega[:, int(name[1:])] if column is None else column
        assert list(patch.get_data().values) == list(expected)


def test_the_map_of_a_weight(problem):
    """omega(s, t) below the diagonal, t to the right and s upwards, the mean over the classes 0 and 1."""
    weight = lambda t, s, cond: t + 10 * s + cond  # noqa: E731
    picture = figures.omega_map(problem, {"rollout@4": (weight, 4)})
    axes, scale = picture.figure.get_axes()
    side = np.linspace(0.01, 0.99, 60)
    t, s = np.meshgrid(side, side)
    drawn = np.ma.filled(np.ma.masked_invalid(axes.collections[0].get_array().reshape(60, 60)), np.nan)
    expected = np.where(s < t, t + 10 * s + 0.5, np.nan)
    np.testing.assert_allclose(drawn, expected, rtol=1e-4)
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0, 0.75]]  # steps of a quarter
    assert "omega" in scale.get_ylabel()
    t, s, omega = np.array([line[1:] for line in picture.lines], float).T
    assert len(omega) == np.isfinite(expected).sum()
    np.testing.assert_allclose(omega, t + 10 * s + 0.5, rtol=1e-4)


@pytest.mark.parametrize("count", [30, 500])
def test_every_panel_has_as_many_samples(count):
    """True data too; at most 400 of each class; the classes are named once, and the data are the points drawn."""
    mixture = problems.build(load(str(REPOSITORY / "configs/mixture.py")))
    sets = {"a": np.random.default_rng(0).normal(size=(4, count, 2))}
    drawn = figures.samples(mixture, sets)
    assert legend(drawn) == [f"class {c}" for c in range(4)]
    for axes, name in zip(drawn.figure.get_axes(), ("true data", "a"), strict=True):
        found = [c.get_offsets() for c in axes.collections if isinstance(c, PathCollection)]
        assert axes.get_title() == name and [len(points) for points in found] == [min(count, 400)] * 4
        np.testing.assert_array_equal(numbers(drawn, name, "x1", "x2"), np.concatenate(found))


def test_a_picture_is_saved_with_its_data(tmp_path):
    figure, axes = drawing.subplots()
    axes.plot([1, 2], [0.25, 1 / 3])
    data = [("a, b", 1, 0.25), ("c", np.float32(2), 1 / 3), ("d", None, np.nan)]
    drawing.Picture(figure, ("line", "t", "omega"), data).save(tmp_path / "omega.png")
    assert (tmp_path / "omega.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "omega.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["line", "t", "omega"], ["a, b", "1", "0.25"], ["c", "2", "0.333333"], ["d", "", ""],
        ]  # fmt: skip
    drawing.Picture(figure).save(tmp_path / "images.png")
    assert {path.name for path in tmp_path.iterdir()} == {"omega.png", "omega.csv", "images.png"}


def test_what_the_stages_measure():
    """From the paths themselves: distances to (1 + omega) m, posteriors of the weak mode, the strong one."""
    measured = three_stages.measure(samples=300, steps=30, seed=1)
    means, shares, v = three_stages.MEANS, three_stages.SHARES, three_stages.VARIANCE
    path, grid = np.asarray(measured.path, np.float64), np.asarray(measured.grid, np.float64)
    omegas = [*three_stages.OMEGAS, *three_stages.OMEGAS[1:]]
    for run in (0, 2, 5):
        target = (1 + omegas[run]) * (shares @ means)
        square = ((path - target) ** 2).sum(-1).mean(-1)
        np.testing.assert_allclose(measured.distance[run], square[run] / square[0], rtol=1e-3)
        gaps = ((path[run][:, :, None] - (1 - grid[:, None, None, None]) * means) ** 2).sum(-1)
        variance = (1 - grid) ** 2 * v + grid**2
        joint = shares * np.exp(-(gaps - gaps.min(-1, keepdims=True)) / (2 * variance[:, None, None]))
        member = joint / joint.sum(-1, keepdims=True)
        np.testing.assert_allclose(measured.weak[run], member[..., 0].mean(-1), rtol=1e-3, atol=1e-6)
        strong = ((path[run, -1][:, None] - means) ** 2).sum(-1).argmin(-1) == 1
        spread = path[run][:, strong].var(1, ddof=1).mean(-1) ** 0.5
        np.testing.assert_allclose(measured.spread[run], spread, rtol=1e-3, atol=1e-5)
        entropy = -np.where(member > 0, member * np.log(np.where(member > 0, member, 1)), 0).sum(-1)
        decided = 1 - entropy.mean(-1) / -(shares * np.log(shares)).sum()
        np.testing.assert_allclose(measured.decided[run], decided, rtol=1e-3, atol=1e-4)

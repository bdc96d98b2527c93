"""What the pictures of a report show, read back from what was drawn; and the three stages, measured by NumPy."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.jobs import figures
from experiments.runtime import records
from experiments.runtime.records import GIVEN, NONE, TUNED
from experiments.tools import three_stages
from tests.experiments import two_numbers


@pytest.fixture
def problem():
    yield two_numbers.problem(two_numbers.Measured())
    plt.close("all")


def row(kind, method, steps, nfe, value, error, **settings):
    return records.Row("p", method, "w", settings, "ddim", steps, nfe, 3, "error", value, error, 0.05, kind)


LEARNED = {"family": "rollout", "line": "rollout"}
ROWS = [
    row(NONE, "unguided", 10, 10, 0.9, 0.01, family="unguided"), row(GIVEN, "constant", 10, 20, 0.5, 0.02, omega=1.0),
    row(GIVEN, "constant", 10, 20, 0.7, 0.03, omega=0.5),
    row(TUNED, "best constant", 10, 20, 0.45, 0.04, family="constant"),
    row(records.LEARNED, "rollout@10", 10, 20, 0.3, 0.05, **LEARNED),
    row(NONE, "unguided", 5, 5, 1.1, 0.01, family="unguided"), row(GIVEN, "constant", 5, 10, 0.8, 0.02, omega=1.0),
    row(records.LEARNED, "rollout@5", 5, 10, 0.6, 0.06, **LEARNED),
]  # fmt: skip


def lines(axes):
    """{label: (x, y)} of what has a label."""
    found = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    for container in axes.containers:
        found[container.get_label()] = tuple(map(list, container.lines[0].get_data()))
    return {label: data for label, data in found.items() if not label.startswith("_")}


def test_the_sweep(problem):
    """A panel for each number of steps: constants over omega, unguided among them as 0; the learned one as a line."""
    few, many = figures.sweep(problem, ROWS).get_axes()
    assert [axes.get_title() for axes in (few, many)] == ["5 steps", "10 steps"]
    shown = lines(many)
    assert shown["constant omega"] == ([0.0, 0.5, 1.0], [0.9, 0.7, 0.5])
    assert shown["rollout@10"][1] == [0.3, 0.3] and shown["true data"][1] == [0.05, 0.05]
    assert "rollout@5" not in shown and lines(few)["rollout@5"][1] == [0.6, 0.6]
    bands = [patch.get_extents().transformed(many.transData.inverted()) for patch in many.patches]
    assert [(band.y0, band.y1) for band in bands] == [pytest.approx((0.25, 0.35))]


def test_quality_against_evaluations(problem):
    """A line for each method over the numbers of steps, whatever was learned for which."""
    [axes] = figures.quality_against_nfe(problem, ROWS).get_axes()
    shown = lines(axes)
    assert shown["rollout"] == ([10, 20], [0.6, 0.3]) and shown["unguided"] == ([5, 10], [1.1, 0.9])
    assert shown["best constant"] == ([20], [0.45]) and "constant" not in shown
    [bars] = [c.lines[2][0] for c in axes.containers if c.get_label() == "rollout"]
    half = [(segment[1, 1] - segment[0, 1]) / 2 for segment in bars.get_segments()]
    assert half == pytest.approx([0.06, 0.05])


def test_the_chosen_checkpoint_is_marked(problem):
    said = {"task": "l2", "family": "l2", "seed": 0}
    scores = [said | {"update": u, "score": v} for u, v in ((20, 0.4), (10, 0.3), (30, 0.5))]
    [axes] = figures.selection(problem, scores).get_axes()
    curve, mark = axes.get_lines()
    assert list(curve.get_xdata()) == [10, 20, 30] and list(curve.get_ydata()) == [0.3, 0.4, 0.5]
    assert np.ravel(mark.get_xdata()).tolist() == [10] and np.ravel(mark.get_ydata()).tolist() == [0.3]


def test_weights_along_the_sampler(problem):
    """A line for each class at the starts of the steps; the best hand-made one in every panel."""
    entries = {
        "unguided": {"table": [[0.0, 0.0]] * 3, "key": {"in full": "unguided"}},
        "best constant": {"table": [[0.5, 0.5]] * 3, "key": {"in full": "constant"}},
        "l2": {"table": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "key": {"in full": "l2", "learned": "l2"}},
    }
    [axes] = figures.omega_over_time(problem, np.array([1.0, 0.6, 0.3, 0.0]), entries).get_axes()
    shown = lines(axes)
    assert axes.get_title() == "l2" and shown.keys() == {"best constant", "class 0", "class 1"}
    assert shown["class 0"] == ([1.0, 0.6, 0.3], [1.0, 3.0, 5.0]) and shown["class 1"][1] == [2.0, 4.0, 6.0]
    assert shown["best constant"] == ([1.0, 0.6, 0.3], [0.5, 0.5, 0.5])


def test_the_map_of_a_weight(problem):
    """omega(s, t) below the diagonal, t to the right and s upwards, the mean over the classes 0 and 1."""
    weight = lambda t, s, cond: t + 10 * s + cond  # noqa: E731
    axes = figures.omega_map(problem, {"rollout@4": (weight, 4)}).get_axes()[0]
    side = np.linspace(0.01, 0.99, 60)
    t, s = np.meshgrid(side, side)
    drawn = np.ma.filled(np.ma.masked_invalid(axes.collections[0].get_array().reshape(60, 60)), np.nan)
    expected = np.where(s < t, t + 10 * s + 0.5, np.nan)
    np.testing.assert_allclose(drawn, expected, rtol=1e-4)
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0, 0.75]]  # steps of a quarter


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

"""The numbers of base training: its batches, its loss, its optimiser, its averages, and that a stop changes none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from experiments.jobs import train
from experiments.runtime import progress
from guidance.learning import averages
from tests.experiments import two_numbers

BASE = {
    "steps": 12, "batch": 8, "learning_rate": 0.02, "condition_dropout": 0.3, "guidance_matched": 0.0, "accumulate": 1,
    "weighting": "prediction", "averages": (), "keep": (), "pictures": 0,
}  # fmt: skip


def config(**changes):
    values = {"job": "train", "seed": 4, "seeds": 1, "base": BASE | changes, "learn": {"checkpoint_every": 5}}
    return config_dict.ConfigDict(values, convert_dict=True)


@pytest.fixture
def problem():
    return two_numbers.problem(two_numbers.Measured())


def batches(problem, base):
    """key -> one batch without the axis of its parts, in numpy."""
    draw = jax.jit(lambda key: train._batch(problem, base, key, ()))

    def at(key):
        return train.Batch(*(np.asarray(leaf, np.float64).reshape(-1, *leaf.shape[2:]) for leaf in draw(key)))

    return at


def test_a_dropped_condition_is_the_null_one_and_no_other(problem):
    """Each with its chance; where it is kept it is still that of its sample: x0 is about 2 (c + 1) here."""
    n = 4000
    batch = batches(problem, config(batch=n, accumulate=4).base)(jax.random.key(0))
    dropped = batch.cond == two_numbers.NULL
    assert abs(dropped.mean() - 0.3) < 5 * (0.3 * 0.7 / n) ** 0.5
    own = np.rint(batch.x0[:, 0] / 2 - 1)
    np.testing.assert_array_equal(batch.cond[~dropped], own[~dropped])
    assert set(own[dropped]) == {0, 1}, "of either class"
    assert batch.t.min() >= 1e-3 and batch.t.max() <= 1
    assert abs(batch.t.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(batch.eps.mean()) < 5 * (2 * n) ** -0.5 and abs(batch.eps.var() - 1) < 5 * (2 / (2 * n)) ** 0.5
    for one, other in ((batch.t, batch.eps[:, 0]), (batch.t, dropped), (batch.x0[:, 0], batch.eps[:, 0])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 * n**-0.5


def loss_and_slope(batch, a, omega):
    """Mean |(1 + omega) f_c - omega f_null - x0|^2 and its slope in a, through f_c alone; dropped rows are plain."""
    x = (1 - batch.t)[:, None] * batch.x0 + batch.t[:, None] * batch.eps
    dropped = batch.cond == two_numbers.NULL
    extra = np.where(dropped, 0.0, omega)
    label = np.where(dropped, -1.0, batch.cond)
    guided = np.stack([a + (1 + extra) * (label + 1), x[:, 1] / 2], axis=1)
    off = guided - batch.x0
    return np.mean(np.sum(off**2, axis=1)), np.mean(2 * off[:, 0] * (1 + extra))


@pytest.mark.parametrize("omega", [0.0, 2.0])
def test_the_loss_is_the_documented_one(problem, omega):
    base = config(guidance_matched=omega, batch=32).base
    drawn = train._batch(problem, base, jax.random.key(1), ())
    batch = batches(problem, base)(jax.random.key(1))
    one_part = jax.tree.map(lambda leaf: leaf[0], drawn)
    loss = jax.jit(jax.value_and_grad(lambda params: train._loss(problem, base, params, one_part)))
    value, slope = loss({"a": jnp.float32(0.3)})
    expected = loss_and_slope(batch, 0.3, omega)
    assert (float(value), float(slope["a"])) == pytest.approx(expected, rel=1e-5)


def test_a_network_is_trained_on_its_own_prediction(problem):
    """Velocity: eps - x0 for rectified flow. A network that answers a everywhere has mean |a - (eps - x0)|^2."""
    network = problem.model.network._replace(apply=lambda params, x, t, cond: params["a"] + 0 * x, kind="velocity")
    problem = problem._replace(model=problem.model._replace(network=network))
    base = config(batch=32).base
    batch = batches(problem, base)(jax.random.key(2))
    one_part = jax.tree.map(lambda leaf: leaf[0], train._batch(problem, base, jax.random.key(2), ()))
    loss = jax.jit(lambda params: train._loss(problem, base, params, one_part))({"a": jnp.float32(0.3)})
    assert float(loss) == pytest.approx(np.mean(np.sum((0.3 - batch.eps + batch.x0) ** 2, axis=1)), rel=1e-5)


def by_hand(problem, base, seed, steps):
    """`a` before and after every update: Adam, whose rate falls as half a cosine over base.steps, in NumPy."""
    key = jax.random.key(seed)
    a, m, v = float(two_numbers.init(jax.random.fold_in(key, 0))["a"]), 0.0, 0.0
    path, update_key, batch_at = [a], jax.random.fold_in(key, 1), batches(problem, base)
    for i in range(steps):
        _, g = loss_and_slope(batch_at(jax.random.fold_in(update_key, i)), a, 0.0)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = base.learning_rate * (1 + np.cos(np.pi * i / base.steps)) / 2
        a -= rate * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.999 ** (i + 1))) + 1e-8)
        path.append(a)
    return path


def trained(problem, config, folder):
    folder.mkdir(exist_ok=True)
    return train.run(problem, config, folder)


def test_updates_are_adams_and_every_seed_its_own(problem, tmp_path):
    settings = config()
    settings.seeds = 2
    found = trained(problem, settings, tmp_path)
    expected = [by_hand(problem, settings.base, seed, 12)[-1] for seed in (4, 5)]
    assert [float(params["a"]) for params in found] == pytest.approx(expected, rel=1e-4)
    assert abs(expected[0] - expected[1]) > 1e-2


def test_a_stop_in_the_middle_changes_no_bit(problem, tmp_path, monkeypatch):
    """Stopped after update 7 of 12: the moments of Adam and the averages go on from where they were."""
    settings = config(averages=(0.2,))
    [whole] = trained(problem, settings, tmp_path / "whole")
    asked = []

    def stop_requested():
        asked.append(1)
        return len(asked) == 7

    with monkeypatch.context() as patched:
        patched.setattr(progress, "stop_requested", stop_requested)
        with pytest.raises(progress.Stopped):
            trained(problem, settings, tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped" / "base" / "seed_4").glob("step_*")][-1] == "step_0000000007"
    [resumed] = trained(problem, settings, tmp_path / "stopped")
    assert float(resumed["a"]) == float(whole["a"])


def test_averages_and_what_is_kept(problem, tmp_path):
    """The params after every update, then their averages: the mean of p_1 .. p_t under the profile of its width.

    beta_t = (1 - 1/t)^(gamma + 1), arXiv 2312.02696, eq. 127; what is kept of update 6 is the average then.
    """
    path = by_hand(problem, config().base, 4, 12)[1:]
    plain = config(keep=(3, 12))
    [last] = trained(problem, plain, tmp_path / "plain")
    assert float(last["a"]) == pytest.approx(path[-1], rel=1e-4)
    assert float(train.kept(problem, plain, tmp_path / "plain", 4, 3)["a"]) == pytest.approx(path[2], rel=1e-4)
    mean, means = 0.0, []
    for t, value in enumerate(path, 1):
        beta = (1 - 1 / t) ** (averages.exponent(0.2) + 1)
        mean = beta * mean + (1 - beta) * value
        means.append(mean)
    averaged = config(averages=(0.2, 0.1), keep=(6,))
    [last] = trained(problem, averaged, tmp_path / "averaged")
    kept = train.kept(problem, averaged, tmp_path / "averaged", 4, 6)
    assert (float(last["a"]), float(kept["a"])) == pytest.approx((means[-1], means[5]), rel=1e-4)
    assert abs(means[-1] - path[-1]) > 1e-3 and abs(means[5] - path[5]) > 1e-3

"""The jobs on conditions that are trees: where they are functions of a label, every number is that of the label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.files import weight_files
from experiments.jobs import evaluate, learn, sample, samplers, train
from experiments.main import load
from experiments.runtime import progress
from guidance import sampling, weights
from tests.conftest import REPOSITORY
from tests.experiments import two_numbers

CONFIG = str(REPOSITORY / "configs/mixture.py")
TINY = {
    "seed": "5", "seeds": "1", "figures": "False", "base.steps": "2", "base.batch": "8", "base.learning_rate": "0.1",
    "base.condition_dropout": "0.5", "base.pictures": "1", "learn.objectives": "l2,per_condition,rollout",
    "learn.batch": "8", "learn.rollout_batch": "4", "learn.rollout_real": "4", "learn.width": "8", "learn.depth": "2",
    "learn.embedding": "8", "eval.steps": "3", "eval.samples": "6", "eval.omegas": "0,0.5,1",
    "eval.intervals": "((0.2,0.8),)", "eval.clamp": "()",
}  # fmt: skip


def both():
    """(problem, its instrument) by label and by tree."""
    for change in (lambda problem: problem, two_numbers.by_tree):
        instrument = two_numbers.Measured()
        yield change(two_numbers.problem(instrument)), instrument


@pytest.mark.parametrize("matched", ["0", "0.5"])
@pytest.mark.key_reuse  # the same noise under both
def test_training_drops_conditions_of_every_kind_alike(matched, tmp_path):
    config = load(CONFIG, TINY | {"base.guidance_matched": matched})
    levels = []
    for i, (problem, _) in enumerate(both()):
        (tmp_path / f"{i}").mkdir()
        [params] = train.run(problem, config, tmp_path / f"{i}")
        levels.append(float(params["a"]))
        assert len(list((tmp_path / f"{i}" / "pictures").iterdir())) == 1
    assert levels[1] == pytest.approx(levels[0], rel=1e-6) and 0 < abs(levels[0]) < 1


@pytest.mark.key_reuse  # the same noise under both
def test_trees_are_fed_from_disk_as_they_are_drawn(tmp_path):
    config, [_, (drawn, _)] = load(CONFIG, TINY), both()

    def feed(batch, part, seed):
        key = jax.random.fold_in(jax.random.key(seed), 1)
        draw = lambda i: drawn.data.draw(jax.random.split(jax.random.fold_in(key, i), 4)[0], (), batch)  # noqa: E731
        return lambda i: jax.tree.map(np.asarray, draw(i))

    levels = []
    for name, data in (("drawn", drawn.data), ("fed", drawn.data._replace(draw=None, feed=feed))):
        (tmp_path / name).mkdir()
        [params] = train.run(drawn._replace(data=data), config, tmp_path / name)
        levels.append(float(params["a"]))
    assert levels[1] == pytest.approx(levels[0], rel=1e-6)


def test_a_broken_batch_is_kept_leaf_by_leaf(tmp_path):
    _, (problem, _) = both()

    def draw(key, arrays, n):
        x0, cond = problem.data.draw(key, arrays, n)
        return x0 * jnp.nan, cond

    with pytest.raises(progress.Diverged):
        train.run(problem._replace(data=problem.data._replace(draw=draw)), load(CONFIG, TINY), tmp_path)
    [path] = tmp_path.rglob("broken_batch.npz")
    with np.load(path) as held:
        assert set(held) == {"x0", "eps", "t", "cond.label", "cond.sign"}
        assert held["cond.sign"].shape == (1, 8, 1)


@pytest.mark.key_reuse  # the same noise under both
def test_samples_of_a_table(tmp_path):
    """Six samples of two conditions, and one of fewer samples than conditions."""
    table, config = np.asarray([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], np.float32), load(CONFIG, TINY)
    for count in (6, 1):
        (x, nfe), (x_tree, nfe_tree) = (
            samplers.sampler(problem, config, 3, count)({"a": jnp.float32(0.25)}, table, jax.random.key(0))
            for problem, _ in both()
        )
        np.testing.assert_array_equal(x_tree, x)
        np.testing.assert_allclose(x[..., 0].mean(1), two_numbers.ends(0.25, table[-1])[: len(x)], rtol=1e-6)
        assert nfe_tree == nfe == 6


@pytest.mark.key_reuse  # the same noise for every weight and under both
def test_evaluation(tmp_path):
    """Rows and samples of hand-made weights are equal; learned ones are there."""
    config, found = load(CONFIG, TINY | {"learn.objectives": "l2", "learn.iterations": "2"}), []
    for i, (problem, instrument) in enumerate(both()):
        (tmp_path / f"{i}").mkdir()
        rows = evaluate.run(problem, config, tmp_path / f"{i}")
        assert any(row.method == "l2" for row in rows)
        found.append(([row for row in rows if "l2" not in row.method], instrument.shown[:-1]))
        path = tmp_path / f"{i}" / "weights" / "l2_seed_5.safetensors"
        weight, about = weight_files.read(path)
        weight_files.check_fits(path, about, two_numbers.SCHEDULE, problem.model.conditions, problem.model.null)
        table = weights.tabulated(weight, sampling.uniform_grid(3), problem.model.conditions)
        [row] = [row for row in rows if row.method == "l2" and row.metric == "median_omega"]
        assert row.value == pytest.approx(float(np.median(table)), rel=1e-6)
    assert found[1][0] == found[0][0] and len(found[0][0]) > 5
    for (_, x_tree, _), (_, x, _) in zip(found[1][1], found[0][1], strict=True):
        np.testing.assert_array_equal(x_tree, x)


@pytest.mark.key_reuse  # the same noise under both
def test_what_is_learned_of_a_tree_depends_on_its_numbers(tmp_path):
    """A weight that ignores the condition has the same losses under both; on a tree the network is one of features."""
    config, losses, base = load(CONFIG, TINY), [], {"a": jnp.float32(0.25)}
    for problem, _ in both():
        net = learn.network(problem, config)
        one = jax.tree.map(lambda leaf: leaf[:1], problem.model.conditions)
        # as it starts: a constant, whatever the condition
        params = net.init(jax.random.key(1), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=one)
        found = learn.tasks(problem, config)
        data = problem.data.arrays
        losses.append({task.name: float(jax.jit(task.loss)(params, jax.random.key(2), base, data)) for task in found})
        assert net.condition == ("label" if problem.model.columns is None else "features")
    assert losses[1] == pytest.approx(losses[0], rel=1e-6) and len(losses[0]) == 3
    params = jax.tree.map(lambda a: a + 0.1, params)
    table = weights.tabulated(found[0].weight(params), sampling.uniform_grid(3), problem.model.conditions)
    assert (np.abs(table[:, 0] - table[:, 1]) > 1e-3).all()


@pytest.mark.key_reuse  # the same noise under both
def test_samples_of_a_job(tmp_path):
    """sample.labels numbers the conditions in their order."""
    more = {
        "job": "sample",
        "sample.seeds": "0-4",
        "sample.labels": "1,0",
        "sample.steps": "2",
        "sample.weight": "0.5",
    }
    config, held = load(CONFIG, TINY | more | {"sample.output": "npz,grid"}), []
    for i, (problem, _) in enumerate(both()):
        (tmp_path / f"{i}").mkdir()
        sample.run(problem, config, tmp_path / f"{i}")
        with np.load(tmp_path / f"{i}" / config.sample.into / "samples.npz") as arrays:
            held.append(dict(arrays))
    jax.tree.map(np.testing.assert_array_equal, held[1], held[0])
    np.testing.assert_array_equal(held[0]["arr_1"], [1, 0, 1, 0, 1])
    assert np.isfinite(held[0]["arr_0"]).all()

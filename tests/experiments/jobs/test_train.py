"""The job that trains the base denoiser: what its options change in the network that comes out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from experiments import problems
from experiments.jobs import train
from experiments.main import load
from experiments.problems import interface
from experiments.problems.mixtures import mixture
from experiments.runtime import checkpoints
from guidance import guides, predictions, rules, schedules
from guidance.schedules import diffuse
from guidance.truth import mixtures
from tests.conftest import REPOSITORY

CONFIG = str(REPOSITORY / "configs/mixture.py")


@functools.cache
def _truth():
    """Noised data, its exact D_c, and the labels."""
    config = load(CONFIG)
    problem = problems.build(config)
    schedule = problem.model.schedule
    x0, cond = problem.data.draw(jax.random.key(1), problem.data.arrays, 1000)
    t = jnp.linspace(0.2, 0.9, 1000)
    x = diffuse(schedule, x0, jax.random.normal(jax.random.key(2), x0.shape), t)
    return x, t, cond, jax.jit(mixtures.denoise(mixture.truth(config.problem), schedule))(x, t, cond)


def _errors(workdir, trained):
    """E|D_guided - exact D_c|^2 of a network that was trained at one weight, by the weight that it is guided at."""
    overrides = {"seeds": "1", "base.steps": "400", "base.width": "48", "base.guidance_matched": str(trained)}
    config = load(CONFIG, overrides)
    workdir.mkdir(exist_ok=True)
    problem = problems.build(config)
    [params] = train.run(problem, config, workdir)
    x, t, cond, exact = _truth()

    @jax.jit
    def guide(params, omega):
        positive, reference = guides.both_branches(problem.model.denoise(params), x, t, cond, problem.model.null)
        return rules.cfg(positive, reference, jnp.full(1000, omega))

    return {w: float(np.mean(np.sum(np.asarray(guide(params, w) - exact) ** 2, -1))) for w in (0.0, 1.0, 2.0, 4.0)}


@pytest.mark.slow
def test_a_guidance_matched_denoiser_is_right_when_guided_at_its_weight(tmp_path):
    """Trained at omega = 2 it is right at 2, and clearly less so at half and at twice that; the plain one at 0. Where
    it is right it is as right as the plain one, up to what two trainings of 400 updates differ by."""
    matched, plain = _errors(tmp_path / "matched", 2.0), _errors(tmp_path / "plain", 0.0)
    assert matched[2.0] < 0.75 * min(matched[0.0], matched[1.0], matched[4.0])
    assert plain[0.0] < 0.75 * min(plain[1.0], plain[2.0], plain[4.0])
    assert matched[2.0] == pytest.approx(plain[0.0], rel=0.4)


def _draw(key, arrays, n):
    return jax.random.normal(key, (n, 1)), jnp.zeros(n, jnp.int32)


def _problem():
    """A problem of one number per sample, whose network predicts eps with one parameter."""
    schedule = schedules.cosine()
    network = interface.Network(
        lambda key: {"a": jax.random.normal(key, ())}, lambda params, x, t, cond: params["a"] * x, "eps"
    )

    def denoise(params):
        return predictions.as_denoise(network.apply, params, "eps", schedule)

    def picture(axes, samples):
        axes.hist(np.asarray(samples).ravel())

    return interface.Problem(
        "one number",
        interface.Model(schedule, (1,), jnp.arange(2), 2, denoise, network),
        interface.Data(_draw, None),
        interface.Instrument(None, None, (), picture),
    )


BASE = {
    "steps": 12, "batch": 8, "learning_rate": 1e-2, "condition_dropout": 0.1, "guidance_matched": 0.0, "accumulate": 1,
    "weighting": "prediction", "averages": (), "keep": (), "pictures": 0,
}  # fmt: skip


def _config(**changes):
    return config_dict.ConfigDict(
        {"job": "train", "seed": 0, "seeds": 1, "base": BASE | changes, "learn": {"checkpoint_every": 5}},
        convert_dict=True,
    )


def test_the_min_snr_weight_is_the_published_one():
    """arXiv 2303.09556: the loss on eps gets the weight min(SNR, 5) / SNR."""
    params, base = {"a": jnp.float32(0.3)}, _config(weighting="min_snr", batch=4000).base
    problem, schedule = _problem(), _problem().model.schedule
    draw = jax.jit(lambda key: jax.tree.map(lambda leaf: leaf[0], train._batch(problem, base, key, ())))
    batch = draw(jax.random.key(4))
    x = diffuse(schedule, batch.x0, batch.eps, batch.t)
    snr = jnp.exp(schedule.log_snr(batch.t))
    expected = jnp.mean(jnp.minimum(snr, 5) / snr * jnp.sum((0.3 * x - batch.eps) ** 2, -1))
    loss = jax.jit(lambda params, batch: train._loss(problem, base, params, batch))(params, batch)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_accumulation_changes_the_memory_and_no_number(tmp_path):
    results = []
    for parts in (1, 4):
        (tmp_path / f"{parts}").mkdir()
        results += train.run(_problem(), _config(accumulate=parts), tmp_path / f"{parts}")
    np.testing.assert_allclose(results[0]["a"], results[1]["a"], rtol=1e-5)


def test_a_feed_takes_the_place_of_draws(tmp_path):
    """A problem fed with the pairs that it would have drawn trains to the same params; resumed runs ask from where
    they were."""
    asked = []

    def feed(batch, part, seed):
        assert (batch, part, seed) == (8, (0, 1), 0)

        def at(i):
            asked.append(i)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), i)
            return tuple(map(np.asarray, _draw(jax.random.split(key, 4)[0], (), batch)))

        return at

    fed = _problem()
    fed = fed._replace(data=fed.data._replace(feed=feed))
    for name in ("drawn", "fed"):
        (tmp_path / name).mkdir()
    [drawn] = train.run(_problem(), _config(), tmp_path / "drawn")
    [result] = train.run(fed, _config(), tmp_path / "fed")
    np.testing.assert_allclose(result["a"], drawn["a"], rtol=1e-6)
    assert asked == list(range(12))


def test_pictures_are_drawn_on_the_way_and_what_was_not_kept_is_named(tmp_path):
    """What is kept and averaged is worked out in `test_train_numbers`."""
    config, run = _config(keep=(6,), pictures=2), tmp_path / "run"
    run.mkdir()
    train.run(_problem(), config, run)
    assert sorted(path.name for path in (run / "pictures").iterdir()) == [
        "base_seed_0_update_0000006.png", "base_seed_0_update_0000012.png",
    ]  # fmt: skip
    with pytest.raises(checkpoints.CheckpointError, match="base.keep=7"):
        train.kept(_problem(), config, run, 0, 7)

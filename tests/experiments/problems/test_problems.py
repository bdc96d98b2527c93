"""The problems hand over what jobs expect: the right laws, disjoint splits, floors that are floors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data, problems
from experiments.config import ConfigError
from experiments.jobs import evaluate, learn, report, train
from experiments.main import load
from experiments.problems.mixtures import mixture
from guidance.truth import mixtures
from tests import oracles
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"


def test_mixture_modes_interleave_and_weights_differ():
    truth = mixture.truth(load(str(CONFIGS / "mixture.py")).problem)
    weights = np.exp(np.asarray(truth.log_weights[:-1]))
    np.testing.assert_allclose(np.sort(weights, axis=1)[:, -2:], [[1 / 3, 2 / 3]] * 4, rtol=1e-6)
    means = np.asarray(truth.means)
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 3.0, rtol=1e-6)
    own = [means[weights[c] > 0] for c in range(4)]
    np.testing.assert_allclose([np.linalg.norm(a - b) for a, b in own], 6.0, rtol=1e-6)  # opposite modes


@pytest.mark.parametrize("preset", ["exact", "attenuated", "under", "trained", "reward", "high_dimensional"])
def test_every_preset_builds_and_draws(preset):
    config = load(f"{CONFIGS / 'mixture.py'}:{preset}")
    problem = problems.build(config)
    draw, real = (jax.jit(one, static_argnums=2) for one in (problem.data.draw, problem.data.real))
    x0, cond = draw(jax.random.key(0), problem.data.arrays, 6)
    assert x0.shape == (6, *problem.model.shape) and cond.shape == (6,)
    drawn = real(jax.random.key(0), problem.data.arrays, 3, problem.model.conditions)
    assert drawn.shape == (config.problem.classes, 3, *problem.model.shape)
    assert (problem.reward is not None) == (preset == "reward")


def test_reward_targets_the_tilted_law():
    """E_tilted f = E[f e^r] / E[e^r], by self-normalised importance sampling from the untilted law."""
    config = load(f"{CONFIGS / 'mixture.py'}:reward")
    problem = problems.build(config)
    plain = mixture.truth(config.problem)
    real = jax.jit(problem.data.real, static_argnums=2)
    tilted = np.asarray(real(jax.random.key(1), problem.data.arrays, 20000, problem.model.conditions))

    @jax.jit
    def untilted(c):
        x = mixtures.sample(jax.random.key(2), plain, jnp.full(40000, c))
        return x, problem.reward(x, None)

    for c in range(config.problem.classes):
        x, reward = untilted(c)
        w = np.exp(np.asarray(reward) / config.problem.temperature)
        w /= w.sum()
        expected = (w[:, None] * np.asarray(x)).sum(0)
        spread = np.sqrt((w[:, None] ** 2 * (np.asarray(x) - expected[None]) ** 2).sum(0))
        error = np.hypot(spread, oracles.standard_error(tilted[c]))
        assert np.all(np.abs(tilted[c].mean(0) - expected) < 5 * error)


@pytest.mark.parametrize("job", [train, learn, evaluate, report])
@pytest.mark.parametrize("part", ["data", "instrument"])
def test_a_job_that_needs_a_missing_part_says_so_before_anything_else(job, part, tmp_path):
    config = load(f"{CONFIGS / 'mixture.py'}:under", {"base.pictures": "1", "learn.select_every": "5"})
    problem = problems.build(config)._replace(**{part: None})
    with pytest.raises(ConfigError, match=f"^job = all: mixture d=2, under comes without {part}; allowed: sample$"):
        job.run(problem, config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_imported_network_comes_without_data_and_instrument():
    problem = problems.build(load(f"{CONFIGS / 'sample.py'}", {"problem.weights": "random", "problem.vae": "random"}))
    assert (problem.data, problem.instrument, problem.reward) == (None, None, None)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    config = load(str(CONFIGS / "digits.py"), {"problem.classifier_steps": "300"})
    return problems.build(config, tmp_path_factory.mktemp("digits")).instrument


def test_digits_parts_are_disjoint_and_the_classifier_knows_digits(digits):
    own, judges, held = data.split(1797, (0.5, 0.25, 0.25), 0)
    assert not set(own) & set(judges) and not set(judges) & set(held) and not set(own) & set(held)
    floor = digits.floor(jax.random.key(0), 40, True)
    assert floor["class_agreement"] > 0.9  # chance is 0.1
    assert abs(floor["energy_distance"]) < 0.1 and floor["precision"] > 0.6


def test_digits_metrics_see_noise(digits):
    noise = jax.random.normal(jax.random.key(0), (10, 40, 8, 8, 1))
    bad, floor = digits.measure(jax.random.key(1), noise, True), digits.floor(jax.random.key(0), 40, True)
    assert bad["frechet_distance"] > 3 * floor["frechet_distance"]
    assert bad["energy_distance"] > 10 * abs(floor["energy_distance"])
    assert bad["pixel_energy_distance"] > 10 * abs(floor["pixel_energy_distance"])

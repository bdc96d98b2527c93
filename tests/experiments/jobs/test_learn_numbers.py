"""What job `learn` hands to the losses: the settings of the config, draws of the right sizes, the reward, the grid."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.jobs import learn
from experiments.main import load
from guidance import learning
from guidance.learning import one_step, rollout, training
from guidance.learning.training import Recipe
from tests.conftest import REPOSITORY
from tests.experiments import two_numbers

CONFIG = str(REPOSITORY / "configs/mixture.py")
FIELDS = {
    "learn.objectives": "self_consistency,l2,score_matching,marginal,per_condition,reward_only,rollout",
    "learn.gammas": "0,0.3", "learn.particles": "3", "learn.beta": "1.3", "learn.lambda_": "0.7", "learn.churn": "0.4",
    "learn.s_min": "0.02", "learn.zeta": "0.03", "learn.delta": "0.15", "learn.batch": "10", "learn.iterations": "50",
    "learn.rollout_iterations": "40", "learn.rollout_batch": "6", "learn.rollout_real": "8", "eval.steps": "12,6",
    "learn.learning_rate": "0.01", "learn.rollout_learning_rate": "0.02", "learn.width": "8", "learn.depth": "2",
    "learn.embedding": "8", "learn.remat": "segments", "problem.reward": "linear_quadratic((1,0))",
    "problem.error": "under",
}  # fmt: skip
LOSSES = {
    "self_consistency": "self_consistency", "l2": "l2", "score_matching": "score_matching",
    "marginal": "marginal_consistency", "per_condition": "per_condition_consistency", "reward_only": "reward_only",
}  # fmt: skip


def reward(x0, cond):
    return x0[:, 0] + cond


@pytest.fixture
def asked(monkeypatch):
    """{name of a loss: the arguments it was called with, by their names}."""
    found = {}

    def spied(module, name):
        signature = inspect.signature(getattr(module, name))

        def spy(*arguments, **named):
            found[name] = signature.bind(*arguments, **named).arguments
            return jnp.float32(len(found))

        monkeypatch.setattr(module, name, spy)

    for name in LOSSES.values():
        spied(one_step, name)
    spied(rollout, "rollout_loss")
    return found


def called(asked, name):
    """(arguments of the loss of the task called `name`, the task), at params of 0.3 + the network's own."""
    config = load(CONFIG, FIELDS)
    problem = two_numbers.problem(two_numbers.Measured())._replace(reward=reward)
    [task] = [one for one in learn.tasks(problem, config) if one.name == name]
    net = learn.network(problem, config)
    zero = jnp.zeros(1)
    params = net.init(jax.random.key(0), log_snr_t=zero, log_snr_s=zero, cond=jnp.zeros(1, jnp.int32))
    asked.clear()
    task.loss(jax.tree.map(lambda leaf: leaf + 0.3, params), jax.random.key(1), {"a": jnp.float32(0.25)}, ())
    [arguments] = asked.values()
    return arguments, task


@pytest.mark.parametrize("objective", LOSSES)
def test_one_step_objectives_get_what_the_config_says(asked, objective):
    gamma = 0.3 if objective == "self_consistency" else 0
    arguments, task = called(asked, objective + (" + 0.3 reward" if gamma else ""))
    assert arguments["settings"] == learning.OneStep(
        particles=3, beta=1.3, lam=0.7, churn=0.4, s_min=0.02, zeta=0.03, delta=0.15
    )
    assert (task.steps, task.recipe.updates, task.recipe.rate) == (None, 50, 0.01)
    model, x, t = arguments["model"], jnp.zeros((2, 2)), jnp.full(2, 0.5)
    assert model.null == two_numbers.NULL and model.schedule == two_numbers.SCHEDULE
    np.testing.assert_allclose(model.denoise(x, t, jnp.asarray([1, 2]))[:, 0], [2.25, 0.25])
    s, labels = jnp.asarray([0.3, 0.3]), jnp.asarray([0, 1])
    omega = arguments["weight"](t=jnp.full(2, 0.7), s=s, cond=labels)
    assert omega.shape == (2,) and float(omega[0]) != float(omega[1])
    if objective == "per_condition":  # as many denoiser evaluations as 10 points of 3 particles: 14 of each class
        assert arguments["real"].shape == (2, 14, 2) and arguments["cond"].tolist() == [0, 1]
        np.testing.assert_allclose(arguments["real"][:, :, 0].mean(1), [2, 4], atol=0.2)
    else:
        assert arguments["x0"].shape == (10, 2) and arguments["cond"].shape == (10,)
        np.testing.assert_allclose(arguments["x0"][:, 0], 2 * (arguments["cond"] + 1), atol=0.6)
    if objective in ("self_consistency", "l2"):
        assert arguments["gamma"] == gamma and arguments["reward"] is (reward if gamma else None)
    if objective == "reward_only":
        assert arguments["reward"] is reward


def test_a_reward_of_no_weight_is_left_out(asked):
    arguments, _ = called(asked, "self_consistency")
    assert arguments["gamma"] == 0 and arguments["reward"] is None


@pytest.mark.parametrize("steps, iterations, segments, start", [(6, 40, 2, None), (12, 20, 3, "rollout@6")])
def test_rollouts_get_what_the_config_says(asked, steps, iterations, segments, start):
    """Updates fall as steps rise, so that both cost the same; segments are near the root of the steps."""
    arguments, task = called(asked, f"rollout@{steps}")
    assert (task.steps, task.recipe.updates, task.recipe.rate, task.start) == (steps, iterations, 0.02, start)
    np.testing.assert_allclose(arguments["grid"], np.linspace(1, 0, steps + 1), atol=1e-6)
    settings = arguments["settings"]
    assert (settings.particles, settings.segments, settings.remat, settings.detached) == (6, segments, "segments", 0)
    assert arguments["real"].shape == (2, 8, 2) and arguments["cond"].tolist() == [0, 1]
    np.testing.assert_allclose(arguments["real"][:, :, 0].mean(1), [2, 4], atol=0.2)


class Told:
    """A network whose answer tells what it was asked: 100 t + s."""

    condition = "none"

    @staticmethod
    def apply(params, log_snr_t, log_snr_s, cond):
        del params, cond
        return 100 * two_numbers.SCHEDULE.time(log_snr_t) + two_numbers.SCHEDULE.time(log_snr_s)


def test_rollout_weights_answer_smaller_steps_as_their_own_and_do_not_clamp_their_grid():
    """Trained at steps of 1/6: asked for a step of 1/60 from t it gives the weight of t to t - 1/6."""
    weight = training.weight_of(Told(), two_numbers.SCHEDULE, Recipe(steps=6))(())

    def asked(t, s):
        return float(weight(t=jnp.asarray([t]), s=jnp.asarray([s]), cond=jnp.zeros(1, jnp.int32))[0])

    for i in range(1, 5):  # inner steps of its own grid
        assert asked(1 - i / 6, 1 - (i + 1) / 6) == pytest.approx(100 * (1 - i / 6) + 1 - (i + 1) / 6, abs=1e-3)
    assert asked(0.5, 0.5 - 1 / 60) == pytest.approx(50 + 0.5 - 1 / 6, abs=1e-3)
    assert asked(0.8, 0.2) == pytest.approx(80.2, abs=1e-3)
    assert asked(1.0, 5 / 6) == pytest.approx(
        100 * 11 / 12 + 11 / 12 - 1 / 6, abs=1e-3
    )  # log-SNR of noise is infinite
    assert asked(1 / 6, 0.0) == pytest.approx(100 / 6 + 1 / 12, abs=1e-3)


def test_every_seed_learns_from_a_start_of_its_own(tmp_path):
    """At a rate of next to nothing what is learned is the start: another one for each seed, though the denoiser is the
    same; a rollout at more steps starts from that at fewer of the same seed."""
    still = {"learn.learning_rate": "1e-9", "learn.rollout_learning_rate": "1e-9", "learn.iterations": "1"}
    still |= {"learn.objectives": "l2,rollout", "learn.rollout_iterations": "2", "eval.steps": "2,4", "seeds": "2"}
    config = load(CONFIG, FIELDS | still | {"figures": "False"})
    problem = two_numbers.problem(two_numbers.Measured())
    model = problem.model._replace(network=None, known={"a": jnp.float32(0.25)})
    learned = learn.run(problem._replace(model=model), config, tmp_path)
    tables = {name: [params["params"]["Embed_0"]["embedding"] for params in each] for name, each in learned.items()}
    assert tables.keys() == {"l2", "rollout@2", "rollout@4"}
    for first, second in tables.values():
        assert np.max(np.abs(first - second)) > 0.1
    for few, many in zip(tables["rollout@2"], tables["rollout@4"], strict=True):
        np.testing.assert_allclose(few, many, atol=1e-6)

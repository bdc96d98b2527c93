"""The fields of problems on a Gaussian mixture, and the conditions between them. Imports nothing heavy."""

from typing import Any

from experiments.config import expressions
from experiments.config.values import Field, Form, choice, group, integer, number
from experiments.problems.chain_fields import BASE, CHAIN, PAIRED, SCHEDULE


def _reward(config) -> dict[str, Any]:
    """Returns the knobs of problem.reward by name; {} where nothing is rewarded."""
    text = config.problem.reward
    return expressions.parse("reward", text, expressions.REWARDS)[0].knobs if text else {}


def _small(value: Any) -> bool:
    """Returns whether a number is in [-1000, 1000]; of a tuple, whether each number is."""
    return all(map(_small, value)) if isinstance(value, tuple) else abs(value) <= 1000


MIXTURE = (
    CHAIN
    | BASE
    | Form(
        group(
            "problem",
            dimension=Field(integer(1, 4096), "dimension of the space"),
            classes=Field(integer(1, 1000), "number of classes"),
            modes=Field(integer(1, 100), "modes of each class"),
            layout=Field(choice("ring", "random"), "the modes lie on a circle, or are drawn from a sphere"),
            radius=Field(number(0.001, 1000), "distance of the modes from the origin"),
            deviation=Field(number(0.001, 1000), "standard deviation of a mode"),
            schedule=SCHEDULE,
            error=Field(
                choice("none", "attenuated", "under", "trained"),
                "the denoiser is exact, exact but attenuated, a network with little training, or a trained network",
            ),
            attenuation=Field(number(0, 1, "[)"), "rho; the attenuated denoiser is (1 - rho) D_c + rho D_u"),
            reward=Field(
                expressions.call("reward", expressions.REWARDS, empty=True),
                "the target is the data tilted by exp(reward / problem.temperature); empty: it is the data",
                "",
            ),
            temperature=Field(number(0.001, 1000), "temperature of that tilt", 1.0),
        ),
        (
            "eval.samples",
            f"at most {PAIRED} for each of problem.classes, since the energy distance compares every pair of them",
            lambda c: c.eval.samples <= PAIRED * c.problem.classes,
        ),
        (
            "problem.layout",
            "ring only when problem.dimension = 2",
            lambda c: c.problem.layout != "ring" or c.problem.dimension == 2,
        ),
        (
            "problem.deviation",
            "at least a thousandth of problem.radius",
            lambda c: 1000 * c.problem.deviation >= c.problem.radius,
        ),
        ("problem.reward", "numbers of at most 1000 in size", lambda c: _small(tuple(_reward(c).values()))),
        (
            "problem.reward",
            "a linear term of one number for each of problem.dimension",
            lambda c: len(_reward(c).get("linear", ())) in (0, c.problem.dimension),
        ),
        (
            "problem.reward",
            "quadratic above -problem.temperature / problem.deviation^2, so that the tilted law exists",
            lambda c: _reward(c).get("quadratic", 0) * c.problem.deviation**2 > -c.problem.temperature,
        ),
        (
            "learn.gammas",
            "0 unless problem.reward says what is rewarded",
            lambda c: not any(c.learn.gammas) or c.problem.reward,
        ),
        (
            "learn.objectives",
            "reward_only only where problem.reward says what is rewarded",
            lambda c: "reward_only" not in c.learn.objectives or c.problem.reward,
        ),
    )
)

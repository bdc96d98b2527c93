"""The fields of a mixture, and what must hold between them. Imports nothing heavy."""

from typing import Any

from experiments.config import expressions
from experiments.config.values import Constraint, Field, Form, choice, integer, number
from experiments.problems.chain_fields import BASE, BASE_HOLDS, FIELDS, LEARNING, PAIRED, SCHEDULES


def _knob(config, name: str) -> Any:
    """The value of a knob of problem.reward; None where it has none of that name."""
    found = expressions.parse("reward", config.problem.reward, expressions.REWARDS) if config.problem.reward else []
    return found[0].knobs.get(name) if found else None


def _numbers(config) -> list:
    """All numbers in the knobs of problem.reward."""
    found = expressions.parse("reward", config.problem.reward, expressions.REWARDS) if config.problem.reward else []
    values = [value for call in found for value in call.knobs.values()]
    return [number for value in values for number in (value if isinstance(value, tuple) else (value,))]


MIXTURE = Form(
    FIELDS
    | BASE
    | {
        "problem.dimension": Field(integer(1, 4096), "dimension of the space"),
        "problem.classes": Field(integer(1, 1000), "number of classes"),
        "problem.modes": Field(integer(1, 100), "modes of each class"),
        "problem.layout": Field(choice("ring", "random"), "where the modes lie: on a circle, or drawn from a sphere"),
        "problem.radius": Field(number(0.001, 1000), "distance of the modes from the origin"),
        "problem.deviation": Field(number(0.001, 1000), "standard deviation of a mode"),
        "problem.schedule": Field(choice(*SCHEDULES), "noise schedule"),
        "problem.error": Field(choice("none", "attenuated", "under", "trained"), "what is wrong with the denoiser"),
        "problem.attenuation": Field(number(0, 1, "[)"), "rho: D_c becomes (1 - rho) D_c + rho D_u"),
        "problem.reward": Field(
            expressions.one("reward", expressions.REWARDS, empty=True),
            "what is rewarded: the target is the data tilted by exp(reward / temperature); empty: the data",
        ),
        "problem.temperature": Field(number(0.001, 1000), "of that tilt"),
    },
    LEARNING
    + BASE_HOLDS
    + (
        Constraint(
            "eval.samples",
            f"at most {PAIRED} for each of problem.classes, since the energy distance compares every pair of them",
            lambda c: c.eval.samples <= PAIRED * c.problem.classes,
        ),
        Constraint(
            "problem.layout",
            "ring only when problem.dimension = 2",
            lambda c: c.problem.layout != "ring" or c.problem.dimension == 2,
        ),
        Constraint(
            "problem.deviation",
            "at least a thousandth of problem.radius",
            lambda c: 1000 * c.problem.deviation >= c.problem.radius,
        ),
        Constraint(
            "problem.reward",
            "numbers of at most 1000 in size",
            lambda c: all(abs(n) <= 1000 for n in _numbers(c)),
        ),
        Constraint(
            "problem.reward",
            "a linear term of one number for each of problem.dimension",
            lambda c: not _knob(c, "linear") or len(_knob(c, "linear")) == c.problem.dimension,
        ),
        Constraint(
            "problem.reward",
            "quadratic above -problem.temperature / problem.deviation^2, so that the tilted law exists",
            lambda c: (_knob(c, "quadratic") or 0) * c.problem.deviation**2 > -c.problem.temperature,
        ),
        Constraint(
            "learn.gammas",
            "0 unless problem.reward says what is rewarded",
            lambda c: not any(c.learn.gammas) or c.problem.reward,
        ),
        Constraint(
            "learn.objectives",
            "reward_only only where problem.reward says what is rewarded",
            lambda c: "reward_only" not in c.learn.objectives or c.problem.reward,
        ),
    ),
)

"""Builds what the calls of a config stand for: rule, weight, solver and grid.

`experiments.config.expressions` has checked the texts against the library's signatures. What the library refuses
beyond that becomes a ConfigError that names the field.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.config import ConfigError
from experiments.config.expressions import (
    AUTOGUIDED,
    GRIDS,
    LEARNED,
    REWARDS,
    RULES,
    SAMPLERS,
    SHAPES,
    SWEPT,
    TWICE,
    WEIGHTS,
    Call,
    is_number,
    parse,
    spelled,
)
from experiments.files import weight_files
from experiments.problems.interface import Model, refusing
from guidance import rules, sampling, weights
from guidance.truth import rewards
from guidance.types import Array, At, Reward, Rule, Schedule, Solver, Step, Weight


def grid(settings, schedule: Schedule) -> Array:
    """Returns the grid of `sample.grid`, `sample.steps` and `sample.shift`."""
    call = parse("grid", settings.grid, GRIDS)[0]
    maker = getattr(sampling, GRIDS[call.name].maker)
    made = _built("sample.grid", settings.grid, maker, call, schedule=schedule, steps=settings.steps)
    if settings.shift == 1:
        return made
    with refusing(f"sample.shift = {settings.shift}"):
        return sampling.shifted(schedule, made, settings.shift)


def solver(text: str, field: str) -> Step | Solver:
    """Returns the step or solver of a call that a field holds."""
    call = parse("sampler", text, SAMPLERS)[0]
    return _built(field, text, getattr(sampling, call.name), call)


def rule(text: str, field: str = "rule") -> Rule:
    """Returns the rule of a call that a field holds; several are stacked from left to right.

    AUTOGUIDED gives the rule of CFG: autoguidance differs from it in its reference only.
    """
    if text == AUTOGUIDED:
        return rules.cfg
    members = []
    for call in parse("rule", text, RULES):
        maker = getattr(rules, call.name)
        members.append(maker if RULES[call.name].plain else _built(field, text, maker, call))
    return members[0] if len(members) == 1 else rules.stack(*members)


def reward(text: str) -> Reward:
    """Returns the reward of `problem.reward`."""
    call = parse("reward", text, REWARDS)[0]
    return _built("problem.reward", text, getattr(rewards, call.name), call)


def fixed(text: str) -> Weight:
    """Returns the weight of a call that needs neither grid nor schedule."""
    call = parse("weight", text, WEIGHTS)[0]
    return getattr(weights, call.name)(**call.knobs)


def swept(text: str, grid: Array, schedule: Schedule, omega: float, field: str = "weight") -> Weight:
    """Returns the weight of a call that leaves out omega, on a grid."""
    call = parse("weight", text, SHAPES)[0]
    maker = getattr(weights, call.name)
    return _built(field, text, maker, call, schedule=schedule, grid=grid, omega=omega)


def weight(settings, model: Model, times: Array, names: tuple[str, ...] | None = None) -> Weight:
    """Returns the weight of `sample.weight` on the grid `times`: a constant, a call, or a file that fits the model.

    names: those of the model's classes; None where they are not known. Notes are printed where a file was learned
    inside another rule, or through another number of steps. Raises ConfigError, in one line.
    """
    text = settings.weight
    if is_number(text):
        return weights.constant(float(text))
    if not text.endswith(LEARNED):
        call = parse("weight", text, WEIGHTS)[0]
        maker = getattr(weights, call.name)
        return _built("sample.weight", text, maker, call, schedule=model.schedule, grid=times)
    with refusing("sample.weight"):
        learned, about = weight_files.read(text)
        weight_files.check_fits(text, about, model.schedule, model.conditions, model.null, names)
    rule_here = spelled("rule", settings.rule, RULES)
    if (about.rule == AUTOGUIDED) != bool(settings.weak):
        allowed = "the updates of its weaker denoiser" if about.rule == AUTOGUIDED else "0"
        raise ConfigError(f"sample.weak: {text} was learned inside {about.rule}; allowed: {allowed}")
    if rule_here != ("cfg" if about.rule == AUTOGUIDED else about.rule):
        print(f"note: {text} was learned inside {about.rule} and is asked inside {rule_here}")
    if about.steps not in (None, settings.steps):
        print(f"note: {text} was learned through {about.steps} steps and is asked at {settings.steps}")
    return learned


def check(config, model: Model) -> None:
    """Raises ConfigError, naming the field, for calls that do not fit a model's samples or a config's steps.

    No range of a field can say that a mask of channels or a number of bands must fit the shape of a sample, and a last
    step the grid. It is called before anything is trained.
    """
    if config.job == "sample":
        _check_rule(config.sample.rule, "sample.rule", model)
        return
    for text in config.learn.rules:
        _check_rule(text, "learn.rules", model)
    for text in config.eval.others:
        if parse("call", text, SWEPT)[0].name in SHAPES:
            for steps in config.eval.steps:
                swept(text, sampling.uniform_grid(steps), model.schedule, 0.0, "eval.others")
        elif text != TWICE:
            _check_rule(text, "eval.others", model)


def _check_rule(text: str, field: str, model: Model) -> None:
    made = rule(text, field)

    def apply(x, t):
        return rules.once(made, x, x, t, At(x, t, t, model.schedule)).x0

    x, t = (jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in (model.shape, ()))
    try:
        jax.eval_shape(apply, x, t)
    except (ValueError, TypeError) as error:
        words = " ".join(str(error).split())
        raise ConfigError(f"{field} = {text!r} does not fit samples of shape {tuple(model.shape)}: {words}") from None


def _built(field: str, text: str, maker: Callable, call: Call, **at_hand) -> Any:
    """Returns maker(knobs of the call, and those values of `at_hand` that its signature names)."""
    parameters = inspect.signature(maker).parameters
    given: Mapping[str, Any] = {name: value for name, value in at_hand.items() if name in parameters}
    try:
        return maker(**given, **call.knobs)
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"{field} = {text!r}: {error}") from None

"""What the texts of a config's `sample` group stand for: guide, solver and grid, built by the library.

The texts have been checked against the library's signatures by `experiments.calls`; what the library refuses beyond
that becomes a ConfigError that names the field.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from experiments import weight_files
from experiments.calls import GRIDS, LEARNED, RULES, SAMPLERS, WEIGHTS, Call, is_number, parse
from experiments.config import ConfigError
from experiments.families import AUTOGUIDED
from experiments.problems import Model
from guidance import rules, sampling, weights
from guidance.types import Array, Rule, Schedule, Solver, Step, Weight


def grid(settings, schedule: Schedule) -> Array:
    """The grid of `sample.grid`, `sample.steps` and `sample.shift`."""
    call = parse("grid", settings.grid, GRIDS)[0]
    maker = getattr(sampling, GRIDS[call.name].maker)
    made = _built("grid", settings.grid, maker, call, schedule=schedule, steps=settings.steps)
    if settings.shift == 1:
        return made
    try:
        return sampling.shifted(schedule, made, settings.shift)
    except ValueError as error:
        raise ConfigError(f"sample.shift = {settings.shift}: {error}") from None


def solver(settings) -> Step | Solver:
    """The step or solver of `sample.sampler`."""
    call = parse("sampler", settings.sampler, SAMPLERS)[0]
    return _built("sampler", settings.sampler, getattr(sampling, call.name), call)


def rule(settings) -> Rule:
    """The rule of `sample.rule`, several of them stacked from left to right."""
    members = []
    for call in parse("rule", settings.rule, RULES):
        maker = getattr(rules, call.name)
        members.append(maker if RULES[call.name].plain else _built("rule", settings.rule, maker, call))
    return members[0] if len(members) == 1 else rules.stack(*members)


def weight(settings, model: Model, times: Array) -> Weight:
    """The weight of `sample.weight` on the grid `times`: a constant, a call, or a file that fits the model."""
    text = settings.weight
    if is_number(text):
        return weights.constant(float(text))
    if not text.endswith(LEARNED):
        call = parse("weight", text, WEIGHTS)[0]
        return _built("weight", text, getattr(weights, call.name), call, schedule=model.schedule, grid=times)
    try:
        found, about = weight_files.read(text)
        weight_files.check_fits(text, about, model.schedule, len(model.conditions), int(model.null))
    except (OSError, ValueError) as error:
        raise ConfigError(f"sample.weight: {error}") from None
    members = parse("rule", settings.rule, RULES)
    named = AUTOGUIDED if settings.weak else members[0].name if len(members) == 1 else settings.rule
    if about.rule != named and AUTOGUIDED in (about.rule, named):
        allowed = "0" if named == AUTOGUIDED else "the updates of its weaker denoiser"
        raise ConfigError(f"sample.weak: {text} was learned inside {about.rule}; allowed: {allowed}")
    if about.rule != named:
        print(f"note: {text} was learned inside {about.rule} and is asked inside {named}")
    if about.steps not in (None, settings.steps):
        print(f"note: {text} was learned through {about.steps} steps and is asked at {settings.steps}")
    return found


def _built(field: str, text: str, maker: Callable, call: Call, **at_hand) -> Any:
    """maker(knobs of the call, and of what is at hand what it asks for by name)."""
    asked = inspect.signature(maker).parameters
    given: Mapping[str, Any] = {name: value for name, value in at_hand.items() if name in asked}
    try:
        return maker(**given, **call.knobs)
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(f"sample.{field} = {text!r}: {error}") from None

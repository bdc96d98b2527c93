"""Stages and stacks: how to write rules that need more than two predictions and omega, and how to combine rules.

A stack applies its rules from left to right to one `Branches` record:

    gap stages      change the reference, and so the gap D_c - D_u (momentum, norm_cap, project)
    gain stages     change omega for each sample (power_law, magnitude_aware)
    a combination   computes the guided x0 from the two predictions and omega (cfg, angle_domain, any plain function)
    outcome stages  change the guided x0 (rescale, energy, channels)

Gap and gain stages therefore stand to the left of the combination, and outcome stages to its right. A second
combination starts again from the two predictions. The order of gap stages matters: APG is momentum, then cap, then
projection.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.ranges import Each, Whole, ranged
from guidance.types import Array, At, Branches, Rule, Stage

Function = TypeVar("Function", bound=Callable)
_NEUTRAL = "neutral_at_zero"


def stack(*rules: Rule) -> Stage:
    """Builds the rule that applies `rules` from left to right. A plain function combines the two predictions.

    Guides skip the reference branch at omega = 0 only if every member allows it. Raises ValueError for no rules.
    """
    if not rules:
        raise ValueError("a stack needs at least one rule")
    stages = tuple(as_stage(rule) for rule in rules)
    idle = None if any(stage.idle is None for stage in stages) else Partial(_idle_stack, stages)
    return Stage(Partial(_init_stack, stages), Partial(_apply_stack, stages), idle)


def as_stage(rule: Rule) -> Stage:
    """Returns a plain rule (positive, reference, omega) -> x0 as a stage, and a stage unchanged.

    Guides skip the reference of a plain rule at omega = 0 only if it was declared `neutral`.
    """
    if isinstance(rule, Stage):
        return rule
    checks.is_rule(rule)
    rule = rule if isinstance(rule, Partial) else Partial(rule)
    return stateless(_combine, rule, neutral=getattr(rule.func, _NEUTRAL, False))


def neutral(function: Function) -> Function:
    """Decorates a plain rule to declare that it returns D_c at omega = 0, so that guides may skip the reference there.

    To declare a rule with knobs, which is a Partial, decorate its function. A rule that is not declared is evaluated
    on every step, because no guide can know what it returns at omega = 0.
    """
    setattr(function, _NEUTRAL, True)
    return function


def stateless(function, *knobs, neutral: bool = True) -> Stage:
    """Builds the stage without memory that applies `function(*knobs, branches, at)` -> Branches; knobs are its leaves.

    neutral: the stage returns D_c at omega = 0, so that guides may skip the reference branch there.
    """
    return Stage(Partial(no_state), Partial(_Stateless(function), *knobs), Partial(_same) if neutral else None)


def once(rule: Rule, positive: Array, reference: Array, omega: Array, at: At) -> Branches:
    """Applies a rule once, with a fresh state, as the one-step objectives do."""
    stage = as_stage(rule)
    return stage.apply(stage.init(at.x), start(positive, reference, omega), at)[1]


def start(positive: Array, reference: Array, omega: Array) -> Branches:
    """Returns the record on which a rule starts: x0 is D_c, and the noise is the one that x0 implies."""
    return Branches(positive, reference, omega, positive, None)


def with_gap(branches: Branches, gap: Array) -> Branches:
    """Returns the branches with the gap D_c - D_u replaced: the reference becomes D_c - gap."""
    return branches._replace(reference=branches.positive - gap)


@ranged
def channels(mask: Annotated[Any, Each(Whole(0, 1))]) -> Stage:
    """Builds an outcome stage that guides only the channels where `mask` [channels] is true; the others keep D_c.

    DiT guides three of its four latent channels, which is `channels(jnp.arange(4) < 3)`. Source: our choice, after the
    sampling code published with arXiv 2212.09748.
    """
    return stateless(_channels, jnp.asarray(mask))


def _channels(mask, branches, at):
    del at
    chosen = jnp.broadcast_to(mask.reshape((1,) * (branches.x0.ndim - 1) + (-1,)), branches.x0.shape)
    return branches._replace(x0=jnp.where(chosen, branches.x0, branches.positive))


def gain(factor: Array, branches: Branches) -> Branches:
    """Returns the branches with omega multiplied by `factor` [batch]."""
    return branches._replace(omega=branches.omega * factor)


def _combine(rule, branches, at):
    del at
    x0 = rule(branches.positive, branches.reference, branches.omega)
    checks.is_guided(x0, rule, branches.positive)
    return branches._replace(x0=x0, eps=None)


@dataclasses.dataclass(frozen=True)
class _Stateless:
    """A stage without memory. It compares by its function, so that building it twice does not compile twice."""

    function: Callable

    def __call__(self, *arguments):
        *knobs, state, branches, at = arguments
        return state, self.function(*knobs, branches, at)


def _init_stack(stages, x):
    return tuple(stage.init(x) for stage in stages)


def _apply_stack(stages, states, branches, at):
    after = []
    for stage, state in zip(stages, states, strict=True):
        state, branches = stage.apply(state, branches, at)
        after.append(state)
    return tuple(after), branches


def _idle_stack(stages, states):
    return tuple(stage.idle(state) for stage, state in zip(stages, states, strict=True))


def no_state(x: Array) -> tuple:
    """Returns the empty state of a stage or guide that remembers nothing."""
    del x
    return ()


def _same(state):
    return state

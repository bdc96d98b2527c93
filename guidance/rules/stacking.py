"""Stages and stacks: how rules that need more than two predictions and omega are written and put in a row.

A stack runs its members from left to right on one `Branches` record:

    gap stages      change the reference, hence the gap D_c - D_u that is still to be added (momentum, cap, projection)
    gain stages     change omega for each sample (power law, magnitude)
    a combination   sets the opinion x0 from the two predictions and omega (cfg, angle_domain, or any plain function)
    outcome stages  change the opinion (rescale, energy, channels)

so gap and gain stages stand to the left of the combination and outcome stages to its right; a combination to the
right of another one starts again from the two predictions. The order among gap stages matters: APG is momentum, then
cap, then projection.
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
    """The rule that applies `rules` from left to right; plain functions combine, stages do what they do.

    The reference branch may be skipped at omega = 0 if every member allows it. Raises ValueError for an empty stack.
    """
    if not rules:
        raise ValueError("a stack needs at least one rule")
    stages = tuple(as_stage(rule) for rule in rules)
    idle = None if any(stage.idle is None for stage in stages) else Partial(_idle_stack, stages)
    return Stage(Partial(_init_stack, stages), Partial(_apply_stack, stages), idle)


def as_stage(rule: Rule) -> Stage:
    """A plain rule (positive, reference, omega) -> x0 as a stage that combines; stages pass unchanged.

    Its reference is skipped at omega = 0 only if it was declared `neutral`.
    """
    if isinstance(rule, Stage):
        return rule
    checks.is_rule(rule)
    rule = rule if isinstance(rule, Partial) else Partial(rule)
    return stateless(_combine, rule, neutral=getattr(rule.func, _NEUTRAL, False))


def neutral(function: Function) -> Function:
    """Declares that a plain rule answers D_c at omega = 0, so that guides may skip the reference there; a decorator.

    A rule of knobs and branches, given as a Partial, is declared by its function. Nobody can see from a function what
    it answers, and a rule that is no identity at omega = 0 must not be skipped in silence: what is not declared is
    asked on every step.
    """
    setattr(function, _NEUTRAL, True)
    return function


def stateless(function, *knobs, neutral: bool = True) -> Stage:
    """The stage (Branches, At) -> Branches given by `function(*knobs, branches, at)`; knobs are its leaves.

    neutral: at omega = 0 the answer is D_c, so that the reference branch may be skipped.
    """
    return Stage(Partial(no_state), Partial(_Stateless(function), *knobs), Partial(_same) if neutral else None)


def once(rule: Rule, positive: Array, reference: Array, omega: Array, at: At) -> Branches:
    """One application of a rule with a fresh state: its opinion on a single step, as learning needs it."""
    stage = as_stage(rule)
    return stage.apply(stage.init(at.x), start(positive, reference, omega), at)[1]


def start(positive: Array, reference: Array, omega: Array) -> Branches:
    """The record that a stack begins with: the opinion is D_c and the noise is the one that it implies."""
    return Branches(positive, reference, omega, positive, None)


def with_gap(branches: Branches, gap: Array) -> Branches:
    """The branches with another gap D_c - D_u."""
    return branches._replace(reference=branches.positive - gap)


@ranged
def channels(mask: Annotated[Any, Each(Whole(0, 1))]) -> Stage:
    """Guides only the channels where `mask` [channels] is true; the others keep D_c. An outcome stage.

    DiT's habit of guiding three of its four latent channels is `channels(jnp.arange(4) < 3)`. Source: our choice; the
    habit is in the sampling code published with arXiv 2212.09748.
    """
    return stateless(_channels, jnp.asarray(mask))


def _channels(mask, branches, at):
    del at
    chosen = jnp.broadcast_to(mask.reshape((1,) * (branches.x0.ndim - 1) + (-1,)), branches.x0.shape)
    return branches._replace(x0=jnp.where(chosen, branches.x0, branches.positive))


def gain(factor: Array, branches: Branches) -> Branches:
    """The branches with omega times `factor` [batch]."""
    return branches._replace(omega=branches.omega * factor)


def _combine(rule, branches, at):
    del at
    x0 = rule(branches.positive, branches.reference, branches.omega)
    checks.is_guided(x0, rule, branches.positive)
    return branches._replace(x0=x0, eps=None)


@dataclasses.dataclass(frozen=True)
class _Stateless:
    """A stage without memory; compared by its function, so that building it twice does not compile twice."""

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
    """The init of what remembers nothing."""
    del x
    return ()


def _same(state):
    return state

"""The registry: names, knobs, defaults and ranges read from source are the library's, and it keeps to them."""

import inspect

import jax.numpy as jnp
import pytest

import guidance
from experiments.config import registry
from experiments.config.registry import SHELVES
from guidance import guides, ranges, rules, sampling, schedules, weights
from guidance.learning import rollout
from guidance.truth import rewards
from tests.named import needed, outside

MODULES = {"rules": rules, "weights": weights, "sampling": sampling, "guides": guides, "truth.rewards": rewards}
EVERY = [(kind, member) for kind in SHELVES for member in registry.members(kind)]
NAMED = [(kind, member) for kind, member in EVERY if not member.withheld]
AT_HAND = {"schedule": schedules.rectified_flow(), "grid": jnp.linspace(1.0, 0.0, 5), "steps": 4}


def named(entries):
    return pytest.mark.parametrize("kind, member", entries, ids=[f"{kind} {member.name}" for kind, member in entries])


def maker(member):
    return getattr(MODULES[member.package], member.maker)


@named(EVERY)
def test_what_is_read_from_source_is_the_function(kind, member):
    parameters = inspect.signature(maker(member)).parameters
    assert [(knob.name, knob.kind) for knob in member.parameters] == [(p.name, p.kind) for p in parameters.values()]
    for knob in member.parameters:
        default, kind = parameters[knob.name].default, ranges.of(knob.annotation)[0]
        assert knob.default == default
        assert (kind and kind.words) == (kind and ranges.of(parameters[knob.name].annotation)[0].words)
        assert (kind is None) == (ranges.of(parameters[knob.name].annotation)[0] is None)
    assert member.doc == inspect.getdoc(maker(member))


def test_what_a_config_cannot_name_says_why():
    """A rule, weight, solver or grid that appears here by mistake lacks a range in its signature."""
    assert {member.name: member.withheld for kind, member in EVERY if member.withheld and kind != "guide"} == {
        "annealed": "needs network",
        "as_stage": "needs rule",
        "stack": "needs rules",
        "unguided": "it is the weight 0",
        "mahiro_batch": "a sample depends on the batch that it is in",
        "learned": "needs net, params, s_min, t_max, gap_min, interval",
        "table": "needs omegas, conditions",
        "adaptive": "its evaluations are counted for a batch, not for a sample",
        "as_solver": "needs step",
        "exact_reverse": "needs mixture, cond",
        "class_log_probability": "needs mixture",
    }


def test_every_public_function_of_the_right_kind_is_on_a_shelf():
    """What a package exports and the registry does not know: helpers, types and tables, none that returns a kind."""
    known = {member.maker for _, member in EVERY}
    returned = {name for shelf in SHELVES.values() for name in shelf.returns} - {"Array"}
    for module in (rules, weights, sampling, guides):
        for name in set(module.__all__) - known:
            function = getattr(module, name)
            if inspect.isfunction(function):
                returns = getattr(inspect.signature(function).return_annotation, "__name__", "")
                assert returns not in returned or name in ("mahiro",), name


@named([(kind, member) for kind, member in NAMED if member.knobs and kind != "reward"])
def test_the_library_keeps_to_the_ranges_that_it_states(kind, member):
    """What a config refuses, the library refuses in the same words; values inside pass."""
    given = {name: AT_HAND[name] for name in member.at_hand if name != "grid" or kind == "weight"}
    usual = given | needed(member)
    maker(member)(**usual)
    for knob in member.knobs:
        for value in outside(knob):
            with pytest.raises(ValueError, match=rf"{knob.name} = .*: allowed: "):
                maker(member)(**usual | {knob.name: value})


def test_a_knob_above_another_is_checked_against_it():
    assert weights.interval(1.0, 0.2, 0.8) is not None
    for lo, hi in ((0.8, 0.2), (0.5, 0.5)):
        with pytest.raises(ValueError, match=f"interval: hi = {hi}: allowed: above lo = {lo}"):
            weights.interval(1.0, lo, hi)
    with pytest.raises(ValueError, match="last = 1: allowed: at least first = 2"):
        weights.interval_of_steps(AT_HAND["grid"], 1.0, 2, 1)


def test_tables_of_words_are_read_without_jax():
    assert registry.constants("schedules", "SCHEDULES") == tuple(schedules.SCHEDULES)
    assert registry.constants("learning.rollout", "REMAT") == rollout.REMAT
    assert registry.ROOT.samefile(guidance.__path__[0])


def test_a_weight_that_is_no_omega_is_named_at_its_rule():
    assert {m.name: m.weight.name for m in registry.named("rule").values() if m.weight} == {"cfg_plus_plus": "lambda"}

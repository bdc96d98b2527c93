"""Two times cannot be exchanged, and keys come first: read from the signatures of guidance/."""

import ast
import inspect

import jax.numpy as jnp
import pytest

from guidance import guides, sampling, schedules, weights
from guidance.types import Advance, Apply, PlainRule, Stage, Step, Weight
from tests.members import every_guide, every_rule, every_solver
from tests.test_imports import GUIDANCE, REPOSITORY
from tests.weights.test_weight_shapes import BATTERY as WEIGHTS


def _functions():
    """(where, name, its arguments) of every function, method and lambda in guidance/, the private ones too."""
    for path in GUIDANCE:
        where = str(path.relative_to(REPOSITORY))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                yield f"{where}:{node.lineno}", getattr(node, "name", "lambda"), node.args


def _names(arguments: list[ast.arg]) -> list[str]:
    return [a.arg for a in arguments]


@pytest.mark.parametrize("pair", [("t", "s"), ("log_snr_t", "log_snr_s")], ids=lambda pair: pair[0])
def test_whoever_takes_both_times_takes_them_by_keyword(pair):
    found, wrong = 0, []
    for where, name, arguments in _functions():
        positional = _names(arguments.posonlyargs + arguments.args)
        if set(pair) <= {*positional, *_names(arguments.kwonlyargs)}:
            found += 1
            wrong += [f"{where} {name}"] if set(pair) & set(positional) else []
    assert not wrong
    assert found > (40 if pair[0] == "t" else 0), "the test no longer sees the functions that it guards"


def test_keys_come_first_in_public_functions():
    found, wrong = 0, []
    for where, name, arguments in _functions():
        names = [n for n in _names(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) if n != "self"]
        if not name.startswith("_") and name != "lambda" and {"key", "keys"} & set(names):
            found += 1
            wrong += [] if names[0] in ("key", "keys") else [f"{where} {name}"]
    assert not wrong
    assert found > 20


def test_what_takes_more_arguments_takes_a_record():
    """At most nine that must be given; whatever may be left out beyond eight is given by keyword."""
    wrong = []
    for where, name, arguments in _functions():
        names = [n for n in _names(arguments.posonlyargs + arguments.args) if n != "self"]
        required = len(names) - len(arguments.defaults) + arguments.kw_defaults.count(None)
        if not name.startswith("_") and name != "lambda" and (required > 9 or len(names) > 9):
            wrong.append(f"{where} {name}")
    assert not wrong


def _takes(function, protocol):
    """The protocol's arguments under their names, after the knobs that a Partial has bound."""
    parameters = inspect.signature(function).parameters.values()
    wanted = [p for p in inspect.signature(protocol.__call__).parameters.values() if p.name != "self"]
    assert [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == [
        p.name for p in wanted if p.kind is p.POSITIONAL_ONLY
    ]
    assert [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] == [
        p.name for p in wanted if p.kind is p.KEYWORD_ONLY
    ]


def test_solvers_take_the_arguments_of_their_protocol():
    for name, solver in every_solver().items():
        assert list(inspect.signature(solver.init).parameters) == ["x"], name
        _takes(solver.apply, Advance)
    for step in (sampling.ddim(), sampling.ddpm(), sampling.churned_ddim(0.5), sampling.euler()):
        _takes(step, Step)


def test_guides_take_the_arguments_of_their_protocol():
    more = {"skipping nothing": guides.cfg(weights.constant(2.0), 4, skip=False)}
    for name, guide in (every_guide() | more).items():
        assert list(inspect.signature(guide.init).parameters) == ["x"], name
        _takes(guide.apply, Apply)


def test_weights_and_plain_rules_take_the_arguments_of_their_protocols():
    net = weights.GuidanceNet(condition="none")
    made = [make(*knobs) for make, knobs in WEIGHTS.values()]
    more = [weights.constant(1.0), weights.interval(1.0, 0.2, 0.8), weights.table(jnp.ones(2), jnp.ones(1))]
    for weight in [*made, *more, weights.learned(net, {}, schedules.cosine())]:
        _takes(weight, Weight)
    plain = [rule for rule in every_rule().values() if not isinstance(rule, Stage)]
    assert len(plain) > 3
    for rule in plain:
        _takes(rule, PlainRule)

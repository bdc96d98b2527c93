"""Every guide, rule and solver of the library, made by its signature: batteries over them meet new ones unasked."""

import inspect
import typing

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import guides, rules, sampling, weights
from guidance.types import Array, Guide, Rule, Solver, Stage, Step
from tests import oracles

NULL = oracles.toy2().null  # the label of a mixture of four classes on the plane
LABELS = jnp.asarray([0, 3, 1, 2, 0])


def _weak(x, t, cond):
    return 0.9 * x + cond[:, None]


def _logits(x0):
    return -jnp.sum((x0[:, None, :] - oracles.toy2().means[None]) ** 2, axis=-1)


def _first_coordinate(x0, t, cond):
    return x0[:, 0] * t


def _gap_size(t, gap_size, lam):
    return 1 + lam * gap_size * t


# What the arguments are called, and what they are given here: a new name needs a line.
GIVEN = {
    "weight": weights.interval(1.5, 0.3, 0.9),
    "null": NULL,
    "rule": rules.apg(),
    "weak": Partial(_weak),
    "others": [(weights.constant(2.0), 1), (weights.constant(-0.5), 2)],
    "negatives": [(1.0, 1), (0.5, 2)],
    "classifier": Partial(_logits),
    "omegas": jnp.arange(3.0),
    "evaluator": Partial(_first_coordinate),
    "network": Partial(_gap_size),
    "radius": 0.5,
    "eta": 0.3,
    "beta": -0.5,
    "mask": jnp.asarray([True, False]),
    "churn": 0.5,
    "gamma": 0.2,
    "mixture": oracles.toy2(),
    "cond": jnp.zeros(1, jnp.int32),  # bound by exact_reverse, for one sample or for all
    "rtol": 3.0,
    "atol": 3.0,
}


# Where one name means two things.
OF_ITS_OWN = {"summed": {"others": [(weights.constant(0.5), Partial(_weak))]}}


def _made(maker):
    given, parameters = GIVEN | OF_ITS_OWN.get(maker.__name__, {}), inspect.signature(maker).parameters
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    assert not missing, f"say in {__name__}.GIVEN what {maker.__name__} is given for {missing}"
    return maker(**{name: given[name] for name in parameters if name in given})


def _makers(module, *returned):
    """The public functions of a module that return one of these types, by their signatures."""
    functions = {name: getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    return {name: f for name, f in functions.items() if typing.get_type_hints(f).get("return") in returned}


def every_rule() -> dict[str, Rule | Stage]:
    """The rules and the stages that stacks are made of."""
    makers = _makers(rules, Rule, Stage)
    made = {name: _made(f) for name, f in makers.items() if name not in ("as_stage", "stack")}
    plain = {name: f for name, f in _makers(rules, Array).items() if list(inspect.signature(f).parameters) == _PLAIN}
    return plain | {name: rule for name, rule in made.items()}


_PLAIN = ["positive", "reference", "omega"]


def every_guide() -> dict[str, Guide]:
    """Every guide, around APG where it takes a rule; and a guide of every other rule that remembers."""
    found = {name: _made(f) for name, f in _makers(guides, Guide).items()}
    for name, rule in every_rule().items():
        if jax.tree.leaves(rules.as_stage(rule).init(jnp.zeros((1, 2)))):
            found[f"guided by {name}"] = guides.guided(rule, GIVEN["weight"], NULL)
    return found


def every_solver() -> dict[str, Solver]:
    """Every solver, and every step as a solver."""
    makers = _makers(sampling, Solver, Step)
    makers.pop("as_solver")
    return {name: sampling.as_solver(_made(f)) for name, f in makers.items()} | {"unipc of order 3": sampling.unipc(3)}

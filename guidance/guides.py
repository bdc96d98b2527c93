"""Guides: a rule with its weight and its branches, as samplers take them.

The two branches run as one batched network call; where omega is zero for the whole batch a `lax.cond` skips the
reference branch, and the count of network evaluations says so.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.predictions import eps_from_x0
from guidance.rules import cfg as cfg_rule
from guidance.shapes import null_like
from guidance.types import Array, Cond, Denoise, Guide, Guided, Rule, Weight


def guided(rule: Rule, weight: Weight, null: Cond, skip: bool = True) -> Guide:
    """The guide that combines D(x, t, cond) and D(x, t, null) by `rule` with weight omega(s, t, cond).

    null: the null condition, leaves without batch axis (the label C for C classes). With `skip`, steps on which omega
    is zero for the whole batch evaluate the conditional branch only: exact for every rule whose neutral weight is 0
    (all of ours). Pass skip=False to differentiate with respect to weights that are zero, or under vmap, where a
    cond computes both sides anyway.
    """
    apply = _apply_skipping if skip else _apply_both
    return Guide(Partial(_no_state), Partial(apply, _partial(rule), weight, null))


def cfg(weight: Weight, null: Cond, skip: bool = True) -> Guide:
    """Classifier-free guidance with the given weight: `guided(rules.cfg, weight, null)`."""
    return guided(cfg_rule, weight, null, skip)


def unguided() -> Guide:
    """The conditional branch alone: one evaluation a step."""
    return Guide(Partial(_no_state), Partial(_apply_unguided))


def both_branches(denoise: Denoise, x: Array, t: Array, cond: Cond, null: Cond) -> tuple[Array, Array]:
    """(D(x, t, cond), D(x, t, null)) in one network call of twice the batch."""
    double = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null_like(cond, null))
    out = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), double)
    return out[: x.shape[0]], out[x.shape[0] :]


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)


def _no_state(x):
    del x
    return ()


def _apply_both(rule, weight, null, state, denoise, schedule, x, t, s, cond):
    positive, reference = both_branches(denoise, x, t, cond, null)
    x0 = rule(positive, reference, weight(s, t, cond))
    return state, _guided(schedule, x, x0, t, positive=1, reference=1)


def _apply_skipping(rule, weight, null, state, denoise, schedule, x, t, s, cond):
    omega = weight(s, t, cond)
    needed = jnp.any(omega != 0)

    def with_both(x):
        positive, reference = both_branches(denoise, x, t, cond, null)
        return rule(positive, reference, omega)

    x0 = jax.lax.cond(needed, with_both, lambda x: denoise(x, t, cond), x)
    return state, _guided(schedule, x, x0, t, positive=1, reference=needed)


def _apply_unguided(state, denoise, schedule, x, t, s, cond):
    del s
    x0 = denoise(x, t, cond)
    return state, _guided(schedule, x, x0, t, positive=1)


def _guided(schedule, x, x0, t, **nfe) -> Guided:
    counts = {branch: jnp.asarray(count, jnp.int32) for branch, count in nfe.items()}
    return Guided(x0, eps_from_x0(schedule, x, x0, t), counts)

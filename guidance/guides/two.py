"""Guides with two branches: a rule, its weight, and the source of the reference prediction.

If the two branches share a network they are one network call on twice the batch. Where omega is 0 for the whole batch
a `lax.cond` skips the reference branch, which is then not counted.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.predictions import eps_from_x0
from guidance.rules import as_stage
from guidance.rules import cfg as cfg_rule
from guidance.rules.stacking import no_state, start
from guidance.shapes import like, null_like, row_dot, unit, with_dtypes_of
from guidance.types import Array, At, Branches, Cond, Denoise, Guide, Guided, Rule, Schedule, Stage, Weight


def guided(rule: Rule, weight: Weight, null: Cond, skip: bool = True) -> Guide:
    """Builds the guide that combines D(x, t, cond) and D(x, t, null) by `rule` with the weight omega(s, t, cond).

    null: the null condition, leaves without batch axis (the label C for C classes), or a negative condition. skip: on
    a step whose omega is 0 for the whole batch, evaluate the conditional branch only. This happens only if the rule
    returns D_c there (`rules.neutral`) and remembers no gap. Pass skip=False to differentiate with respect to weights
    that are 0, or under vmap, where `lax.cond` computes both sides anyway. Costs 2 evaluations per step, 1 if skipped.
    """
    return _guide(rule, weight, Partial(_null_branches, null), skip)


def cfg(weight: Weight, null: Cond, skip: bool = True) -> Guide:
    """Builds classifier-free guidance with the given weight, which is `guided(rules.cfg, weight, null)`."""
    return guided(cfg_rule, weight, null, skip)


def autoguided(rule: Rule, weight: Weight, weak: Denoise, skip: bool = True) -> Guide:
    """Builds autoguidance, away from a weaker denoiser at the same condition: D_c + omega (D_c - D_weak) for CFG.

    weak: any denoiser, such as a smaller or less trained network, an earlier checkpoint, or the same network with a
    part of it perturbed (perturbed attention, skipped layers). If it equals the strong one, CFG's rule returns D_c.
    Costs 1 evaluation of each denoiser per step; `skip` is that of `guided`.
    Source: Guiding a Diffusion Model with a Bad Version of Itself, arXiv 2406.02507, eq. 3 (its w - 1 is our omega).
    """
    checks.is_denoiser(weak)
    return _guide(rule, weight, Partial(_weak_branches, weak), skip)


def early_stopping(rule: Rule, weight: Weight, null: Cond, threshold=0.991) -> Guide:
    """Builds `guided`, but stops guiding a sample once its two noise predictions agree.

    They agree if <eps_c, eps_u>/(|eps_c||eps_u|) > threshold. From the next step on the sample is unguided. Costs 2
    evaluations per step, and 1 as soon as all samples of the batch have stopped.
    Source: Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models, arXiv 2312.12487.
    """
    checks.is_weight(weight)
    stage = as_stage(rule)
    return Guide(Partial(_init_stopping, stage), Partial(_apply_stopping, stage, weight, null, threshold))


def unguided() -> Guide:
    """Builds the guide that returns D_c. Costs 1 evaluation per step."""
    return stateless(_apply_unguided)


def stateless(apply, *knobs) -> Guide:
    """Builds the guide without memory that calls `apply(*knobs, state, denoise, ...)`; knobs are its leaves."""
    return Guide(Partial(no_state), Partial(apply, *knobs))


def prediction_of(denoise: Denoise, x: Array, t: Array, cond: Cond) -> Array:
    """Returns denoise(x, t, cond), cast to the widest dtype among the prediction, x and t.

    Guides call every denoiser by this function. So all branches have one dtype, and rules never compute in a dtype
    narrower than the float32 of time. Integers predicted for integer x (tokens) are not cast.
    """
    out = denoise(x, t, cond)
    floats = jnp.issubdtype(out.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.floating)
    return out.astype(jnp.result_type(out, x, t)) if floats else out


def both_branches(denoise: Denoise, x: Array, t: Array, cond: Cond, null: Cond) -> tuple[Array, Array]:
    """Returns (D(x, t, cond), D(x, t, null)). Costs 2 evaluations, in one network call on twice the batch."""
    positive, reference = at_conditions(denoise, x, t, [cond, null_like(cond, null)])
    return positive, reference


def at_conditions(denoise: Denoise, x: Array, t: Array, conds: list[Cond]) -> list[Array]:
    """Returns the predictions at (x, t) for each of the conditions, leaves [batch, ...], by one network call."""
    n, k = x.shape[0], len(conds)
    out = prediction_of(denoise, jnp.concatenate([x] * k), jnp.concatenate([t] * k), joined(*conds))
    return [out[i * n : (i + 1) * n] for i in range(k)]


def joined(*conds: Cond) -> Cond:
    """Concatenates conditions, leaves [batch, ...], along the batch axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds)


def omega_of(weight: Weight, *, t: Array, s: Array, cond: Cond) -> Array:
    """Calls a weight for a step from t to s and casts its omega [batch] to the dtype of t.

    Raises ValueError unless omega is [batch].
    """
    omega = weight(t=t, s=s, cond=cond)
    checks.is_omega(omega, t)
    return with_dtypes_of(omega, t)


def guided_by(branches: Branches, at: At, **nfe) -> Guided:
    """Returns the guided prediction of a rule's final record; nfe: the evaluations by branch."""
    counts = {branch: jnp.asarray(count, jnp.int32) for branch, count in nfe.items()}
    return as_guided(at.schedule, at.x, branches.x0, at.t, counts, branches.eps)


def as_guided(schedule: Schedule, x: Array, x0: Array, t: Array, counts, eps: Array | None = None) -> Guided:
    """Builds a guided prediction. eps: the noise to keep, by default the one that x0 implies; none if x is tokens."""
    if eps is None and jnp.issubdtype(x.dtype, jnp.floating):
        eps = eps_from_x0(schedule, x, x0, t)
    return Guided(x0, eps, counts)


def _guide(rule: Rule, weight: Weight, evaluate, skip: bool) -> Guide:
    checks.is_weight(weight)
    stage = as_stage(rule)
    apply = _apply_skipping if skip and stage.idle is not None else _apply_both
    return Guide(Partial(_init, stage), Partial(apply, stage, weight, evaluate))


def _null_branches(null, denoise, x, t, cond):
    return both_branches(denoise, x, t, cond, null)


def _weak_branches(weak, denoise, x, t, cond):
    return prediction_of(denoise, x, t, cond), prediction_of(weak, x, t, cond)


def _init(stage, x):
    return stage.init(x)


def _apply_both(stage, weight, evaluate, state, denoise, schedule, x, *, t, s, cond):
    at = At(x, t, s, schedule)
    positive, reference = evaluate(denoise, x, t, cond)
    state, branches = stage.apply(state, start(positive, reference, omega_of(weight, t=t, s=s, cond=cond)), at)
    return state, guided_by(branches, at, positive=1, reference=1)


def _apply_skipping(stage, weight, evaluate, state, denoise, schedule, x, *, t, s, cond):
    at, omega = At(x, t, s, schedule), omega_of(weight, t=t, s=s, cond=cond)
    needed = jnp.any(omega != 0)

    def with_both(x):
        after, branches = stage.apply(state, start(*evaluate(denoise, x, t, cond), omega), at._replace(x=x))
        out = guided_by(branches, at._replace(x=x))
        return after, out.x0, out.eps

    def alone(x):
        out = as_guided(schedule, x, _as_combined(prediction_of(denoise, x, t, cond), omega), t, {})
        return stage.idle(state), out.x0, out.eps

    state, x0, eps = jax.lax.cond(needed, with_both, alone, x)
    return state, Guided(x0, eps, {"positive": jnp.asarray(1, jnp.int32), "reference": needed.astype(jnp.int32)})


def _as_combined(positive: Array, omega: Array) -> Array:
    """Casts D_c to the dtype that a rule would return: a prediction of integers becomes floats."""
    return positive.astype(jnp.result_type(positive, omega))


def _init_stopping(stage: Stage, x):
    return stage.init(x), jnp.zeros(x.shape[0], bool)


def _apply_stopping(stage, weight, null, threshold, state, denoise, schedule, x, *, t, s, cond):
    inner, stopped = state
    at, omega = At(x, t, s, schedule), jnp.where(stopped, 0, omega_of(weight, t=t, s=s, cond=cond))

    def with_both(x):
        positive, reference = both_branches(denoise, x, t, cond, null)
        after, branches = stage.apply(inner, start(positive, reference, omega), at._replace(x=x))
        out = guided_by(branches, at._replace(x=x))
        checks.has_noise(out.eps)
        x0 = jnp.where(like(stopped, x), positive, out.x0)
        eps = jnp.where(like(stopped, x), eps_from_x0(schedule, x, positive, t), out.eps)
        return after, stopped | (_likeness(schedule, x, positive, reference, t) > threshold), x0, eps

    def alone(x):
        out = as_guided(schedule, x, prediction_of(denoise, x, t, cond), t, {})
        return inner, stopped, out.x0, out.eps

    needed = ~jnp.all(stopped)
    inner, stopped, x0, eps = jax.lax.cond(needed, with_both, alone, x)
    counts = {"positive": jnp.asarray(1, jnp.int32), "reference": needed.astype(jnp.int32)}
    return (inner, stopped), Guided(x0, eps, counts)


def _likeness(schedule, x, positive, reference, t):
    """Returns the cosine of the angle between the two noise predictions, [batch]; 0 where one of them is zero."""
    a, b = eps_from_x0(schedule, x, positive, t), eps_from_x0(schedule, x, reference, t)
    return row_dot(unit(a), unit(b))


def _apply_unguided(state, denoise, schedule, x, *, t, s, cond):
    del s
    x0 = prediction_of(denoise, x, t, cond)
    return state, as_guided(schedule, x, x0, t, {"positive": jnp.asarray(1, jnp.int32)})

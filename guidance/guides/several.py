"""Guides with more than two branches: composed and negative conditions, several references, a classifier's choice."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.guides.two import as_guided, asked, at_conditions, both_branches, omega_of, stateless
from guidance.predictions import velocity_coefficients
from guidance.rules import cfg as cfg_rule
from guidance.rules import perp_neg
from guidance.shapes import like, null_like
from guidance.types import Array, Cond, Denoise, Guide, Guided, Weight


def composed(weight: Weight, null: Cond, others: list[tuple[Weight, Cond]]) -> Guide:
    """Several conditions, each with its own weight, all in one network call:

        guided = D_c + omega (D_c - D_u) + sum_j omega_j (D_j - D_u)

    others: (weight, condition) pairs, conditions with leaves without batch axis; a negative weight makes a condition
    a negative prompt. All weights 0 is unguided. Evaluations: positive 1, reference 1, others J.
    Source: Compositional Visual Generation with Composable Diffusion Models, arXiv 2206.01714, eq. 11.
    """
    checks.is_weight(weight)
    return stateless(_apply_composed, weight, null, _weighted(others))


def perpendicular(weight: Weight, null: Cond, negatives: list[tuple[float, Cond]]) -> Guide:
    """Perp-Neg: (strength, negative condition) pairs that act only perpendicular to D_c - D_u; see `rules.perp_neg`.

    Evaluations: positive 1, reference 1, others J. Source: arXiv 2304.04968.
    """
    checks.is_weight(weight)
    return stateless(_apply_perpendicular, weight, null, _pairs(negatives))


def summed(weight: Weight, null: Cond, others: list[tuple[Weight, Denoise]]) -> Guide:
    """CFG and guidance away from other denoisers at the same condition, added up:

        guided = D_c + omega (D_c - D_u) + sum_j omega_j (D_c - D_j)

    Evaluations: positive 1, reference 1, others J. Source: the published combinations of CFG with perturbed attention
    (arXiv 2403.17377), skipped layers, smoothed energy (arXiv 2408.00760) or a weak network (arXiv 2406.02507).
    """
    checks.is_weight(weight)
    for _, other in others:
        checks.is_denoiser(other)
    return stateless(_apply_summed, weight, null, _weighted(others))


def classifier_chosen(classifier, sharpness=1.0) -> Guide:
    """Guidance away from the class that the clean prediction is most easily confused with; no gradient is taken.

        q = softmax(classifier(D_c)),   c' = argmax_{k != c} q_k,   omega = sharpness (1 - q_c)
        guided = D_c + omega (D_c - D_{c'})

    classifier: x0 [batch, ...] -> logits [batch, classes]; cond: int labels [batch]. A certain classifier is unguided;
    with two classes c' is always the other one; with exact branches the guided score is that of
    p_c^(1 + omega) p_c'^(-omega) at this noise level. Evaluations: positive 1, reference 1, one after the other.
    Source: our policy, after the idea of Gradient-Free Classifier Guidance, arXiv 2411.15393, whose formulas we did
    not find.
    """
    return stateless(_apply_classifier, _partial(classifier), sharpness)


def dynamic(omegas: Array, evaluator, null: Cond) -> Guide:
    """At each step and for each sample, the omega among `omegas` [K] whose guided prediction `evaluator` likes best.

    evaluator: (x0 [batch, ...], t [batch], cond) -> value [batch]. The two branches are shared by all candidates, so
    this costs CFG's evaluations plus K of the evaluator; one candidate is CFG. Source: Dynamic Classifier-Free
    Diffusion Guidance via Online Feedback, arXiv 2509.16131; the evaluator is the caller's.
    """
    return stateless(_apply_dynamic, jnp.asarray(omegas), _partial(evaluator), null)


def rectified(weight: Weight, null: Cond) -> Guide:
    """Rectified-CFG++: the guidance term is taken half a step ahead, where the conditional flow leads.

        x_m = the conditional flow from t to m = (t + s)/2,   v = v_c(x_t, t) + omega (v_c - v_u)(x_m, m)

    The paper's weight is lambda (1 - t)^gamma. Evaluations: positive 2, reference 1.
    Source: Rectified-CFG++ for Flow Based Models, arXiv 2510.07631, Algorithm 1; for other schedules than rectified
    flow the flow to m is a DDIM step, our choice.
    """
    checks.is_weight(weight)
    return stateless(_apply_rectified, weight, null)


def _weighted(pairs):
    for weight, _ in pairs:
        checks.is_weight(weight)
    return _pairs(pairs)


def _pairs(pairs):
    return tuple(weight for weight, _ in pairs), tuple(other for _, other in pairs)


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)


def _evaluate_all(denoise, x, t, cond, null, others):
    conds = [cond, null_like(cond, null), *(null_like(cond, other) for other in others)]
    return at_conditions(denoise, x, t, conds)


def _apply_composed(weight, null, pairs, state, denoise, schedule, x, *, t, s, cond):
    weights, conds = pairs
    positive, reference, *rest = _evaluate_all(denoise, x, t, cond, null, conds)
    x0 = cfg_rule(positive, reference, omega_of(weight, t=t, s=s, cond=cond))
    for own, other in zip(weights, rest, strict=True):
        x0 += like(omega_of(own, t=t, s=s, cond=cond), x) * (other - reference)
    return state, as_guided(schedule, x, x0, t, _counts(others=len(rest)))


def _apply_perpendicular(weight, null, pairs, state, denoise, schedule, x, *, t, s, cond):
    strengths, conds = pairs
    positive, reference, *rest = _evaluate_all(denoise, x, t, cond, null, conds)
    x0 = perp_neg(positive, reference, omega_of(weight, t=t, s=s, cond=cond), jnp.stack(rest), jnp.asarray(strengths))
    return state, as_guided(schedule, x, x0, t, _counts(others=len(rest)))


def _apply_summed(weight, null, pairs, state, denoise, schedule, x, *, t, s, cond):
    weights, others = pairs
    positive, reference = both_branches(denoise, x, t, cond, null)
    x0 = cfg_rule(positive, reference, omega_of(weight, t=t, s=s, cond=cond))
    for own, other in zip(weights, others, strict=True):
        x0 += like(omega_of(own, t=t, s=s, cond=cond), x) * (positive - asked(other, x, t, cond))
    return state, as_guided(schedule, x, x0, t, _counts(others=len(others)))


def _apply_classifier(classifier, sharpness, state, denoise, schedule, x, *, t, s, cond):
    if jax.tree.structure(cond) != jax.tree.structure(0) or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise ValueError("classifier_chosen: the condition must be one class label, int [batch]")
    positive = asked(denoise, x, t, cond)
    q = jax.nn.softmax(classifier(positive))
    own = jax.nn.one_hot(cond, q.shape[-1], dtype=bool)
    rival = jnp.argmax(jnp.where(own, -jnp.inf, q), axis=-1).astype(cond.dtype)
    omega = sharpness * (1 - jnp.sum(jnp.where(own, q, 0), axis=-1))
    x0 = cfg_rule(positive, asked(denoise, x, t, rival), omega)
    return state, as_guided(schedule, x, x0, t, _counts())


def _apply_dynamic(omegas, evaluator, null, state, denoise, schedule, x, *, t, s, cond):
    positive, reference = both_branches(denoise, x, t, cond, null)
    candidates = jax.vmap(lambda omega: cfg_rule(positive, reference, jnp.broadcast_to(omega, t.shape)))(omegas)
    values = jax.vmap(lambda x0: evaluator(x0, t, cond))(candidates)
    x0 = cfg_rule(positive, reference, omegas[jnp.argmax(values, axis=0)])
    return state, as_guided(schedule, x, x0, t, _counts())


def _apply_rectified(weight, null, state, denoise, schedule, x, *, t, s, cond):
    positive = asked(denoise, x, t, cond)
    ahead = as_guided(schedule, x, positive, t, {})
    m = (t + s) / 2
    x_m = like(schedule.alpha(m), x) * ahead.x0 + like(schedule.sigma(m), x) * ahead.eps
    own, reference = both_branches(denoise, x_m, m, cond, null)
    slope = velocity_coefficients(schedule, m)[0] / velocity_coefficients(schedule, t)[0]
    x0 = positive + like(omega_of(weight, t=t, s=s, cond=cond) * slope, x) * (own - reference)
    counts = _counts() | {"positive": jnp.asarray(2, jnp.int32)}
    return state, Guided(x0, as_guided(schedule, x, x0, t, {}).eps, counts)


def _counts(**more) -> dict[str, Array]:
    return {name: jnp.asarray(n, jnp.int32) for name, n in ({"positive": 1, "reference": 1} | more).items()}

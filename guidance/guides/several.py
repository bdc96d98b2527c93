"""Guides beyond CFG's two branches: several conditions, several references, and references or weights found anew."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.guides.two import as_guided, at_conditions, both_branches, omega_of, prediction_of, stateless
from guidance.predictions import velocity_coefficients
from guidance.rules import cfg as cfg_rule
from guidance.rules import perp_neg
from guidance.shapes import like, null_like
from guidance.types import Array, Cond, Denoise, Guide, Guided, Weight


def composed(weight: Weight, null: Cond, others: list[tuple[Weight, Cond]]) -> Guide:
    """Builds guidance by several conditions, each with its own weight.

        guided = D_c + omega (D_c - D_u) + sum_j omega_j (D_j - D_u)

    others: J pairs (weight omega_j, condition) with conditions without batch axis. A negative weight makes a condition
    a negative prompt. If all weights are 0 this is unguided. Evaluations: positive 1, reference 1, others J, in one
    network call.
    Source: Compositional Visual Generation with Composable Diffusion Models, arXiv 2206.01714, eq. 11.
    """
    checks.is_weight(weight)
    return stateless(_apply_composed, weight, null, _weighted(others))


def perpendicular(weight: Weight, null: Cond, negatives: list[tuple[float, Cond]]) -> Guide:
    """Builds Perp-Neg: negative conditions that act only perpendicular to D_c - D_u; see `rules.perp_neg`.

    negatives: J pairs (strength, condition) with conditions without batch axis. Evaluations: positive 1, reference 1,
    others J, in one network call. Source: arXiv 2304.04968.
    """
    checks.is_weight(weight)
    return stateless(_apply_perpendicular, weight, null, _pairs(negatives))


def summed(weight: Weight, null: Cond, others: list[tuple[Weight, Denoise]]) -> Guide:
    """Builds the sum of CFG and of guidance away from other denoisers at the same condition.

        guided = D_c + omega (D_c - D_u) + sum_j omega_j (D_c - D_j)

    others: J pairs (weight omega_j, denoiser). Evaluations: positive 1, reference 1, others J. Source: the published
    combinations of CFG with perturbed attention (arXiv 2403.17377), skipped layers, smoothed energy (arXiv 2408.00760)
    or a weak network (arXiv 2406.02507).
    """
    checks.is_weight(weight)
    for _, other in others:
        checks.is_denoiser(other)
    return stateless(_apply_summed, weight, null, _weighted(others))


def classifier_chosen(classifier, sharpness=1.0) -> Guide:
    """Builds guidance away from the class c' that a classifier confuses D_c with most; it takes no gradient.

        q = softmax(classifier(D_c)),   c' = argmax_{k != c} q_k,   omega = sharpness (1 - q_c)
        guided = D_c + omega (D_c - D_{c'})

    classifier: x0 [batch, ...] -> logits [batch, classes]. cond: int labels [batch]. Where the classifier is certain
    of c there is no guidance. If the denoiser is exact, the guided score is that of p_c^(1 + omega) p_c'^(-omega) at
    this noise level, omega held fixed. Evaluations: positive 1, reference 1, in two network calls. Raises ValueError
    unless cond is an int label.
    Source: our policy, after the idea of Gradient-Free Classifier Guidance, arXiv 2411.15393, whose formulas we did
    not find.
    """
    return stateless(_apply_classifier, _partial(classifier), sharpness)


def dynamic(omegas: Array, evaluator, null: Cond) -> Guide:
    """Builds CFG that takes, at each step and for each sample, the best of the weights `omegas` [K].

    evaluator: (x0 [batch, ...], t [batch], cond) -> value [batch]; the omega whose guided prediction has the highest
    value is taken. With one omega this is CFG. Evaluations: positive 1, reference 1, and K of the evaluator. Source:
    Dynamic Classifier-Free Diffusion Guidance via Online Feedback, arXiv 2509.16131; the evaluator is the caller's.
    """
    return stateless(_apply_dynamic, jnp.asarray(omegas), _partial(evaluator), null)


def rectified(weight: Weight, null: Cond) -> Guide:
    """Builds Rectified-CFG++, which evaluates the guidance term half a step ahead on the conditional flow.

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
    for other_weight, other in zip(weights, rest, strict=True):
        x0 += like(omega_of(other_weight, t=t, s=s, cond=cond), x) * (other - reference)
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
    for other_weight, other in zip(weights, others, strict=True):
        gap = positive - prediction_of(other, x, t, cond)
        x0 += like(omega_of(other_weight, t=t, s=s, cond=cond), x) * gap
    return state, as_guided(schedule, x, x0, t, _counts(others=len(others)))


def _apply_classifier(classifier, sharpness, state, denoise, schedule, x, *, t, s, cond):
    if jax.tree.structure(cond) != jax.tree.structure(0) or not jnp.issubdtype(cond.dtype, jnp.integer):
        raise ValueError("classifier_chosen: the condition must be one class label, int [batch]")
    positive = prediction_of(denoise, x, t, cond)
    q = jax.nn.softmax(classifier(positive))
    is_cond = jax.nn.one_hot(cond, q.shape[-1], dtype=bool)
    rival = jnp.argmax(jnp.where(is_cond, -jnp.inf, q), axis=-1).astype(cond.dtype)
    omega = sharpness * (1 - jnp.sum(jnp.where(is_cond, q, 0), axis=-1))
    x0 = cfg_rule(positive, prediction_of(denoise, x, t, rival), omega)
    return state, as_guided(schedule, x, x0, t, _counts())


def _apply_dynamic(omegas, evaluator, null, state, denoise, schedule, x, *, t, s, cond):
    positive, reference = both_branches(denoise, x, t, cond, null)
    candidates = jax.vmap(lambda omega: cfg_rule(positive, reference, jnp.broadcast_to(omega, t.shape)))(omegas)
    values = jax.vmap(lambda x0: evaluator(x0, t, cond))(candidates)
    x0 = cfg_rule(positive, reference, omegas[jnp.argmax(values, axis=0)])
    return state, as_guided(schedule, x, x0, t, _counts())


def _apply_rectified(weight, null, state, denoise, schedule, x, *, t, s, cond):
    positive = prediction_of(denoise, x, t, cond)
    ahead = as_guided(schedule, x, positive, t, {})
    m = (t + s) / 2
    x_m = like(schedule.alpha(m), x) * ahead.x0 + like(schedule.sigma(m), x) * ahead.eps
    positive_m, reference_m = both_branches(denoise, x_m, m, cond, null)
    slope = velocity_coefficients(schedule, m)[0] / velocity_coefficients(schedule, t)[0]
    x0 = positive + like(omega_of(weight, t=t, s=s, cond=cond) * slope, x) * (positive_m - reference_m)
    counts = _counts() | {"positive": jnp.asarray(2, jnp.int32)}
    return state, Guided(x0, as_guided(schedule, x, x0, t, {}).eps, counts)


def _counts(**more) -> dict[str, Array]:
    return {name: jnp.asarray(n, jnp.int32) for name, n in ({"positive": 1, "reference": 1} | more).items()}

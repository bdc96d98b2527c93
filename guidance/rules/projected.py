"""Rules that project one prediction on another: adaptive projected guidance, tangential damping, Perp-Neg.

Norms and inner products are per sample, over all other axes. g is the gap D_c - D_u.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.predictions import eps_from_x0
from guidance.ranges import Cap, Finite, ranged
from guidance.rules.linear import cfg
from guidance.rules.stacking import stack, stateless, with_gap
from guidance.shapes import as_state, like, ratio, row_dot, row_norm, unit, with_dtypes_of
from guidance.types import Array, Rule, Stage


@ranged
def momentum(beta: Finite) -> Stage:
    """Builds a gap stage with a memory m: it replaces g by g + beta m and keeps the result as the next m.

    m = 0 at the start of a run. beta < 0 pushes away from the direction of earlier steps. Since every step's gap
    enters the memory, the reference branch is never skipped.
    Source: Eliminating Oversaturation and Artifacts of High Guidance Scales, arXiv 2410.02416, section 4.
    """
    return Stage(Partial(_no_gap), Partial(_momentum, beta), None)


def _no_gap(x):
    return jnp.zeros_like(as_state(x))


def _momentum(beta, memory, branches, at):
    del at
    gap = branches.positive - branches.reference + beta * memory
    return with_dtypes_of(gap, memory), with_gap(branches, gap)


@ranged
def norm_cap(radius: Cap) -> Stage:
    """Builds a gap stage that replaces g by g min(1, radius/|g|), so that |g| <= radius.

    Source: arXiv 2410.02416, section 4.
    """
    return stateless(_norm_cap, radius)


def _norm_cap(radius, branches, at):
    del at
    gap = branches.positive - branches.reference
    factor = jnp.minimum(1, ratio(jnp.asarray(radius, gap.dtype), row_norm(gap), 1.0))
    return with_gap(branches, like(factor, gap) * gap)


@ranged
def project(eta: Finite) -> Stage:
    """Builds a gap stage that replaces g by g_perp + eta g_par, where g_par is the part of g along D_c.

    Source: arXiv 2410.02416, section 4; x0 space, as its authors advise.
    """
    return stateless(_project, eta)


def _project(eta, branches, at):
    del at
    gap = branches.positive - branches.reference
    parallel = along(gap, branches.positive)
    return with_gap(branches, gap - parallel + eta * parallel)


def along(a: Array, b: Array) -> Array:
    """Returns the part of `a` along `b` in each sample, (<a, b>/|b|^2) b; zero where b is zero."""
    direction = unit(b)
    return like(row_dot(a, direction), b) * direction


@ranged
def apg(eta: Finite = 0.0, cap: Cap = 15.0, beta: Finite = -0.5) -> Rule:
    """Builds adaptive projected guidance: `momentum(beta)`, then `norm_cap(cap)`, then `project(eta)`, then CFG.

    eta = 1, cap = inf, beta = 0 is CFG. The defaults are the paper's for SDXL. Its (cap, beta) are (7.5, -0.75) for
    Stable Diffusion 2.1, (5, -0.5) for DiT-XL/2 and (2.5, -0.75) for EDM2-S. The rule does not preserve the norm: at
    eta = 0, beta = 0 it gives |guided|^2 = |D_c|^2 + omega^2 |g_perp|^2, g after the cap. Costs 2 evaluations on every
    step.
    Source: arXiv 2410.02416, section 4 and Table 10 (its w - 1 is our omega).
    """
    return stack(momentum(beta), norm_cap(cap), project(eta), cfg)


def tcfg() -> Rule:
    """Builds tangential damping CFG, which is `tangential` followed by CFG.

    `tangential` drops from the reference what lies off the direction that the two noise predictions share most. Costs
    2 evaluations per step.
    Source: TCFG: Tangential Damping Classifier-free Guidance, arXiv 2503.18137.
    """
    return stack(tangential(), cfg)


def tangential() -> Stage:
    """Builds tangential damping, a gap stage that keeps of the reference only its part along a shared direction.

    In eps space let v_1 be the leading right singular vector of the matrix with the rows eps_u, eps_c. The stage
    replaces eps_u by <eps_u, v_1> v_1. We compute with the mean m and half the difference h = (eps_c - eps_u)/2, which
    span the same plane. If (y_1, y_2) is the leading unit eigenvector of their Gram matrix, v_1 is along y_1 m + y_2 h
    and

        eps_u - <eps_u, v_1> v_1 = (y_1 + y_2)(y_2 m - y_1 h)

    With h = -(alpha/sigma) (D_c - D_u)/2 the factor alpha/sigma cancels, so that the gap in x0 is finite at alpha = 0.
    In a tie (orthogonal branches of equal norm) v_1 is along their mean, our choice.
    Source: TCFG: Tangential Damping Classifier-free Guidance, arXiv 2503.18137, section 4 (its w - 1 is our omega).
    """
    return stateless(_tangential)


def _tangential(branches, at):
    gap = branches.positive - branches.reference
    mean = eps_from_x0(at.schedule, at.x, branches.positive - gap / 2, at.t)
    k = at.schedule.alpha(at.t) / jnp.maximum(at.schedule.sigma(at.t), jnp.finfo(gap.dtype).tiny)
    y1, y2_over_k = _leading(row_dot(mean, mean), row_dot(mean, -gap / 2), row_dot(gap, gap) / 4, k)
    share = like(y1 + k * y2_over_k, gap)
    return with_gap(branches, gap - share * (like(y2_over_k, gap) * mean + like(y1, gap) * gap / 2))


def _leading(a, b, d, k):
    """Returns (y_1, y_2/k), finite as k -> 0, for the leading unit eigenvector y of [[a, k b], [k b, k^2 d]].

    In a tie of the eigenvalues it is (1, 0).
    """
    size = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(a, k**2 * d), jnp.abs(k * b)))
    a, b, d = (ratio(value, size) for value in (a, b, d))
    difference = a - k**2 * d
    squared = difference**2 + (2 * k * b) ** 2
    tie = squared == 0
    spread = jnp.sqrt(jnp.where(tie, 1, squared))
    cosine2 = jnp.where(tie, 1, difference / spread)
    mostly_mean = cosine2 >= 0
    half = jnp.sqrt((1 + jnp.abs(cosine2)) / 2)  # the larger of |cos|, |sin| of the angle
    other = b / (spread * half)  # the smaller one, divided by k
    sign = jnp.where(b < 0, -1.0, 1.0)
    y1 = jnp.where(mostly_mean, half, k * jnp.abs(other))
    return y1, jnp.where(mostly_mean, other, sign * half / jnp.where(mostly_mean, 1, k))


def perp_neg(positive: Array, reference: Array, omega: Array, negatives: Array, strengths: Array) -> Array:
    """Returns Perp-Neg's prediction: each negative condition acts only perpendicular to the positive one.

        g = D_c - D_u,   g_j = D_j - D_u,   perp_j = g_j - (<g_j, g>/|g|^2) g
        guided = D_u + (1 + omega)(g - sum_j strength_j perp_j)

    negatives D_j [J, batch, ...]; strengths [J], at least 0. Strengths of 0 give CFG. A negative with g_j parallel to
    g has no effect. At omega = 0 the negatives still act, because the paper multiplies them by the scale 1 + omega.
    Costs 2 + J evaluations per step.
    Source: Re-imagine the Negative Prompt Algorithm, arXiv 2304.04968, section 4.
    """
    gap = positive - reference
    total = jnp.zeros_like(gap)
    for j in range(negatives.shape[0]):
        other = negatives[j] - reference
        total += strengths[j] * (other - along(other, gap))
    return reference + (1 + like(omega, gap)) * (gap - total)

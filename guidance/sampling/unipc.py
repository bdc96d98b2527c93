"""UniPC: a predictor of order p, and a corrector that reuses the next step's evaluation and so costs none.

In the notation of `guidance.sampling.dpm` (x_0-prediction D, lambda, h), with z = -h and B(h) = z (bh1) or e^z - 1
(bh2), a step from t to s with older evaluations D_k at lambda_k, r_k = (lambda_k - lambda_t)/h < 0, is

    x_s = (DDIM step) - alpha_s B sum_k rho_k (D_k - D_t)/r_k

where the rho_k solve sum_k rho_k r_k^(n-1) = n! phi_(n+1)(z) / B, n = 1, 2, .., which makes the integral exact for
polynomials in lambda. The corrector adds D_s with r = 1 to the list. phi_n(z) = sum_(j>=1) z^j/(j + n - 1)!.
"""

import dataclasses
import math
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.ranges import OneOf, Whole, ranged
from guidance.sampling.dpm import half_log_snr
from guidance.shapes import like
from guidance.types import Array, Schedule, Solver

_SERIES = 12  # terms of phi_n below |z| = 1/2: the remainder is under 1e-12 of phi_n


class _Memory(NamedTuple):
    """Evaluations up to the last step, newest first, and that step's DDIM prediction of where we are now."""

    x0: tuple[Array, ...]  # order times [batch, ...]
    lam: tuple[Array, ...]  # order times [batch]
    base: Array  # [batch, ...]
    finite: Array  # [batch]: whether that step started at a finite lambda
    seen: Array  # [batch]: evaluations so far, int32


@ranged
def unipc(order: Annotated[int, Whole(1, 3)] = 2, variant: Annotated[str, OneOf(("bh1", "bh2"))] = "bh2") -> Solver:
    """UniPC of order 1, 2 or 3 (static) with B(h) = e^-h - 1 ("bh2") or -h ("bh1"); one evaluation a step.

    UniC after UniP, in x_0-prediction; the corrected state replaces x_t once D_t is known, and eps is moved along by
    (x_corrected - x_t)/sigma_t. The trajectory shows predictions; the corrections are inside the next step.
    Converges with order p + 1 between finite lambdas, where each step but the last is corrected. A step that started
    at alpha = 0 is not (our choice: bh1 diverges there). Warm-up has the orders 1, 2, .., a step to sigma_s = 0 is of
    first order; diffusers lowers the order of the last steps in any case.
    Raises ValueError for another order or variant.
    Source: UniPC, arXiv 2302.04867, algorithms 1-2 and eq. 3-9.
    """
    return Solver(Partial(_Begin(order)), Partial(_UniPC(variant)))


@dataclasses.dataclass(frozen=True)
class _Begin:
    """Compared by value, as `_UniPC`, so that equal solvers do not compile twice."""

    order: int

    def __call__(self, x: Array) -> _Memory:
        zero, row = jnp.zeros_like(x), jnp.zeros(x.shape[:1], x.dtype)
        finite, count = jnp.zeros(x.shape[:1], bool), jnp.zeros(x.shape[:1], jnp.int32)
        return _Memory((zero,) * self.order, (row,) * self.order, zero, finite, count)


@dataclasses.dataclass(frozen=True)
class _UniPC:
    variant: str

    def __call__(self, keys, memory: _Memory, carry, evaluate, x, *, t, s, schedule: Schedule):
        del keys
        carry, guided = evaluate(carry, x, t=t, s=s)
        checks.has_noise(guided.eps)
        lam, lam_s = half_log_snr(schedule, t), half_log_snr(schedule, s)

        correction = _curvature(self.variant, memory, lam, guided.x0)
        corrected = memory.base + like(schedule.alpha(t), x) * correction
        corrected = jnp.where(like(memory.finite & (memory.seen > 0), x), corrected, x)
        sigma = schedule.sigma(t)
        eps = guided.eps + (corrected - x) / like(jnp.where(sigma > 0, sigma, 1), x)

        base = like(schedule.alpha(s), x) * guided.x0 + like(schedule.sigma(s), x) * eps
        x0, lams = (guided.x0, *memory.x0[:-1]), (lam, *memory.lam[:-1])
        memory = _Memory(x0, lams, base, schedule.alpha(t) > 0, memory.seen + 1)
        predicted = base + like(schedule.alpha(s), x) * _curvature(self.variant, memory, lam_s)
        return memory, carry, jnp.where(like(schedule.sigma(s) > 0, x), predicted, base)


def _curvature(variant: str, memory: _Memory, lam_s: Array, new: Array | None = None) -> Array:
    """-B sum_k rho_k (D_k - D_t)/r_k of the highest order that the evaluations so far allow; `new` is D_s, if known.

    A predictor of order p has the nodes r_1, .., r_(p-1), a corrector r_1, .., r_(p-1), 1.
    """
    h = lam_s - memory.lam[0]
    h = jnp.where(h == 0, 1, h)
    total = jnp.zeros_like(memory.base)
    for p in range(1, len(memory.x0) + 1):
        older = range(1, p)
        # before there are p evaluations the sum is not used; nodes that differ keep it finite, and its gradient too
        known = memory.seen >= p
        nodes = [jnp.where(known, (memory.lam[k] - memory.lam[0]) / h, -k) for k in older]
        nodes = [jnp.where(r == 0, -k, r) for k, r in enumerate(nodes, 1)]
        points = [memory.x0[k] for k in older]
        if new is not None:
            nodes, points = [*nodes, jnp.ones_like(h)], [*points, new]
        b, rates = _rates(variant, nodes, h)
        terms = [
            like(b * rho / r, total) * (point - memory.x0[0])
            for rho, r, point in zip(rates, nodes, points, strict=True)
        ]
        total = jnp.where(like(known, total), -sum(terms, jnp.zeros_like(total)), total)
    return total


def _rates(variant: str, nodes: list[Array], h: Array) -> tuple[Array, list[Array]]:
    """B(h) and the solution rho_k of sum_k rho_k r_k^(n-1) = n! phi_(n+1)/B; with one node the paper's rho = 1/2.

    The right side is a linear functional of polynomials, X^(n-1) -> n! phi_(n+1)/B, and rho_k is its value at the
    Lagrange polynomial of node k.
    """
    b = -h if variant == "bh1" else jnp.expm1(-h)
    if len(nodes) == 1:
        return b, [jnp.full_like(h, 0.5)]
    moments = [math.factorial(n) * _phi(n + 1, -h) / b for n in range(1, len(nodes) + 1)]
    rates: list[Array] = []
    zero = jnp.zeros_like(h)
    for k, node in enumerate(nodes):
        polynomial = [jnp.ones_like(h)]
        for other in nodes[:k] + nodes[k + 1 :]:
            shifted, scaled = [zero, *polynomial], [*(-other * c for c in polynomial), zero]
            polynomial = [(a + c) / (node - other) for a, c in zip(shifted, scaled, strict=True)]
        rates.append(sum((c * m for c, m in zip(polynomial, moments, strict=True)), zero))
    return b, rates


def _phi(n: int, z: Array) -> Array:
    """phi_n(z) = sum_(j>=1) z^j/(j + n - 1)!, i.e. phi_1 = e^z - 1, phi_(n+1) = phi_n/z - 1/n!.

    The recursion loses n digits of |z| where z is small; there the series is summed.
    """
    small = jnp.abs(z) < 0.5
    far, near = jnp.where(small, -1.0, z), jnp.where(small, z, 0.0)
    value = jnp.expm1(far)
    for k in range(1, n):
        value = value / far - 1 / math.factorial(k)
    series = jnp.zeros_like(z)
    for j in range(_SERIES, 0, -1):
        series = near * (series + 1 / math.factorial(j + n - 1))
    return jnp.where(small, series, value)

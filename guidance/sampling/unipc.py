"""UniPC: a predictor of order p, and a corrector that reuses the next step's evaluation and so costs no evaluation.

The notation is that of `guidance.sampling.dpm` (x_0-prediction D, lambda, h), with z = -h and B(h) = z (bh1) or e^z -
1 (bh2). Earlier steps evaluated D_k at lambda_k; let r_k = (lambda_k - lambda_t)/h < 0. A step from t to s is

    x_s = (DDIM step) - alpha_s B sum_k rho_k (D_k - D_t)/r_k

The rho_k solve sum_k rho_k r_k^(n-1) = n! phi_(n+1)(z) / B for n = 1, 2, .., with phi_n(z) = sum_(j>=1) z^j/(j + n -
1)!, so that the integral over D is exact for polynomials in lambda. The corrector adds D_s, with r = 1, to the sum.
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

_SERIES = 12  # terms of the series of phi_n for |z| < 1/2: the relative error is below 1e-12


class _Memory(NamedTuple):
    """The latest evaluations, newest first, and the DDIM step from the last of them to the current time."""

    x0: tuple[Array, ...]  # order times [batch, ...]
    lam: tuple[Array, ...]  # order times [batch]
    base: Array  # [batch, ...]
    finite: Array  # [batch]: whether the last step started at a finite lambda
    seen: Array  # [batch]: the number of evaluations so far, int32


@ranged
def unipc(order: Annotated[int, Whole(1, 3)] = 2, variant: Annotated[str, OneOf(("bh1", "bh2"))] = "bh2") -> Solver:
    """Builds UniPC of order p = 1, 2 or 3, with B(h) = e^-h - 1 ("bh2") or -h ("bh1"), h = lambda_s - lambda_t.

    Each step first corrects x_t, as soon as D_t is known, and then predicts x_s. The correction also moves eps, by
    (x_corrected - x_t)/sigma_t. A trajectory shows the uncorrected predictions. The order of convergence is p + 1
    between finite lambdas, where all steps but the last are corrected. A step from alpha = 0 is not corrected, our
    choice, because bh1 diverges there. The first steps have the orders 1, 2, .., and a step to sigma_s = 0 has order
    1; diffusers always lowers the order of the last steps. Costs 1 evaluation per step. Raises ValueError for another
    order or variant.
    Source: UniPC, arXiv 2302.04867, algorithms 1-2 and eq. 3-9.
    """
    return Solver(Partial(_Begin(order)), Partial(_UniPC(variant)))


@dataclasses.dataclass(frozen=True)
class _Begin:
    """The initial memory. It compares by value, as `_UniPC` does, so that equal solvers do not compile twice."""

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
    """Returns -B sum_k rho_k (D_k - D_t)/r_k of the highest order that the evaluations so far allow.

    A predictor of order p has the nodes r_1, .., r_(p-1). With new = D_s it is a corrector, which has the node 1 too.
    """
    h = lam_s - memory.lam[0]
    h = jnp.where(h == 0, 1, h)
    total = jnp.zeros_like(memory.base)
    for p in range(1, len(memory.x0) + 1):
        older = range(1, p)
        # with fewer than p evaluations this sum is not used; distinct nodes keep it and its gradient finite
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
    """Returns B(h) and the solution rho_k of sum_k rho_k r_k^(n-1) = n! phi_(n+1)/B; for one node the paper's 1/2.

    The right side defines a linear functional on polynomials, X^(n-1) -> n! phi_(n+1)/B. rho_k is its value at the
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
    """Returns phi_n(z) = sum_(j>=1) z^j/(j + n - 1)!, by phi_1 = e^z - 1 and phi_(n+1) = phi_n/z - 1/n!.

    For small |z| the recursion cancels, losing a factor |z| of precision each time. There the series is summed
    instead.
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

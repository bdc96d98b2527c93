"""CFG++, which combines a guided x0-prediction with the noise of the reference branch."""

from typing import Annotated

from guidance.predictions import eps_from_x0
from guidance.ranges import Number, WeightIs
from guidance.rules.stacking import stateless
from guidance.shapes import like
from guidance.types import Rule


def cfg_plus_plus() -> Annotated[Rule, WeightIs("lambda", Number(0, 1, "[]"))]:
    """Builds CFG++: x0 = D_u + lambda (D_c - D_u) and eps = eps_u, where lambda is the value of the weight.

    The weight is not omega here: lambda lies in [0, 1] (the paper's default is 0.6). 0 is unconditional, and 1 is D_c
    with the noise of D_u. A DDIM step of this rule equals one of CFG with

        1 + omega = lambda alpha_s / (alpha_s - (sigma_s/sigma_t) alpha_t)

    For rectified flow this is lambda t (1 - s)/(t - s); the paper's appendix has lambda t/(t - s). It grows with the
    number of steps, so that a fixed lambda has no limit. A step that does not read `Guided.eps` gets the plain
    interpolation x0. Costs 2 evaluations on every step.
    Source: CFG++: Manifold-constrained Classifier Free Guidance, arXiv 2406.08070, Algorithm 2.
    """
    return stateless(_cfg_plus_plus, neutral=False)


def _cfg_plus_plus(branches, at):
    gap = branches.positive - branches.reference
    eps = eps_from_x0(at.schedule, at.x, branches.reference, at.t)
    return branches._replace(x0=branches.reference + like(branches.omega, gap) * gap, eps=eps)

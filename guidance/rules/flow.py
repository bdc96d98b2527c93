"""CFG-Zero*: it scales the reference velocity optimally, and starts with steps of zero velocity."""

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.predictions import velocity_coefficients, x0_to
from guidance.ranges import Index, ranged
from guidance.rules.linear import cfg
from guidance.rules.projected import along
from guidance.rules.stacking import stack, stateless, with_gap
from guidance.shapes import like
from guidance.types import Rule, Stage


@ranged
def cfg_zero_star(steps: Index = 1) -> Rule:
    """Builds CFG-Zero*: `optimized_scale`, then CFG, then `zero_init(steps)`.

    Costs 2 evaluations per step, also on the first steps, whose velocity is set to zero.
    Source: CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, arXiv 2503.18886, Algorithm 1.
    """
    return stack(optimized_scale(), cfg, zero_init(steps))


def optimized_scale() -> Stage:
    """Builds a gap stage in velocity space: CFG becomes v_c + omega (v_c - s v_u) with s = <v_c, v_u>/|v_u|^2.

    There is one s per sample. With velocity = a x0 + b x, the gap D_c - D_u = (v_c - v_u)/a becomes (v_c - s v_u)/a.
    Source: arXiv 2503.18886, eqs. 7-8. Its bound, eq. 9, does not hold in general; the minimiser s is right.
    """
    return stateless(_optimized_scale)


def _optimized_scale(branches, at):
    positive = x0_to("velocity", at.schedule, at.x, branches.positive, at.t)
    reference = x0_to("velocity", at.schedule, at.x, branches.reference, at.t)
    slope, _ = velocity_coefficients(at.schedule, at.t)
    return with_gap(branches, (positive - along(positive, reference)) / like(slope, positive))


@ranged
def zero_init(steps: Index = 1) -> Stage:
    """Builds an outcome stage that sets the velocity to zero on the first `steps` steps of a run.

    With velocity = a x0 + b x it returns x0 = -(b/a) x; for rectified flow this is x. The network is evaluated all the
    same. The velocity of an exact model at t = 1 is not zero (for rectified flow it is x - E x_0), so this helps only
    if a network's velocity there is worse than zero. Source: arXiv 2503.18886, section 3.3.
    """
    return Stage(Partial(_count_from_zero), Partial(_zero_init, steps), None)


def _count_from_zero(x):
    return jnp.zeros(x.shape[0], jnp.int32)


def _zero_init(steps, count, branches, at):
    slope, offset = velocity_coefficients(at.schedule, at.t)
    still = like(-offset / slope, at.x) * at.x
    return count + 1, branches._replace(x0=jnp.where(like(count < steps, still), still, branches.x0))

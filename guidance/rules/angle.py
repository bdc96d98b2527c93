"""Angle domain guidance, which rotates the conditional prediction instead of extrapolating it."""

import math

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.ranges import Cap, ranged
from guidance.rules.stacking import neutral
from guidance.shapes import like, ratio, row_dot, row_norm, unit
from guidance.types import Array, Rule

SMALL = 1e-3  # for sin(gamma) up to this the rotation is replaced by the linear rule, as in the paper


@ranged
def angle_domain(cap: Cap = math.pi / 3) -> Rule:
    """Builds angle domain guidance (ADG), which turns D_c away from D_u by an angle a, in the plane of the two.

        gamma = angle(D_c, D_u),   a = min(max(omega, 0) gamma, cap),   e = D_c - (<D_c, D_u>/|D_u|^2) D_u
        guided = cos(a) D_c + k e,   k = sin(a)/sin(gamma), or omega where sin(gamma) <= 1e-3

    Angles are in radians, one per sample over all other axes, in x0 space. |guided|^2 = |D_c|^2 (1 + sin(2a)
    sin(gamma)), for a cap of at most pi/2 between 1 and 2 times |D_c|^2. omega <= 0 gives D_c. If D_c or D_u is zero
    there is no angle, and D_c is returned. Costs 2 evaluations per step.
    Source: Angle Domain Guidance, arXiv 2506.11039, Algorithm 1 (its w - 1 is our omega, its cap is pi/3).
    """
    return Partial(_angle_domain, cap)


@neutral
def _angle_domain(cap, positive: Array, reference: Array, omega: Array) -> Array:
    away, length = unit(reference), row_norm(positive)
    along = row_dot(positive, away)
    orthogonal = positive - like(along, positive) * away
    rise = row_norm(orthogonal)
    defined = (length > 0) & (row_norm(reference) > 0)
    gamma = jnp.arctan2(rise, jnp.where(defined, along, 1))
    turn = jnp.minimum(jnp.maximum(omega, 0) * gamma, cap)
    sine = ratio(rise, length)
    steep = sine > SMALL
    k = jnp.where(steep, jnp.sin(turn) / jnp.where(steep, sine, 1), jnp.maximum(omega, 0))
    guided = like(jnp.cos(turn), positive) * positive + like(k, positive) * orthogonal
    return jnp.where(like(defined, positive), guided, positive)

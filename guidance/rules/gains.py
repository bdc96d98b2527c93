"""Gain stages: rules whose weight depends on the gap between the branches. They change omega for each sample."""

import jax.numpy as jnp

from guidance.ranges import NonNegative, ranged
from guidance.rules.linear import cfg
from guidance.rules.stacking import gain, stack, stateless
from guidance.shapes import ratio, row_dot, row_norm, unit
from guidance.types import Array, At, Branches, Rule

FAR = 1e6  # what |D_c - D_u|/|D_u| counts as where D_u is zero


@ranged
def power_law(exponent: NonNegative = 0.9) -> Rule:
    """Power-law CFG: s_c + omega (s_c - s_u) |s_c - s_u|^exponent, in score space; exponent 0 is CFG.

    The score gap is alpha (D_c - D_u)/sigma^2, so omega <- omega (alpha |D_c - D_u|/sigma^2)^exponent. Costs as CFG.
    Source: Overshoot and Shrinkage in Classifier-Free Guidance, arXiv 2502.07849 (its w is our omega).
    """
    return stack(stateless(_power_law, exponent), cfg)


def _power_law(exponent, branches, at):
    alpha, sigma = at.schedule.alpha(at.t), at.schedule.sigma(at.t)
    size = row_norm(branches.positive - branches.reference) * ratio(alpha, sigma**2)
    return gain(_power(size, exponent), branches)


@ranged
def gap_normalised(gamma: NonNegative = 1.0) -> Rule:
    """The rule of beta-CFG: eps_u + (1 + omega) (eps_c - eps_u)/|eps_c - eps_u|^gamma; gamma = 0 is CFG.

    The eps gap is alpha (D_c - D_u)/sigma. The paper's weight in time is `weights.beta`. omega = 0 is unguided only
    for gamma = 0: the scale itself is divided, so the reference branch is never skipped. Two evaluations a step.
    Source: Classifier-free Guidance with Adaptive Scaling, arXiv 2502.10574 (its w Beta(p) is our 1 + omega).
    """
    return stack(stateless(_gap_normalised, gamma, neutral=False), cfg)


def _gap_normalised(gamma, branches, at):
    scale = ratio(1 + branches.omega, _power(eps_gap(branches, at), gamma))
    return branches._replace(omega=scale - 1)


def eps_gap(branches: Branches, at: At) -> Array:
    """|eps_c - eps_u| = alpha |D_c - D_u|/sigma for each sample, [batch]."""
    return row_norm(branches.positive - branches.reference) * ratio(at.schedule.alpha(at.t), at.schedule.sigma(at.t))


@ranged
def magnitude_aware(sensitivity: NonNegative = 8.0) -> Rule:
    """MAMBO-G: omega <- omega exp(-sensitivity |D_c - D_u|/|D_u|): weak guidance where the branches are far apart.

    0 is CFG. We take x0 space; the published code takes whatever the network predicts. Two evaluations a step.
    Source: the MagnitudeAwareGuidance of diffusers (there w - 1 is our omega, and the sensitivity is called alpha).
    """
    return stack(stateless(_magnitude_aware, sensitivity), cfg)


def _magnitude_aware(sensitivity, branches, at):
    del at
    size = row_norm(branches.positive - branches.reference)
    return gain(jnp.exp(-sensitivity * ratio(size, row_norm(branches.reference), FAR)), branches)


def effective_scale(branches: Branches) -> Array:
    """<x0 - D_u, D_c - D_u>/|D_c - D_u|^2 [batch]: the scale 1 + omega of the CFG that goes equally far along the gap.

    To compare rules at equal strength. Source: Guidance Matters, arXiv 2602.22570.
    """
    gap = branches.positive - branches.reference
    return ratio(row_dot(branches.x0 - branches.reference, unit(gap)), row_norm(gap), 1.0)


def _power(size, exponent):
    """size^exponent with a finite gradient at size = 0, where it is 0 (1 for exponent = 0)."""
    zero = size == 0
    return jnp.where(zero, jnp.where(exponent == 0, 1.0, 0.0), jnp.where(zero, 1.0, size) ** exponent)

"""Gain stages: they change each sample's omega according to the gap between its two predictions."""

import jax.numpy as jnp

from guidance.ranges import NonNegative, ranged
from guidance.rules.linear import cfg
from guidance.rules.stacking import gain, stack, stateless
from guidance.shapes import ratio, row_dot, row_norm, unit
from guidance.types import Array, At, Branches, Rule

FAR = 1e6  # what |D_c - D_u|/|D_u| counts as where D_u is zero


@ranged
def power_law(exponent: NonNegative = 0.9) -> Rule:
    """Builds power-law CFG, s_c + omega (s_c - s_u) |s_c - s_u|^exponent in score space; exponent 0 is CFG.

    The gap of the scores is alpha (D_c - D_u)/sigma^2, so omega becomes omega (alpha |D_c - D_u|/sigma^2)^exponent.
    Costs as CFG, 2 evaluations per step.
    Source: Overshoot and Shrinkage in Classifier-Free Guidance, arXiv 2502.07849 (its w is our omega).
    """
    return stack(stateless(_power_law, exponent), cfg)


def _power_law(exponent, branches, at):
    alpha, sigma = at.schedule.alpha(at.t), at.schedule.sigma(at.t)
    size = row_norm(branches.positive - branches.reference) * ratio(alpha, sigma**2)
    return gain(_power(size, exponent), branches)


@ranged
def gap_normalised(gamma: NonNegative = 1.0) -> Rule:
    """Builds the rule of beta-CFG, eps_u + (1 + omega) (eps_c - eps_u)/|eps_c - eps_u|^gamma; gamma = 0 is CFG.

    The gap of the noises is alpha (D_c - D_u)/sigma. Since the scale 1 + omega is divided, omega = 0 is unguided only
    for gamma = 0, and the reference branch is never skipped. The paper's weight over time is `weights.beta`. Costs 2
    evaluations on every step.
    Source: Classifier-free Guidance with Adaptive Scaling, arXiv 2502.10574 (its w Beta(p) is our 1 + omega).
    """
    return stack(stateless(_gap_normalised, gamma, neutral=False), cfg)


def _gap_normalised(gamma, branches, at):
    scale = ratio(1 + branches.omega, _power(eps_gap(branches, at), gamma))
    return branches._replace(omega=scale - 1)


def eps_gap(branches: Branches, at: At) -> Array:
    """Returns |eps_c - eps_u| = alpha |D_c - D_u|/sigma of each sample, [batch]."""
    return row_norm(branches.positive - branches.reference) * ratio(at.schedule.alpha(at.t), at.schedule.sigma(at.t))


@ranged
def magnitude_aware(sensitivity: NonNegative = 8.0) -> Rule:
    """Builds MAMBO-G, CFG with omega replaced by omega exp(-sensitivity |D_c - D_u|/|D_u|).

    Guidance is weak where the predictions are far apart. A sensitivity of 0 is CFG. We compute the ratio in x0 space;
    the published code computes it in whatever the network predicts. Costs 2 evaluations per step.
    Source: the MagnitudeAwareGuidance of diffusers (there w - 1 is our omega, and the sensitivity is called alpha).
    """
    return stack(stateless(_magnitude_aware, sensitivity), cfg)


def _magnitude_aware(sensitivity, branches, at):
    del at
    size = row_norm(branches.positive - branches.reference)
    return gain(jnp.exp(-sensitivity * ratio(size, row_norm(branches.reference), FAR)), branches)


def effective_scale(branches: Branches) -> Array:
    """Returns <x0 - D_u, D_c - D_u>/|D_c - D_u|^2 [batch], the scale 1 + omega of the CFG equally far along the gap.

    It allows rules to be compared at equal strength. It is 1 where the predictions are equal. Source: Guidance
    Matters, arXiv 2602.22570.
    """
    gap = branches.positive - branches.reference
    return ratio(row_dot(branches.x0 - branches.reference, unit(gap)), row_norm(gap), 1.0)


def _power(size, exponent):
    """Returns size^exponent with a finite gradient at size = 0, where the value is 0, or 1 for exponent = 0."""
    zero = size == 0
    return jnp.where(zero, jnp.where(exponent == 0, 1.0, 0.0), jnp.where(zero, 1.0, size) ** exponent)

"""Rules that limit the size of the guided prediction: rescale, energy-preserving, MaHiRo."""

import jax
import jax.numpy as jnp

from guidance.ranges import Share, not_by_name, ranged
from guidance.rules.linear import cfg, scale_from_omega
from guidance.rules.stacking import neutral, stack, stateless
from guidance.shapes import like, ratio, row_norm
from guidance.types import Array, Rule, Stage


@ranged
def cfg_rescale(phi: Share = 0.7) -> Rule:
    """Builds CFG followed by `rescale(phi)`. The paper uses omega = 6.5. Costs 2 evaluations per step.

    Source: Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv 2305.08891, eqs. 15-16.
    """
    return stack(cfg, rescale(phi))


@ranged
def rescale(phi: Share = 0.7) -> Stage:
    """Builds an outcome stage that replaces x0 by phi x0 std(D_c)/std(x0) + (1 - phi) x0.

    std runs over all axes of one sample. phi = 0 changes nothing, and phi = 1 gives x0 the standard deviation of D_c.
    If std(x0) = 0 then x0 is unchanged. Source: Common Diffusion Noise Schedules and Sample Steps are Flawed, arXiv
    2305.08891, eqs. 15-16.
    """
    return stateless(_rescale, phi)


def _rescale(phi, branches, at):
    del at
    centred = lambda a: a - like(jnp.mean(a.reshape(a.shape[0], -1), axis=-1), a)  # noqa: E731
    factor = ratio(row_norm(centred(branches.positive)), row_norm(centred(branches.x0)), 1.0)
    return branches._replace(x0=like(phi * factor + (1 - phi), branches.x0) * branches.x0)


def ep_cfg() -> Rule:
    """Builds energy-preserving CFG, which is CFG followed by `energy`. Costs 2 evaluations per step.

    Source: EP-CFG: Energy-Preserving Classifier-Free Guidance, arXiv 2412.09966.
    """
    return stack(cfg, energy())


def energy() -> Stage:
    """Builds an outcome stage that replaces x0 by x0 |D_c|/|x0|, which has the norm of D_c in each sample.

    Source: EP-CFG: Energy-Preserving Classifier-Free Guidance, arXiv 2412.09966, without its optional energy by
    percentiles.
    """
    return stateless(_energy)


def _energy(branches, at):
    del at
    factor = ratio(row_norm(branches.positive), row_norm(branches.x0), 1.0)
    return branches._replace(x0=like(factor, branches.x0) * branches.x0)


@neutral
def mahiro(positive: Array, reference: Array, omega: Array) -> Array:
    """Returns MaHiRo's prediction, which lies between g of CFG and L = w D_c, w = 1 + omega.

        g = w D_c - omega D_u,   M = (L + g)/2,   r(a) = sign(a) sqrt|a|,   sim = mean of cos(r(w D_u), r(M))
        q = 2 (sim + 1),   guided = (q g + (4 - q) L)/4

    The cosine is along the last axis, the channels, and the mean runs over the pixels of a sample. The more alike the
    two are, the nearer the result is to CFG. omega = 0 gives D_c. Costs 2 evaluations per step.
    Source: a community node without a paper. A mean per sample is our choice; the node's is that of `mahiro_batch`.
    """
    return _mahiro(positive, reference, omega, per_sample=True)


@not_by_name("a sample depends on the batch that it is in")
@neutral
def mahiro_batch(positive: Array, reference: Array, omega: Array) -> Array:
    """Returns MaHiRo's prediction as published: the mean of the cosine also runs over the batch, coupling samples."""
    return _mahiro(positive, reference, omega, per_sample=False)


def _mahiro(positive, reference, omega, per_sample):
    scale = like(scale_from_omega(omega), positive)
    leap = scale * positive
    guided = positive + (scale - 1) * (positive - reference)
    cosine = _cosine(_signed_root(scale * reference), _signed_root((leap + guided) / 2))
    cosine = cosine.reshape(cosine.shape[0], -1)
    similarity = jnp.mean(cosine, axis=-1) if per_sample else jnp.full(cosine.shape[0], jnp.mean(cosine))
    q = like(2 * (similarity + 1), positive)
    return leap + q / 4 * (guided - leap)


def _signed_root(a):
    zero = a == 0
    return jnp.sign(a) * jnp.sqrt(jnp.where(zero, 1, jnp.abs(a))) * jnp.where(zero, 0.0, 1.0)


def _cosine(a, b):
    """Returns the cosine of the angle between a and b along the last axis; 0 where one of them is zero."""
    size = lambda u: jax.lax.stop_gradient(jnp.max(jnp.abs(u), axis=-1, keepdims=True))  # noqa: E731
    a, b = ratio(a, size(a)), ratio(b, size(b))
    dot = lambda u, v: jnp.sum(u * v, axis=-1)  # noqa: E731
    product = dot(a, a) * dot(b, b)
    zero = product == 0
    return jnp.where(zero, 0.0, dot(a, b) / jnp.sqrt(jnp.where(zero, 1, product)))

"""Mismatch: how far guided noised samples are from true noised samples. Estimators on particles.

The basic quantity, for groups of particles y (guided) and x (true) that should share a law:

    E|y - x|^beta - (lambda/2) E|y - y'|^beta            (+ a term free of y)

beta in (0, 2), lambda = 1: half the energy distance, zero only for equal laws. beta = 2, lambda = 0: the l2 loss.
Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815, eqs. 9, 20-22.
"""

import jax
import jax.numpy as jnp

from guidance.types import Array

# under the square root: keeps the gradient of |a - b| finite where the particles coincide
_TINY = 1e-12


def pairwise_power(a: Array, b: Array, beta) -> Array:
    """|a_i - b_j|^beta for a [n, d], b [m, d] -> [n, m], as (|.|^2 + 1e-12)^(beta/2)."""
    square = jnp.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1)
    return jnp.sqrt(square + _TINY) if isinstance(beta, float) and beta == 1.0 else (square + _TINY) ** (beta / 2)


def particle_mismatch(y: Array, x: Array, beta, lam) -> Array:
    """Unbiased estimate of E|y - x|^beta - (lam/2) E|y - y'|^beta for one group; y [m, ...], x [k, ...] -> scalar.

    The y-y' mean leaves out the pairs of a particle with itself. Needs m >= 2 where lam > 0 (for m = 1 the repulsion
    is dropped, since it cannot be estimated).
    Source: arXiv 2510.00815, eq. 22 (one bracket of it, with a free number of true particles).
    """
    y, x = y.reshape(y.shape[0], -1), x.reshape(x.shape[0], -1)
    cross = jnp.mean(pairwise_power(y, x, beta))
    m = y.shape[0]
    if m == 1:
        return cross
    off_diagonal = 1 - jnp.eye(m, dtype=y.dtype)
    repulsion = jnp.sum(pairwise_power(y, y, beta) * off_diagonal) / (m * (m - 1))
    return cross - 0.5 * lam * repulsion


def grouped_mismatch(y: Array, x: Array, beta, lam) -> Array:
    """Mean of `particle_mismatch` over groups: y [groups, m, ...], x [groups, k, ...] -> scalar."""
    return jnp.mean(jax.vmap(lambda a, b: particle_mismatch(a, b, beta, lam))(y, x))


def energy_offset(x: Array, beta) -> Array:
    """The omega-free remainder: -(1/2) E|x - x'|^beta averaged over groups; x [groups, k, ...] -> scalar.

    grouped_mismatch(lam=1) + energy_offset is half the energy distance, an unbiased estimate that is 0 in the mean
    for equal laws.
    """

    def one(x):
        x = x.reshape(x.shape[0], -1)
        k = x.shape[0]
        off_diagonal = 1 - jnp.eye(k, dtype=x.dtype)
        return jnp.sum(pairwise_power(x, x, beta) * off_diagonal) / (k * (k - 1))

    return -0.5 * jnp.mean(jax.vmap(one)(x))

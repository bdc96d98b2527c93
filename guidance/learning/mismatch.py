"""Mismatch: estimates of how far guided particles y are from true particles x in distribution.

    E|y - x|^beta - (lambda/2) E|y - y'|^beta

With lambda = 1 and 0 < beta < 2 this is half the energy distance up to a term without y, so that it is smallest only
where y and x have one distribution. With beta = 2 and lambda = 0 it is the l2 loss.
Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815, eqs. 9, 20-22.
"""

import jax
import jax.numpy as jnp

from guidance.types import Array

# added under the square root: it keeps the gradient of |a - b| finite where two particles coincide
_TINY = 1e-12


def pairwise_power(a: Array, b: Array, beta) -> Array:
    """Returns |a_i - b_j|^beta [n, m] for a [n, d] and b [m, d], computed as (|a_i - b_j|^2 + 1e-12)^(beta/2)."""
    square = jnp.sum((a[:, None, :] - b[None, :, :]) ** 2, axis=-1)
    return jnp.sqrt(square + _TINY) if isinstance(beta, float) and beta == 1.0 else (square + _TINY) ** (beta / 2)


def particle_mismatch(y: Array, x: Array, beta, lam) -> Array:
    """Returns an unbiased estimate of E|y - x|^beta - (lam/2) E|y - y'|^beta from y [m, ...] and x [k, ...]; a scalar.

    The mean over y and y' leaves out each particle's pair with itself. For m = 1 no such pair is left: the second term
    is then dropped, whatever lam is.
    Source: arXiv 2510.00815, eq. 22 (one bracket of it, for any number of true particles).
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
    """Returns the mean of `particle_mismatch` over groups, a scalar; y [groups, m, ...], x [groups, k, ...]."""
    return jnp.mean(jax.vmap(lambda a, b: particle_mismatch(a, b, beta, lam))(y, x))


def energy_offset(x: Array, beta) -> Array:
    """Returns the term without y, -(1/2) E|x - x'|^beta, averaged over groups x [groups, k, ...]; a scalar.

    grouped_mismatch(..., lam=1) + energy_offset(...) is an unbiased estimate of half the energy distance: its mean is
    0 where y and x have one distribution.
    """

    def one(x):
        x = x.reshape(x.shape[0], -1)
        k = x.shape[0]
        off_diagonal = 1 - jnp.eye(k, dtype=x.dtype)
        return jnp.sum(pairwise_power(x, x, beta) * off_diagonal) / (k * (k - 1))

    return -0.5 * jnp.mean(jax.vmap(one)(x))

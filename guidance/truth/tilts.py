"""Gaussian mixtures tilted by exp(reward / temperature), in closed form, for linear-quadratic rewards.

For x ~ N(m, S) and r(x) = a . x - x^T B x / 2 let g = a - B m, the slope of r at m, and V = (S^-1 + B)^-1. Then

    E[e^{r(x)}] = |I + S B|^{-1/2} exp(r(m) + g^T V g / 2),      the tilted distribution is N(m + V g, V).

An expansion around 0 instead of m would subtract two large squares where modes lie far from 0.
"""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from guidance.truth.mixtures import Mixture, posterior, reweighted
from guidance.truth.rewards import LinearQuadratic
from guidance.types import Array, Schedule


def _is_diagonal(basis: Array | None, reward: LinearQuadratic) -> bool:
    return basis is None and reward.quadratic.ndim == 1


def _slope(reward: LinearQuadratic, means: Array) -> Array:
    """Returns g = a - B m [..., d] for means m [..., d]."""
    return jnp.broadcast_to(reward.linear, means.shape) - reward.curve(means)


def _diagonal_factor(reward: LinearQuadratic, variances: Array) -> Array:
    """Returns 1 + v b; NaN where it is not positive, so that no tilted distribution exists."""
    factor = 1 + variances * reward.quadratic.reshape((1,) * (variances.ndim - 1) + (-1,))
    return jnp.where(factor > 0, factor, jnp.nan)


def _full_roots(reward: LinearQuadratic, means: Array, variances: Array, basis: Array | None) -> tuple[Array, Array]:
    """Returns (C, Y) with S = L L^T, C C^T = I + L^T B L (NaN if not positive definite), Y = C^-1 L^T: V = Y^T Y.

    This uses L instead of S^-1, so that variances may be zero, as those of a posterior at t = 0 are.
    """
    dim = means.shape[-1]
    eye, b = jnp.eye(dim, dtype=means.dtype), reward.quadratic
    b = b if b.ndim == 2 else jnp.diag(jnp.broadcast_to(b, (dim,)))
    axes = eye if basis is None else basis
    root = jnp.expand_dims(axes, tuple(range(means.ndim + 1 - axes.ndim))) * jnp.sqrt(variances)[..., None, :]
    inner = jnp.einsum("...da,de,...eb->...ab", root, b, root, precision="highest")
    chol = jnp.linalg.cholesky(inner + jnp.expand_dims(eye, tuple(range(means.ndim - 1))))
    return chol, solve_triangular(chol, jnp.swapaxes(root, -1, -2), lower=True)


def _log_normaliser(reward: LinearQuadratic, means: Array, variances: Array, basis: Array | None) -> Array:
    """Returns log E[e^{r(x)}] [...] under N(means [..., d], variances [..., 1 or d] along the columns of basis)."""
    slope = _slope(reward, means)
    if _is_diagonal(basis, reward):
        factor = _diagonal_factor(reward, variances)
        log_det = jnp.sum(jnp.log(factor), -1) * (means.shape[-1] // factor.shape[-1])
        return reward(means) + 0.5 * jnp.sum(slope**2 * (variances / factor), -1) - 0.5 * log_det
    chol, root = _full_roots(reward, means, variances, basis)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), -1)
    moved = jnp.einsum("...ad,...d->...a", root, slope, precision="highest")
    return reward(means) + 0.5 * jnp.sum(moved**2, -1) - 0.5 * log_det


def _tempered(reward: LinearQuadratic, temperature: float | Array) -> LinearQuadratic:
    return jax.tree.map(lambda leaf: leaf / temperature, reward)


def tilt(mixture: Mixture, reward: LinearQuadratic, temperature: float | Array = 1.0) -> tuple[Mixture, Array]:
    """Returns the tilted mixture p(x0 | c) e^{r(x0) / temperature} / Z_c, and log Z_c of every condition [C + 1].

        V_j = (S_j^-1 + B)^-1,   mu_j = m_j + V_j (a - B m_j),   w'_j ~ w_j E_j[e^r]        with r, a, B / temperature

    The null condition is the tilt of the joint distribution, in which class c has the prior p(c) Z_c / Z. Weights and
    log Z are NaN if some S_j^-1 + B is not positive definite. Full matrices are decomposed into eigenvectors: these
    are differentiable only where the eigenvalues differ; log Z and the means always are.
    Source: derived here from the Gaussian integral; the target is that of Feynman-Kac steering, arXiv 2501.06848.
    """
    reward = _tempered(reward, temperature)
    means, variances, basis = mixture.means, mixture.variances, mixture.basis
    slope, log_z = _slope(reward, means), _log_normaliser(reward, means, variances, basis)
    if _is_diagonal(basis, reward):
        variances = variances / _diagonal_factor(reward, variances)
        means = means + variances * slope
    else:
        root = _full_roots(reward, means, variances, basis)[1]
        covariance = jnp.einsum("jad,jae->jde", root, root, precision="highest")
        means = means + jnp.einsum("jde,je->jd", covariance, slope, precision="highest")
        variances, basis = jnp.linalg.eigh(covariance)
    return reweighted(mixture._replace(means=means, variances=variances, basis=basis), log_z)


def soft_value(
    mixture: Mixture,
    schedule: Schedule,
    reward: LinearQuadratic,
    temperature: float | Array,
    x: Array,
    t: Array,
    cond: Array,
) -> Array:
    """Returns log E[e^{r(x_0) / temperature} | x_t, cond] [n]: r(x) / temperature at t = 0, log Z where alpha = 0.

    Its gradient in x is the exact guidance term: the tilted score is the score plus grad_x soft_value. x [n, d]; t,
    cond [n].
    """
    law = posterior(mixture, schedule, x, t, cond)
    return jax.nn.logsumexp(law.log_weights + _log_normaliser(_tempered(reward, temperature), *law[1:]), axis=-1)

"""Delayed guidance: CFG whose two branches are evaluated at noise levels above that of the step."""

import jax.numpy as jnp

from guidance import checks
from guidance.guides.two import as_guided, joined, omega_of, prediction_of, stateless
from guidance.rules import cfg as cfg_rule
from guidance.shapes import like, null_like
from guidance.types import Array, Cond, Guide, Schedule, Weight


def delayed(weight: Weight, null: Cond, delta=0.1) -> Guide:
    """Builds CFG with its branches at higher noise levels, where the term that CFG lacks is much smaller.

    That term is the Renyi term of `steering.gibbs`. With rho = sigma_t/alpha_t and y = x/alpha_t for both branches,

        rho_c^2 = rho^2 (1 + omega)/(1 + delta),   rho_u^2 = rho^2 omega/delta
        score = (1 + omega) s_c(y; rho_c) - omega s_u(y; rho_u)

    Since (1 + omega)/rho_c^2 - omega/rho_u^2 = 1/rho^2, this is x0 = D_c(rho_c) + delta (D_c(rho_c) - D_u(rho_u)).

    Our choice: delta is lowered to omega where omega <= delta, which gives plain CFG, and for omega = 0 D_c; and a
    noise level above that of t = 1 becomes that of t = 1. Evaluations: positive 1, reference 1, in one network call.
    Source: Conditional Diffusion Models with Classifier-Free Gibbs-like Guidance, arXiv 2505.21101
    (its w - 1 is our omega; its experiments have delta = 0.1).
    """
    checks.is_weight(weight)
    return stateless(_apply_delayed, weight, null, delta)


def _apply_delayed(weight, null, delta, state, denoise, schedule, x, *, t, s, cond):
    omega = omega_of(weight, t=t, s=s, cond=cond)
    lifted = delta < omega
    kept = jnp.where(lifted, delta, 1)
    x_c, t_c = _lifted(schedule, x, t, jnp.where(lifted, (1 + omega) / (1 + kept), 1))
    x_u, t_u = _lifted(schedule, x, t, jnp.where(lifted, omega / kept, 1))
    conds = joined(cond, null_like(cond, null))
    out = prediction_of(denoise, jnp.concatenate([x_c, x_u]), jnp.concatenate([t_c, t_u]), conds)
    positive, reference = jnp.split(out, 2)
    counts = {"positive": jnp.asarray(1, jnp.int32), "reference": jnp.asarray(1, jnp.int32)}
    return state, as_guided(schedule, x, cfg_rule(positive, reference, jnp.minimum(delta, omega)), t, counts)


def _lifted(schedule: Schedule, x: Array, t: Array, factor: Array) -> tuple[Array, Array]:
    """Returns (x, t) at the noise level whose square is `factor` >= 1 times as large, with the same x/alpha_t."""
    moved = jnp.minimum(schedule.time(schedule.log_snr(t) - jnp.log(factor)), 1)
    moved = jnp.where(factor == 1, t, moved)  # exactly t, which the log-SNR and back would round
    alpha = schedule.alpha(t)
    shrunk = jnp.where(alpha == 0, 1, schedule.alpha(moved) / jnp.where(alpha == 0, 1, alpha))
    return like(shrunk, x) * x, moved

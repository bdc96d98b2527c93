"""Two noise levels: the conditional branch above the level of the step, the unconditional one further up."""

import jax.numpy as jnp

from guidance import checks
from guidance.guides.two import as_guided, asked, joined, omega_of, stateless
from guidance.rules import cfg as cfg_rule
from guidance.shapes import like, null_like
from guidance.types import Array, Cond, Guide, Schedule, Weight


def delayed(weight: Weight, null: Cond, delta=0.1) -> Guide:
    """CFG with its branches at other noise levels, whose missing Renyi term is much smaller (see `steering.gibbs`).

    With rho = sigma_t/alpha_t and the state y = x/alpha_t, the same for both branches,

        rho_c^2 = rho^2 (1 + omega)/(1 + delta),   rho_u^2 = rho^2 omega/delta
        score = (1 + omega) s_c(y; rho_c) - omega s_u(y; rho_u)

    where (1 + omega)/rho_c^2 - omega/rho_u^2 = 1/rho^2, hence x0 = D_c(rho_c) + delta (D_c(rho_c) - D_u(rho_u)).

    Our choice: delta is at most omega, so that omega <= delta (omega = 0 is unguided) is plain CFG; and levels above
    the schedule's largest (t > 1) are taken there. Evaluations: positive 1, reference 1, in one call.
    Source: Conditional Diffusion Models with Classifier-Free Gibbs-like Guidance, arXiv 2505.21101
    (its w - 1 is our omega; its experiments have delta = 0.1).
    """
    checks.is_weight(weight)
    return stateless(_apply_delayed, weight, null, delta)


def _apply_delayed(weight, null, delta, state, denoise, schedule, x, *, t, s, cond):
    omega = omega_of(weight, t=t, s=s, cond=cond)
    apart = delta < omega
    kept = jnp.where(apart, delta, 1)
    x_c, t_c = _lifted(schedule, x, t, jnp.where(apart, (1 + omega) / (1 + kept), 1))
    x_u, t_u = _lifted(schedule, x, t, jnp.where(apart, omega / kept, 1))
    conds = joined(cond, null_like(cond, null))
    out = asked(denoise, jnp.concatenate([x_c, x_u]), jnp.concatenate([t_c, t_u]), conds)
    positive, reference = jnp.split(out, 2)
    counts = {"positive": jnp.asarray(1, jnp.int32), "reference": jnp.asarray(1, jnp.int32)}
    return state, as_guided(schedule, x, cfg_rule(positive, reference, jnp.minimum(delta, omega)), t, counts)


def _lifted(schedule: Schedule, x: Array, t: Array, factor: Array) -> tuple[Array, Array]:
    """(x, t) at sigma^2/alpha^2 times `factor` >= 1: the same x/alpha_t."""
    moved = jnp.minimum(schedule.time(schedule.log_snr(t) - jnp.log(factor)), 1)
    moved = jnp.where(factor == 1, t, moved)  # exactly t: a round trip through the log-SNR would round it
    alpha = schedule.alpha(t)
    shrunk = jnp.where(alpha == 0, 1, schedule.alpha(moved) / jnp.where(alpha == 0, 1, alpha))
    return like(shrunk, x) * x, moved

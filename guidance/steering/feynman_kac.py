"""Feynman-Kac corrected CFG: weighted particles of p_c^(1 + omega) p_u^(-omega).

The reverse process with the CFG score does not sample q ~ p_c^(1+omega) p_u^(-omega) at any noise level. To sample q
each path needs a weight W. With the scores s_c, s_u of the EDM state x/alpha and the noise level rho = sigma/alpha,

    d log W = omega (1 + omega)/2 |s_c - s_u|^2 d(rho^2)        (d(rho^2) counted positive on the way down)

This follows from d p / d(rho^2) = Laplace p / 2 for both branches. It holds for every churn, since the drift
(1 + churn)/2 s_omega and the noise change together, and their joint effect on q stays the same.
"""

import jax.numpy as jnp

from guidance import checks
from guidance.guides import both_branches
from guidance.guides.two import as_guided
from guidance.rules import cfg
from guidance.shapes import as_state, row_dot, row_keys, with_dtypes_of
from guidance.steering.particles import Population, evolve
from guidance.types import Array, Cond, Denoise, Schedule, Step


def cfg_log_weight(schedule: Schedule, gap: Array, omega, *, t: Array, s: Array) -> Array:
    """Returns the log weight [batch] of one step t -> s of each particle:

        omega (1 + omega) (rho_t^2 - rho_s^2) |D_c - D_u|^2 / (2 rho_t^4)

    gap: D_c - D_u [batch, ...] at t; t, s [batch]. It is computed with (1 - rho_s^2/rho_t^2)/rho_t^2, which is finite
    at t = 1 and s = 0. Source: Feynman-Kac Correctors in Diffusion, arXiv 2503.02819; derived again here.
    """
    lost = -jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s))
    return 0.5 * omega * (1 + omega) * lost * jnp.exp(schedule.log_snr(t)) * row_dot(gap, gap)


def feynman_kac(
    key: Array,
    denoise: Denoise,
    omega,
    null: Cond,
    step: Step,
    schedule: Schedule,
    grid: Array,
    x: Array,
    cond: Cond,
    *,
    fraction=0.5,
) -> Population:
    """Draws n weighted particles of p_c^(1 + omega) p_u^(-omega) for one condition.

    omega: a constant, since each step's target has the same omega. x [n, ...] at grid[0], where p_c and p_u must be
    equal (noise). cond leaves [n, ...], the same condition in every row. step: churned_ddim(1), the reverse SDE, or
    ddim(), the ODE, whose copies of one particle stay equal. fraction: the particles are resampled when their
    effective sample size falls below fraction * n; 0 never resamples and returns CFG's samples with weights.

    The particles are weighted; `particles.resample` makes them equally weighted. `log_mean_weight` of them estimates
    the log of the integral of p_c^(1 + omega) p_u^(-omega) at the noise level of grid[-1]. In many dimensions few
    particles carry all the weight. Costs 2 evaluations per particle and step.
    Source: Feynman-Kac Correctors in Diffusion, arXiv 2503.02819.
    """
    checks.beginning(key, schedule, grid, x, cond)
    checks.is_step(step)
    denoise, rows = checks.watched(denoise), jnp.arange(x.shape[0])

    def move(key, x, *, t, s):
        t, s = jnp.full(x.shape[:1], t), jnp.full(x.shape[:1], s)
        positive, reference = both_branches(denoise, x, t, cond, null)
        guided = as_guided(schedule, x, cfg(positive, reference, jnp.broadcast_to(omega, t.shape)), t, {})
        keys = row_keys(key, rows)
        increment = cfg_log_weight(schedule, positive - reference, omega, t=t, s=s)
        return with_dtypes_of(step(keys, x, guided, t=t, s=s, schedule=schedule), x), increment

    return evolve(key, move, grid, as_state(x), fraction)

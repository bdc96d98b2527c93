"""Feynman-Kac corrected CFG: particles whose weights turn the law of CFG into p_c^(1 + omega) p_u^(-omega).

The reverse process with the CFG score does not sample the tilted law q ~ p_c^(1+omega) p_u^(-omega) at any noise
level. What it misses is a weight along the path. With VE scores s_c, s_u and noise level rho = sigma/alpha,

    d log W = omega (1 + omega)/2 |s_c - s_u|^2 d(rho^2)        (d(rho^2) counted positive on the way down)

It follows from d p / d(rho^2) = Laplace p / 2 for both branches, and is the same whatever the churn: the drift
(1 + churn)/2 s_omega and the noise change, their effect on q does not.
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
    """The log weight of one step t -> s, omega (1 + omega) (rho_t^2 - rho_s^2) |D_c - D_u|^2 / (2 rho_t^4); [batch].

    gap: D_c - D_u [batch, ...] at t; t, s [batch]. Computed as (1 - rho_s^2/rho_t^2)/rho_t^2: finite at t = 1, s = 0.
    Source: Feynman-Kac Correctors in Diffusion, arXiv 2503.02819; derived again here.
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
    """n weighted particles of p_c^(1 + omega) p_u^(-omega) for one condition.

    omega: a constant, since the path of targets belongs to one weight. x [n, ...] at grid[0], where the two branches
    agree; cond leaves [n, ...], the same condition in every row. step: churned_ddim(1) is the reverse SDE, ddim() the
    ODE, whose resampled copies never part again. Resampled below an ESS of fraction * n; 0 never does and returns
    CFG's samples with their weights. The result is weighted: `particles.resample` makes it plain.
    `log_mean_weight` estimates log of the integral of p_c^(1 + omega) p_u^(-omega) at the noise level of grid[-1].
    In many dimensions the weights collapse. 2 evaluations per particle and step.
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

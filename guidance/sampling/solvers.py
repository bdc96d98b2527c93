"""Solvers: steps that evaluate the guide more than once, or not at all.

All solvers of this package follow these conventions.

- The first evaluation is at (x_t, t) for the step to s. A second one is at the end of the step, (x_s, s), or inside
  it, (x_m, t_m). It, too, is for a step to s, which is the rest of the step.
- Every evaluation advances the guide's state, in the order in which the evaluations take place.
- A rule may return another noise than the one implied by x_0 (CFG++). Each solver adds corrections of higher order to
  the DDIM step alpha_s x_0 + sigma_s eps. With such a rule the DDIM step is what the rule asks for, but there is no
  ODE that the corrections could make more accurate.
- A step to sigma_s = 0 is DDIM's, x_s = alpha_s x_0, because nothing can be evaluated at its end (eps is 0/0, lambda
  is infinite). A step from alpha_t = 0 is of first order if the solver's variable is infinite there.
- A second evaluation that no sample needs is skipped and not counted.
"""

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.ranges import Above, Cap, NonNegative, ranged
from guidance.sampling.steps import ddim, euler
from guidance.schedules import times_of_noise_level
from guidance.shapes import like, normal_like, safe_sqrt
from guidance.times import last_equal
from guidance.truth.mixtures import Mixture, reverse_sample
from guidance.types import Array, Cond, Guided, Schedule, Solver, Step


def no_memory(x: Array) -> tuple:
    """Returns the empty memory of a solver that remembers nothing."""
    del x
    return ()


def as_solver(step: Step | Solver) -> Solver:
    """Returns a solver unchanged, and a Step as a solver of one evaluation and no memory."""
    checks.is_step(step)
    return step if isinstance(step, Solver) else Solver(Partial(no_memory), Partial(_one_evaluation, step))


def _one_evaluation(step, keys, memory, carry, evaluate, x, *, t, s, schedule):
    carry, guided = evaluate(carry, x, t=t, s=s)
    return memory, carry, step(keys, x, guided, t=t, s=s, schedule=schedule)


def where_needed(needed: Array, refine, carry, x_s: Array):
    """Returns (carry, x_s), with x_s replaced by the result of `refine` for the samples `needed` [batch].

    refine: carry -> (carry, refined x_s). It is skipped if no sample needs it. Under vmap it is always computed, but
    is counted as under jit.
    """

    def refined(carry):
        carry, better = refine(carry)
        return carry, jnp.where(like(needed, x_s), better, x_s).astype(x_s.dtype)

    return jax.lax.cond(jnp.any(needed), refined, lambda carry: (carry, x_s), carry)


# ---- Heun on the clock of the schedule


def heun() -> Solver:
    """Builds Heun's method in the time of the schedule, x_s = x_t + (s - t) (v_t + v_s)/2.

    v = alpha' x_0 + sigma' eps, and v_s is evaluated at the result of an Euler step (see `euler`). Order 2. Costs 2
    evaluations per step, but 1 on a step to sigma_s = 0. For rectified flow this is the usual Heun's method of flow
    matching. `edm` is Heun's method in the noise level.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, algorithm 1.
    """
    return Solver(Partial(no_memory), Partial(_heun))


def _velocity(schedule: Schedule, guided: Guided, t: Array) -> Array:
    x0, eps = guided.x0, guided.eps
    return like(schedule.alpha_dot(t), x0) * x0 + like(schedule.sigma_dot(t), x0) * eps


def _heun(keys, memory, carry, evaluate, x, *, t, s, schedule):
    carry, first = evaluate(carry, x, t=t, s=s)
    predicted = euler()(keys, x, first, t=t, s=s, schedule=schedule).astype(x.dtype)

    def refine(carry):
        carry, second = evaluate(carry, predicted, t=s, s=s)
        change = _velocity(schedule, second, s) - _velocity(schedule, first, t)
        return carry, predicted + 0.5 * like(s - t, x) * change

    carry, x_s = where_needed(schedule.sigma(s) > 0, refine, carry, predicted)
    return memory, carry, x_s


# ---- Heun in the noise level: EDM


def edm() -> Solver:
    """Builds EDM's deterministic sampler: Heun's method for y = x/alpha in rho = sigma/alpha, where dy/drho = eps.

        x_s = (alpha_s x_0 + sigma_s eps_t) + alpha_s (rho_s - rho_t) (eps_s - eps_t)/2

    Order 2. Costs 2 evaluations per step, but 1 on a step to sigma_s = 0 or from alpha_t = 0, where rho is infinite.
    It is made for `edm_grid`. Steps between very large noise levels, such as those of uniform times of rectified flow
    near t = 1, are long in rho; we measured an order of 1.8 there.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, algorithm 1.
    """
    return Solver(Partial(no_memory), Partial(_edm))


@ranged
def edm_stochastic(
    gamma: NonNegative,
    s_noise: NonNegative = 1.0,
    noise_min: NonNegative = 0.0,
    noise_max: Annotated[Cap, Above("noise_min")] = math.inf,
) -> Solver:
    """Builds EDM's stochastic sampler: it adds noise to raise the noise level rho by 1 + gamma, then steps as `edm`.

        rho' = (1 + gamma) rho,  x' = (alpha'/alpha) x + alpha' sqrt(rho'^2 - rho^2) s_noise z,  x_s = `edm` from x'

    gamma: the paper's S_churn / N for N steps, clipped to [0, sqrt(2) - 1] as there. Only noise levels sigma/alpha in
    [noise_min, noise_max] (the paper's S_tmin, S_tmax) are raised. Our choice: none is raised above that of t = 1, the
    highest that a network has seen, and none where alpha = 0. With s_noise = 1 the marginals are kept. All knobs are
    leaves. Costs as many evaluations as `edm`; the first one is at the raised time.
    Source: Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, algorithm 2.
    """
    return Solver(Partial(no_memory), Partial(_edm_stochastic, gamma, s_noise, noise_min, noise_max))


def _edm(keys, memory, carry, evaluate, x, *, t, s, schedule):
    carry, first = evaluate(carry, x, t=t, s=s)
    predicted = ddim()(keys, x, first, t=t, s=s, schedule=schedule).astype(x.dtype)
    alpha_t = schedule.alpha(t)
    alpha_t, starts = jnp.where(alpha_t > 0, alpha_t, 1), alpha_t > 0

    def refine(carry):
        carry, second = evaluate(carry, predicted, t=s, s=s)
        width = schedule.sigma(s) - schedule.alpha(s) * schedule.sigma(t) / alpha_t
        return carry, predicted + 0.5 * like(width, x) * (second.eps - first.eps)

    carry, x_s = where_needed((schedule.sigma(s) > 0) & starts, refine, carry, predicted)
    return memory, carry, x_s


def _edm_stochastic(gamma, s_noise, noise_min, noise_max, keys, memory, carry, evaluate, x, *, t, s, schedule):
    x, t = _raised(gamma, s_noise, noise_min, noise_max, keys, x, t, schedule)
    return _edm(keys, memory, carry, evaluate, x, t=t, s=s, schedule=schedule)


def _raised(gamma, s_noise, noise_min, noise_max, keys, x, t, schedule):
    """Returns x' and its time t' at the raised noise level."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    first, last = times_of_noise_level(schedule, noise_min), times_of_noise_level(schedule, noise_max)
    between = (first <= last_equal(t)) & (t <= last_equal(last))
    # without gamma > 0 the rounding of t -> log_snr -> t would still add noise
    raised = (alpha > 0) & between & (jnp.asarray(gamma) > 0)
    factor = 1 + jnp.clip(gamma, 0, math.sqrt(2) - 1)
    higher = jnp.clip(schedule.time(schedule.log_snr(t) - 2 * jnp.log(factor)), t, 1)
    higher = jnp.where(raised, higher, t).astype(t.dtype)
    ratio = jnp.where(raised, schedule.alpha(higher) / jnp.where(raised, alpha, 1), 1)
    added = safe_sqrt(schedule.sigma(higher) ** 2 - (ratio * sigma) ** 2)
    noisier = like(ratio, x) * x + like(s_noise * added, x) * normal_like(keys, x)
    return noisier.astype(x.dtype), higher


# ---- exact reverse kernels


def exact_reverse(mixture: Mixture, cond: Cond) -> Solver:
    """Builds the solver that draws x_s ~ p(x_s | x_t, cond) of a Gaussian mixture exactly, for steps of any size.

    cond: labels [batch] of the samples. It evaluates neither the guide nor the network. Stochastic samplers approach
    it as their steps get smaller; see `guidance.truth.mixtures.reverse_kernel`.
    """
    return Solver(Partial(no_memory), Partial(_exact_reverse, mixture, cond))


def _exact_reverse(mixture, cond, keys, memory, carry, evaluate, x, *, t, s, schedule):
    del evaluate
    return memory, carry, reverse_sample(keys, mixture, schedule, x, t=t, s=s, cond=cond)

"""DPM-Solver++: exponential integrators of the x_0-prediction in lambda = log(alpha/sigma), half the log-SNR.

Let D(l) be the x_0-prediction along the path and h = lambda_s - lambda_t. One linear equation covers ODE and SDE:

    x_s = (sigma_s/sigma_t) e^(-eta h) x_t + alpha_s int (1 + eta) e^((1 + eta)(l - lambda_s)) D(l) dl
          + sigma_s sqrt(1 - e^(-2 eta h)) z

eta = 0 is the probability-flow ODE and eta = 1 the reverse SDE of the diffusion. If D is constant the integral gives
the first-order step, x_s = alpha_s D + sigma_s (e^(-eta h) eps + sqrt(1 - e^(-2 eta h)) z): DDIM for eta = 0, DDPM for
eta = 1. The second-order solvers add alpha_s (1 - e^(-(1 + eta) h))/2 times an estimate of h dD/dlambda. All of them
compute with e^-h = alpha_t sigma_s / (alpha_s sigma_t), which is finite at both ends. The conventions are those of
`guidance.sampling.solvers`.
"""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.ranges import NonNegative, Number, ranged
from guidance.sampling.solvers import no_memory, where_needed
from guidance.sampling.steps import decay
from guidance.shapes import like, normal_like, safe_sqrt
from guidance.types import Array, Guided, Schedule, Solver

Fraction = Annotated[Any, Number(0, 1, "(]")]


def half_log_snr(schedule: Schedule, t: Array) -> Array:
    """Returns lambda = log(alpha/sigma), elementwise; it is clipped as log_snr is."""
    return 0.5 * schedule.log_snr(t)


class _Previous(NamedTuple):
    """The previous step's evaluation: x0 [batch, ...], lambda [batch]; known [batch]: whether there was one."""

    x0: Array
    lam: Array
    known: Array


def _no_previous(x: Array) -> _Previous:
    return _Previous(jnp.zeros_like(x), jnp.zeros(x.shape[:1], x.dtype), jnp.zeros(x.shape[:1], bool))


def _first_order(schedule, guided: Guided, s, kept, noise=None):
    """Returns alpha_s x_0 + sigma_s (kept eps + sqrt(1 - kept^2) noise) with kept = e^(-eta h); noise may be None."""
    checks.has_noise(guided.eps)
    x_s = like(schedule.alpha(s), guided.x0) * guided.x0 + like(schedule.sigma(s) * kept, guided.x0) * guided.eps
    if noise is None:
        return x_s
    return x_s + like(schedule.sigma(s) * safe_sqrt(1 - kept**2), noise) * noise


def _power(r: Array, exponent) -> Array:
    """Returns r^exponent for r >= 0. The gradient in r at r = 0, infinite for an exponent below 1, is set to 0."""
    positive = r > 0
    return jnp.where(positive, jnp.where(positive, r, 1) ** exponent, 0.0**exponent)


# ---- multistep: the slope of D from the step before


def dpmpp_2m() -> Solver:
    """Builds DPM-Solver++(2M), which takes the slope of D from the previous step's evaluation. Order 2.

        x_s = (DDIM step) + alpha_s (1 - e^-h)/2 (h/h_prev) (D_t - D_prev)

    D is the x_0-prediction, lambda = log(alpha/sigma), h = lambda_s - lambda_t, and h_prev is the h of the step
    before. The first step and a step to sigma_s = 0 are of first order. A last step to sigma_s > 0 is of second order;
    diffusers lowers its order if there are fewer than 15 steps. Costs 1 evaluation per step.
    Source: DPM-Solver++, arXiv 2211.01095, algorithm 2.
    """
    return Solver(Partial(_no_previous), Partial(_2m))


@ranged
def dpmpp_2m_sde(eta: NonNegative = 1.0) -> Solver:
    """Builds SDE-DPM-Solver++(2M): `dpmpp_2m` for the reverse SDE. The leaf `eta` scales the noise; 0 is `dpmpp_2m`.

        x_s = (first-order step with noise) + alpha_s (1 - e^(-(1 + eta) h))/2 (h/h_prev) (D_t - D_prev)

    Marginals are exact where D is constant; for Gaussian data their error has order 2. Costs 1 evaluation per step.
    Source: DPM-Solver++, arXiv 2211.01095, section 5 and appendix (SDE-DPM-Solver++(2M), eta = 1).
    """
    return Solver(Partial(_no_previous), Partial(_2m_sde, eta))


def _2m(keys, memory, carry, evaluate, x, *, t, s, schedule):
    del keys
    carry, guided = evaluate(carry, x, t=t, s=s)
    base = _first_order(schedule, guided, s, jnp.ones_like(t))
    return _extrapolated(memory, carry, guided, base, 1 - decay(schedule, t=t, s=s), t=t, s=s, schedule=schedule)


def _2m_sde(eta, keys, memory, carry, evaluate, x, *, t, s, schedule):
    carry, guided = evaluate(carry, x, t=t, s=s)
    r = decay(schedule, t=t, s=s)
    base = _first_order(schedule, guided, s, _power(r, eta), normal_like(keys, x))
    return _extrapolated(memory, carry, guided, base, 1 - r ** (1 + eta), t=t, s=s, schedule=schedule)


def _extrapolated(previous, carry, guided, base, weight, *, t, s, schedule):
    """Adds alpha_s weight/2 (h/h_prev) (D_t - D_prev) to base, where there is a previous step and sigma_s > 0."""
    lam, lam_s = half_log_snr(schedule, t), half_log_snr(schedule, s)
    width = lam - previous.lam
    usable = previous.known & (schedule.sigma(s) > 0) & (width != 0)
    ratio = jnp.where(usable, (lam_s - lam) / jnp.where(usable, width, 1), 0)
    x_s = base + like(0.5 * schedule.alpha(s) * weight * ratio, base) * (guided.x0 - previous.x0)
    memory = _Previous(guided.x0, lam, jnp.ones_like(previous.known))
    return memory, carry, x_s


# ---- single step: the slope of D from an evaluation inside the step


@ranged
def dpmpp_2s(fraction: Fraction = 0.5) -> Solver:
    """Builds DPM-Solver++(2S), which takes the slope of D from an evaluation inside the step. Order 2.

        lambda_m = lambda_t + r h,   x_m = (DDIM step from t to t_m)
        x_s = (DDIM step) + alpha_s (1 - e^-h)/(2 r) (D_m - D_t)

    D is the x_0-prediction, lambda = log(alpha/sigma), h = lambda_s - lambda_t and r = `fraction` in (0, 1]. Costs 2
    evaluations per step, but 1 on a step to sigma_s = 0 or from alpha_t = 0, where lambda is infinite and the step is
    of first order. The single-step solver of diffusers takes t_m from its grid: N of its steps are N/2 of these.
    Source: DPM-Solver++, arXiv 2211.01095, algorithm 1.
    """
    return Solver(Partial(no_memory), Partial(_2s, fraction))


@ranged
def dpmpp_2s_sde(eta: NonNegative = 1.0, fraction: Fraction = 0.5) -> Solver:
    """Builds `dpmpp_2s` for the reverse SDE. The leaf `eta` scales the noise; 0 is `dpmpp_2s`.

    The noise of the midpoint is part of the noise of the step. With h and r of `dpmpp_2s`, r_m = e^(-eta r h) and
    r_s = e^(-eta (1 - r) h),

        noise of x_m:  sigma_m sqrt(1 - r_m^2) z_1
        noise of x_s:  sigma_s (r_s sqrt(1 - r_m^2) z_1 + sqrt(1 - r_s^2) z_2),  variance sigma_s^2 (1 - e^(-2 eta h))

    Marginals are exact where D is constant; for Gaussian data their error has order 2. Costs as many evaluations as
    `dpmpp_2s`.
    Source: our choice, derived from the linear SDE of this module (DPM-Solver++, arXiv 2211.01095, has the multistep
    SDE only). The sampler known as "DPM++ SDE" couples the two noises by a Brownian path, too.
    """
    return Solver(Partial(no_memory), Partial(_2s_sde, eta, fraction))


def _2s(fraction, keys, memory, carry, evaluate, x, *, t, s, schedule):
    del keys
    return memory, *_through_midpoint(fraction, 0, None, carry, evaluate, x, t=t, s=s, schedule=schedule)


def _2s_sde(eta, fraction, keys, memory, carry, evaluate, x, *, t, s, schedule):
    pairs = jax.vmap(jax.random.split)(keys)
    noise = (normal_like(pairs[:, 0], x), normal_like(pairs[:, 1], x))
    return memory, *_through_midpoint(fraction, eta, noise, carry, evaluate, x, t=t, s=s, schedule=schedule)


def _through_midpoint(fraction, eta, noise, carry, evaluate, x, *, t, s, schedule):
    carry, first = evaluate(carry, x, t=t, s=s)
    lam, lam_s = half_log_snr(schedule, t), half_log_snr(schedule, s)
    middle = schedule.time(2 * (lam + fraction * (lam_s - lam))).astype(t.dtype)
    r, r_m, r_s = decay(schedule, t=t, s=s), decay(schedule, t=t, s=middle), decay(schedule, t=middle, s=s)

    base = _first_order(schedule, first, s, _power(r, eta))
    if noise is not None:
        late = safe_sqrt(1 - _power(r_s, 2 * eta))
        early = _power(r_s, eta) * safe_sqrt(1 - _power(r_m, 2 * eta))
        base += like(schedule.sigma(s), x) * (like(early, x) * noise[0] + like(late, x) * noise[1])
    base = base.astype(x.dtype)

    def refine(carry):
        x_m = _first_order(schedule, first, middle, _power(r_m, eta), None if noise is None else noise[0])
        carry, second = evaluate(carry, x_m.astype(x.dtype), t=middle, s=s)
        weight = schedule.alpha(s) * (1 - r ** (1 + eta)) / (2 * fraction)
        return carry, base + like(weight, x) * (second.x0 - first.x0)

    return where_needed((schedule.alpha(t) > 0) & (schedule.sigma(s) > 0), refine, carry, base)

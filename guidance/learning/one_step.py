"""Learning guidance: the one-step objectives, their reward extension, and one pure update.

Data's way: (x0, cond) -> (s, t) -> particles x_t -> both branches under stop_gradient -> omega -> guided particles at
s -> mismatch to fresh x_s, minus reward -> gradient of the weight's parameters only. With the CFG rule the guided
particle is affine in omega,

    y = A x_t + B D_c + sqrt(V) z + omega B (D_c - D_u),

and no gradient ever passes through the denoiser, so an update costs its 2 n m denoiser evaluations and little else.
The particles at t and at s have independent noises (sharing them changes the optimum: to omega = 0 for l2).

Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815, eqs. 13-22, Algorithms 1 and 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.conditions import repeated, taken
from guidance.learning.mismatch import grouped_mismatch
from guidance.learning.model import Model
from guidance.predictions import eps_from_x0
from guidance.rules import once
from guidance.sampling.steps import churned
from guidance.schedules import diffuse
from guidance.shapes import as_state
from guidance.types import Array, At, Cond, Reward, Schedule, Weight


class OneStep(NamedTuple):
    """Settings of the one-step objectives, with the paper's values where it states them.

    Steps (s, t) obey s >= s_min, t - s >= delta, t <= 1 - zeta (s_min and zeta: our choice). lam is the paper's
    lambda.
    """

    particles: int = 4
    beta: float = 1.75
    lam: float = 1.0
    churn: float = 1.0
    s_min: float = 0.01
    zeta: float = 0.01
    delta: float = 0.1


class Particles(NamedTuple):
    """Guided particles y ~ p^omega(x_s | ...) and the guided clean predictions they came from, [groups, m, ...]."""

    y: Array
    x0: Array


def draw_steps(key: Array, shape: tuple[int, ...], settings: OneStep) -> tuple[Array, Array]:
    """(s, t): s ~ U[s_min, 1 - zeta - delta], t - s ~ U[delta, 1 - zeta - s].

    Source: arXiv 2510.00815, Algorithm 1, step 2.
    """
    s_key, gap_key = jax.random.split(key)
    top = 1 - settings.zeta
    s = jax.random.uniform(s_key, shape, minval=settings.s_min, maxval=top - settings.delta)
    gap = settings.delta + (top - s - settings.delta) * jax.random.uniform(gap_key, shape)
    return s, s + gap


def guided_particles(
    key: Array, model: Model, weight: Weight, x0: Array, cond: Cond, *, t: Array, s: Array, churn
) -> Particles:
    """Noises each clean sample to t and takes one guided step to s.

    x0 [groups, m, ...]; cond leaves, s and t [groups]; one omega per group, shared by its m particles.
    Source: arXiv 2510.00815, eqs. 13 and 23, Algorithm 1, steps 4-6.
    """
    groups, m = x0.shape[:2]
    noise_key, churn_key = jax.random.split(key)
    flat = as_state(x0).reshape(groups * m, *x0.shape[2:])
    each = lambda a: jnp.repeat(a, m, axis=0)  # noqa: E731
    s_each, t_each = each(s), each(t)
    x_t = diffuse(model.schedule, flat, jax.random.normal(noise_key, flat.shape, flat.dtype), t_each)
    positive, reference = jax.lax.stop_gradient(model.branches(x_t, t_each, repeated(cond, m)))
    at = At(x_t, t_each, s_each, model.schedule)
    out = once(model.rule, positive, reference, each(weight(t=t, s=s, cond=cond)), at)
    eps = eps_from_x0(model.schedule, x_t, out.x0, t_each) if out.eps is None else out.eps
    z = jax.random.normal(churn_key, flat.shape, flat.dtype)
    y = churned(model.schedule, out.x0, eps, z, t=t_each, s=s_each, churn=churn)
    return Particles(y.reshape(x0.shape), out.x0.reshape(x0.shape))


def _noised(key: Array, schedule: Schedule, x0: Array, s: Array) -> Array:
    """Fresh true particles x_s of x0 [groups, k, ...] at one time per group, s [groups]."""
    flat = as_state(x0).reshape(-1, *x0.shape[2:])
    x_s = diffuse(schedule, flat, jax.random.normal(key, flat.shape, flat.dtype), jnp.repeat(s, x0.shape[1]))
    return x_s.reshape(x0.shape)


def _own_particles(steps_key, particle_key, model, weight, x0, cond, settings) -> tuple[Array, Array, Particles]:
    """A step (s, t) for each of x0 [n, ...], its m copies [n, m, ...], and the copies noised to t and guided to s."""
    s, t = draw_steps(steps_key, x0.shape[:1], settings)
    copies = jnp.broadcast_to(x0[:, None], (x0.shape[0], settings.particles, *x0.shape[1:]))
    return s, copies, guided_particles(particle_key, model, weight, copies, cond, t=t, s=s, churn=settings.churn)


def self_consistency(
    key: Array,
    model: Model,
    weight: Weight,
    x0: Array,
    cond: Cond,
    settings: OneStep,
    gamma=0.0,
    reward: Reward | None = None,
) -> Array:
    """The paper's loss: each sample's own guided step against its own noising, minus gamma times the mean reward.

        L = (1/n) sum_i [ mean_jk |y_i^j - x_i^k|^beta - (lambda/2) mean_{j != k} |y_i^j - y_i^k|^beta ]
            - gamma mean R(D_omega(x_t, c), c)

    x0 [n, ...], cond leaves [n, ...]. beta = 2, lam = 0 is the paper's l2 loss (biased even for a perfect model: its
    optimum is A alpha_t / B). The reward enters with a minus sign; as transcribed, the paper's L_R has the wrong one.
    Source: arXiv 2510.00815, eqs. 20-22, Algorithms 1 and 4.
    """
    steps_key, particle_key, noise_key = jax.random.split(key, 3)
    s, copies, particles = _own_particles(steps_key, particle_key, model, weight, x0, cond, settings)
    x_s = _noised(noise_key, model.schedule, copies, s)
    loss = grouped_mismatch(particles.y, x_s, settings.beta, settings.lam)
    return loss if reward is None else loss - gamma * mean_reward(reward, particles.x0, cond)


def reward_only(
    key: Array, model: Model, weight: Weight, x0: Array, cond: Cond, settings: OneStep, reward: Reward
) -> Array:
    """-mean R(D_omega(x_t, c), c): the reward without the mismatch that keeps it honest; the ablation."""
    steps_key, particle_key = jax.random.split(key)
    _, _, particles = _own_particles(steps_key, particle_key, model, weight, x0, cond, settings)
    return -mean_reward(reward, particles.x0, cond)


def mean_reward(reward: Reward, x0: Array, cond: Cond) -> Array:
    """Mean of R over particles x0 [groups, m, ...] with cond leaves [groups, ...]."""
    flat = x0.reshape(-1, *x0.shape[2:])
    values = reward(flat, repeated(cond, x0.shape[1]))
    checks.is_worth(values, flat)
    return jnp.mean(values)


def l2(
    key: Array,
    model: Model,
    weight: Weight,
    x0: Array,
    cond: Cond,
    settings: OneStep,
    gamma=0.0,
    reward: Reward | None = None,
) -> Array:
    """E|y - x_s|^2: `self_consistency` with beta = 2 and lambda = 0. Source: arXiv 2510.00815, eq. 21."""
    return self_consistency(key, model, weight, x0, cond, settings._replace(beta=2.0, lam=0.0), gamma, reward)


def per_condition_consistency(
    key: Array, model: Model, weight: Weight, real: Array, cond: Cond, settings: OneStep
) -> Array:
    """The law of x_s after a guided step from p_t(. | c) against p_s(. | c), per condition.

    real [G, k, ...]: k true samples per condition, cond leaves [G, ...]. One half of each group is noised to t and
    guided, the other half is noised to s, so that the two sides are independent and the estimate is unbiased.
    Source: arXiv 2510.00815, appendix C.2.
    """
    steps_key, particle_key, noise_key = jax.random.split(key, 3)
    s, t = draw_steps(steps_key, real.shape[:1], settings)
    half = real.shape[1] // 2
    particles = guided_particles(particle_key, model, weight, real[:, :half], cond, t=t, s=s, churn=settings.churn)
    x_s = _noised(noise_key, model.schedule, real[:, half:], s)
    return grouped_mismatch(particles.y, x_s, settings.beta, settings.lam)


def marginal_consistency(key: Array, model: Model, weight: Weight, x0: Array, cond: Cond, settings: OneStep) -> Array:
    """The law of x_s after a guided step from p_t against p_s, all conditions pooled, at one (s, t) per call.

    x0 [n, ...]; the first half of the batch is guided, the second half is noised to s. Unbiased, and noisy: the
    paper rejects it for that. Source: arXiv 2510.00815, eqs. 10, 12, 15.
    """
    steps_key, particle_key, noise_key = jax.random.split(key, 3)
    s, t = draw_steps(steps_key, (1,), settings)
    half = x0.shape[0] // 2
    s_each, t_each = jnp.repeat(s, half), jnp.repeat(t, half)
    first = taken(cond, slice(half))
    particles = guided_particles(
        particle_key, model, weight, x0[:half, None], first, t=t_each, s=s_each, churn=settings.churn
    )
    x_s = _noised(noise_key, model.schedule, x0[None, half:], s)
    return grouped_mismatch(jnp.swapaxes(particles.y, 0, 1), x_s, settings.beta, settings.lam)


def score_matching(key: Array, model: Model, weight: Weight, x0: Array, cond: Cond, settings: OneStep) -> Array:
    """Guided score matching: E|x0 - D_omega(x_t, c)|^2; its optimum is omega = 0 where D_c is exact.

    Source: arXiv 2510.00815, appendix C.1, eqs. 31-35.
    """
    steps_key, particle_key = jax.random.split(key)
    s, t = draw_steps(steps_key, x0.shape[:1], settings)
    particles = guided_particles(particle_key, model, weight, x0[:, None], cond, t=t, s=s, churn=settings.churn)
    return jnp.mean(jnp.sum((particles.x0 - x0[:, None]).reshape(x0.shape[0], -1) ** 2, axis=-1))

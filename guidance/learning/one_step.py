"""The one-step objectives: noise true samples, take one guided step, and compare with true samples noised afresh.

For true samples x0 and steps (s, t) an objective noises m copies of each x0 to t, evaluates both branches there, and
takes the guided step to s. It compares the guided particles y with x0 noised to s. Gradients stop at the branches, so
only the weight learns. Under the CFG rule a particle is affine in omega,

    y = A x_t + B D_c + sqrt(V) z + omega B (D_c - D_u),        (A, B, V) from `sampling.transition`

and an update on n samples costs 2 n m evaluations and little else. The noises at t and at s are independent: one
shared noise would move the optimum (that of l2 to omega = 0 for exact denoisers without churn).

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
    """The settings of the one-step objectives; the defaults are the paper's where it states them.

    particles: the number m of guided copies of each sample. beta, lam: the parameters of `mismatch`, where lam is the
    paper's lambda. churn: the parameter of the step, `sampling.churned_ddim`. s_min, delta, zeta: steps have
    s >= s_min, t - s >= delta and t <= 1 - zeta; s_min and zeta are our choice.
    """

    particles: int = 4
    beta: float = 1.75
    lam: float = 1.0
    churn: float = 1.0
    s_min: float = 0.01
    zeta: float = 0.01
    delta: float = 0.1


class Particles(NamedTuple):
    """The guided particles y at s, and the guided x0-predictions they were made from; both [groups, m, ...]."""

    y: Array
    x0: Array


def draw_steps(key: Array, shape: tuple[int, ...], settings: OneStep) -> tuple[Array, Array]:
    """Draws steps (s, t), each of the given shape: s ~ U[s_min, 1 - zeta - delta], t - s ~ U[delta, 1 - zeta - s].

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
    """Noises each true sample to t and takes one guided step to s.

    x0 [groups, m, ...]; s, t [groups]; cond leaves [groups, ...]. The m particles of a group share one omega. Costs 2
    evaluations per particle.
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
    """Draws true particles x_s, x0 [groups, k, ...] with fresh noise, at one time per group, s [groups]."""
    flat = as_state(x0).reshape(-1, *x0.shape[2:])
    x_s = diffuse(schedule, flat, jax.random.normal(key, flat.shape, flat.dtype), jnp.repeat(s, x0.shape[1]))
    return x_s.reshape(x0.shape)


def _particles_of_each(steps_key, particle_key, model, weight, x0, cond, settings) -> tuple[Array, Array, Particles]:
    """Draws a step (s, t) for each row of x0 [n, ...]; returns s [n], copies [n, m, ...], and their particles."""
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
    """Returns the paper's loss: it compares the guided steps of each sample with that sample noised to s.

        L = (1/n) sum_i [ mean_jk |y_i^j - x_i^k|^beta - (lambda/2) mean_{j != k} |y_i^j - y_i^k|^beta ]
            - gamma mean R(D_omega(x_t, c), c)

    y_i^j are the m guided particles of sample i at s, x_i^k are m noisings of the sample to s, and D_omega is the
    guided x0-prediction, which the reward R rates. x0 [n, ...], cond leaves [n, ...]. The reward is subtracted; the
    paper's L_R, as we read it, has the wrong sign. Costs 2 n m evaluations, m = settings.particles.
    Source: arXiv 2510.00815, eqs. 20-22, Algorithms 1 and 4.
    """
    steps_key, particle_key, noise_key = jax.random.split(key, 3)
    s, copies, particles = _particles_of_each(steps_key, particle_key, model, weight, x0, cond, settings)
    x_s = _noised(noise_key, model.schedule, copies, s)
    loss = grouped_mismatch(particles.y, x_s, settings.beta, settings.lam)
    return loss if reward is None else loss - gamma * mean_reward(reward, particles.x0, cond)


def reward_only(
    key: Array, model: Model, weight: Weight, x0: Array, cond: Cond, settings: OneStep, reward: Reward
) -> Array:
    """Returns -mean R(D_omega(x_t, c), c): an ablation, in which no mismatch holds the reward back.

    x0 [n, ...], cond leaves [n, ...]. Costs 2 n m evaluations.
    """
    steps_key, particle_key = jax.random.split(key)
    _, _, particles = _particles_of_each(steps_key, particle_key, model, weight, x0, cond, settings)
    return -mean_reward(reward, particles.x0, cond)


def mean_reward(reward: Reward, x0: Array, cond: Cond) -> Array:
    """Returns the mean of `reward` over the particles x0 [groups, m, ...], with cond leaves [groups, ...]."""
    flat = x0.reshape(-1, *x0.shape[2:])
    values = reward(flat, repeated(cond, x0.shape[1]))
    checks.is_reward(values, flat)
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
    """Returns E|y - x_s|^2, which is `self_consistency` with beta = 2 and lambda = 0.

    Its optimum is biased: for exact denoisers the best omega shared by all conditions at one (s, t) is A alpha_t / B.
    Source: arXiv 2510.00815, eq. 21.
    """
    return self_consistency(key, model, weight, x0, cond, settings._replace(beta=2.0, lam=0.0), gamma, reward)


def per_condition_consistency(
    key: Array, model: Model, weight: Weight, real: Array, cond: Cond, settings: OneStep
) -> Array:
    """Returns the mean over conditions c of the mismatch between guided steps from p_t(. | c) and p_s(. | c).

    real [G, k, ...]: k true samples of each condition; cond leaves [G, ...]. The first half of each group is noised to
    t and guided to s. The second half is noised to s. The two are independent, so the estimate is unbiased. Costs G k
    evaluations for even k.
    Source: arXiv 2510.00815, appendix C.2.
    """
    steps_key, particle_key, noise_key = jax.random.split(key, 3)
    s, t = draw_steps(steps_key, real.shape[:1], settings)
    half = real.shape[1] // 2
    particles = guided_particles(particle_key, model, weight, real[:, :half], cond, t=t, s=s, churn=settings.churn)
    x_s = _noised(noise_key, model.schedule, real[:, half:], s)
    return grouped_mismatch(particles.y, x_s, settings.beta, settings.lam)


def marginal_consistency(key: Array, model: Model, weight: Weight, x0: Array, cond: Cond, settings: OneStep) -> Array:
    """Returns the mismatch between guided steps from p_t and p_s with all conditions pooled, at one (s, t) per call.

    x0 [n, ...], cond leaves [n, ...]. The first half of the batch is noised to t and guided to s. The second half is
    noised to s. The estimate is unbiased but noisy, for which the paper rejects it. Costs n evaluations for even n.
    Source: arXiv 2510.00815, eqs. 10, 12, 15.
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
    """Returns E|x0 - D_omega(x_t, c)|^2, guided score matching. Its optimum is omega = 0 where D_c is exact.

    x0 [n, ...], cond leaves [n, ...]. Costs 2 n evaluations. Source: arXiv 2510.00815, appendix C.1, eqs. 31-35.
    """
    steps_key, particle_key = jax.random.split(key)
    s, t = draw_steps(steps_key, x0.shape[:1], settings)
    particles = guided_particles(particle_key, model, weight, x0[:, None], cond, t=t, s=s, churn=settings.churn)
    return jnp.mean(jnp.sum((particles.x0 - x0[:, None]).reshape(x0.shape[0], -1) ** 2, axis=-1))

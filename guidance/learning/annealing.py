"""The training loss of the annealing guidance scale: the denoiser stays frozen, only the scale's network learns."""

import jax
import jax.numpy as jnp

from guidance.learning.model import Model
from guidance.predictions import eps_from_x0
from guidance.rules import annealed, once
from guidance.schedules import diffuse
from guidance.shapes import as_state, like, row_dot
from guidance.types import Array, At, Cond


def annealing_loss(key: Array, model: Model, network, x0: Array, cond: Cond, grid: Array) -> Array:
    """Returns the annealing loss, a scalar: the mean over x0, lambda ~ U[0, 1] and the steps t -> s of `grid` of

            lambda |eps_c - eps_u|^2 at x_s + (1 - lambda) |eps_w - eps|^2 at x_t
        eps_w = eps_u + w (eps_c - eps_u),   w = network(t, |eps_c - eps_u|, lambda),   x_s = the CFG++ step with w

    The first term makes the branches agree after the step. The second makes the guided noise the true noise. x0
    [n, ...], cond leaves [n, ...], grid [steps + 1]. The paper perturbs cond as CADS does; here the caller may. Our
    choice: the last step of the grid is never drawn, because eps is undefined at s = 0. Raises ValueError for a grid
    of one step. Costs 4 evaluations per sample; the gradient passes through the two at x_s.
    Source: Navigating with Annealing Guidance Scale in Diffusion Space, arXiv 2506.24108 (we read the loss in an
    account of the paper, not in the paper).
    """
    if grid.shape[0] < 3:
        raise ValueError("the annealing loss needs a grid of at least 2 steps, since it leaves out the last one")
    step_key, lam_key, noise_key = jax.random.split(key, 3)
    schedule, n = model.schedule, x0.shape[0]
    i = jax.random.randint(step_key, (n,), 0, grid.shape[0] - 2)
    x0, t, s = as_state(x0), grid[i], grid[i + 1]
    lam = jax.random.uniform(lam_key, (n,), t.dtype)
    eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
    x_t = diffuse(schedule, x0, eps, t)
    positive, reference = jax.lax.stop_gradient(model.branches(x_t, t, cond))
    guided = once(annealed(network), positive, reference, lam, At(x_t, t, s, schedule))
    assert guided.eps is not None  # a CFG++ step keeps the noise of the reference
    error = eps_from_x0(schedule, x_t, guided.x0, t) - eps
    x_s = like(schedule.alpha(s), x0) * guided.x0 + like(schedule.sigma(s), x0) * guided.eps
    after_c, after_u = model.branches(x_s, s, cond)
    gap = like(schedule.alpha(s) / schedule.sigma(s), x0) * (after_c - after_u)
    return jnp.mean(lam * row_dot(gap, gap) + (1 - lam) * row_dot(error, error))

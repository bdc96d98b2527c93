"""The rollout objective: match the law of what the sampler will actually produce.

One-step objectives noise a true sample to t and correct a single step; they never see the error that the sampler has
already made. Here the weights are trained through the sampler that will be used (its grid, its step, its number of
steps): particles start from noise, run down the grid with the current weights, and at chosen times, and at the end,
their law is matched per condition to true samples noised to the same time:

    L = mean_c [ M(y_0, x_0 | c) + kappa mean_k M(y_{s_k}, x_{s_k} | c) ],   M = E|y - x|^beta - 1/2 E|y - y'|^beta

Our choice (beyond arXiv 2510.00815). Gradients flow through the scan. Memory: with remat="segments" the scan is cut
into segments, and both segments and steps are under `jax.checkpoint`, so that the activations of one step only are
alive at a time, whatever the number of steps; what grows is one copy of x per segment and per step of one segment.
It costs two more forward passes; remat="steps" costs one and keeps a copy of x per step, remat="none" keeps all
activations, which is right for small networks. Gradients begin where guidance does: `detached` steps before that, on
which the weight is 0 whatever its params, are steps of a plain sampler.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.conditions import repeated
from guidance.learning.mismatch import grouped_mismatch
from guidance.learning.model import Model
from guidance.sampling.sample import advance, begin, initial_noise, step_inputs
from guidance.sampling.solvers import as_solver
from guidance.schedules import diffuse
from guidance.shapes import as_state, row_keys
from guidance.types import Array, Cond, Denoise, Guide, Schedule, Solver, Step, Weight

REMAT = ("none", "steps", "segments")


def rollout(
    key: Array,
    denoise: Denoise,
    guide: Guide,
    step: Step | Solver,
    schedule: Schedule,
    grid: Array,
    x: Array,
    cond: Cond,
    *,
    segments: int = 1,
    remat: str = "segments",
    detached: int = 0,
) -> Array:
    """States at the ends of `segments` equal parts of the grid, [segments, batch, ...]; the last one is the sample.

    The same numbers as `sample` with the same key and ids = row numbers, arranged for differentiation. No gradient
    flows through the first `detached` steps, and the parts are those of the others. Raises ValueError if the number
    of these is not a multiple of `segments`, or `remat` is not one of REMAT.
    """
    checks.inputs(key, guide, schedule, grid, x, cond)
    if remat not in REMAT:
        raise ValueError(f"remat must be one of {', '.join(REMAT)}, got {remat!r}")
    steps = grid.shape[0] - 1 - detached
    if steps % segments:
        raise ValueError(f"the number of steps ({steps}) must be a multiple of the number of segments ({segments})")
    keys = row_keys(key, jnp.arange(x.shape[0]))

    solver = as_solver(step)

    def one_step(carry, inputs):
        return advance(keys, inputs, denoise, guide, solver, schedule, *carry, cond), None

    x = as_state(x)
    inputs, start = step_inputs(grid), (x, begin(denoise, guide, solver, schedule, grid, x, cond))
    if detached:
        start, _ = jax.lax.scan(one_step, start, jax.tree.map(lambda a: a[:detached], inputs))
        start = jax.lax.stop_gradient(start)
    if remat != "none":
        one_step = jax.checkpoint(one_step)

    def one_segment(carry, inputs):
        carry, _ = jax.lax.scan(one_step, carry, inputs)
        return carry, carry[0]

    if remat == "segments":
        one_segment = jax.checkpoint(one_segment)
    inputs = jax.tree.map(lambda a: a[detached:].reshape(segments, -1), inputs)
    _, states = jax.lax.scan(one_segment, start, inputs)
    return states


class Rollout(NamedTuple):
    """Settings of the rollout objective.

    particles: generated samples for each condition. features: the space in which the law at the end is matched,
    [n, ...] -> [n, d]; None: that of the samples. path_weight is kappa: above 0 the laws at the inner segment ends are
    matched too. segments, remat and detached: as in `rollout`.
    """

    particles: int
    beta: float = 1.0
    segments: int = 1
    remat: str = "segments"
    path_weight: float = 0.0
    detached: int = 0
    features: Callable[[Array], Array] | None = None


def rollout_loss(
    key: Array,
    model: Model,
    weight: Weight,
    step: Step | Solver,
    grid: Array,
    real: Array,
    cond: Cond,
    settings: Rollout,
) -> Array:
    """The rollout objective on G conditions: a scalar, differentiable in the leaves of `weight`.

    real: true samples [G, k, ...], k per condition; cond: leaves [G, ...]. At the inner segment ends the truth is
    `real` with fresh noise, in the space of the samples. Unbiased in the laws: pairs of a particle with itself are
    left out. Evaluations: those of `sample` for G * particles samples, and what recomputation adds.
    """
    schedule, (particles, beta, segments, remat, path_weight, detached, features) = model.schedule, settings
    groups, shape = real.shape[0], real.shape[2:]
    start_key, step_key, noise_key = jax.random.split(key, 3)
    x = initial_noise(start_key, schedule, grid, shape, jnp.arange(groups * particles))
    each = repeated(cond, particles)
    arguments = step_key, model.denoise, model.guide(weight, skip=False), step, schedule, grid, x, each
    states = rollout(*arguments, segments=segments, remat=remat, detached=detached)
    states = states.reshape(segments, groups, particles, *shape)

    last, target = states[-1], real
    if features is not None:
        last, target = (_in_features(features, x, shape) for x in (last, real))
    loss = grouped_mismatch(last, target, beta, 1.0)
    if path_weight == 0.0 or segments == 1:
        return loss

    stride = (grid.shape[0] - 1 - detached) // segments

    def path_mismatch(inputs):
        y, s, key = inputs
        flat = as_state(real).reshape(-1, *shape)
        noised = diffuse(schedule, flat, jax.random.normal(key, flat.shape, flat.dtype), jnp.full(flat.shape[0], s))
        return grouped_mismatch(y, noised.reshape(real.shape), beta, 1.0)

    times = grid[detached + stride : -1 : stride]
    inner = jax.lax.map(path_mismatch, (states[:-1], times, jax.random.split(noise_key, segments - 1)))
    return loss + path_weight * jnp.mean(inner)


def _in_features(features, x: Array, shape: tuple[int, ...]) -> Array:
    """Samples [G, n, *shape] as features [G, n, d]."""
    flat = x.reshape(-1, *shape)
    found = features(flat)
    checks.is_features(found, flat)
    return found.reshape(*x.shape[:2], -1)

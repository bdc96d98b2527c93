"""`sample`: a scan of guide and step over a grid. It never mentions a rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance.types import Array, Cond, Denoise, Guide, Schedule, Step


class Sampled(NamedTuple):
    """x0 [batch, ...]; nfe: network evaluations per sample by branch; trajectory [steps + 1, batch, ...] or None."""

    x0: Array
    nfe: dict[str, Array]
    trajectory: Array | None


def initial_noise(key: Array, schedule: Schedule, grid: Array, shape: tuple[int, ...], ids: Array) -> Array:
    """Draws x_T = sigma(grid[0]) z, one key per sample id: [len(ids), *shape].

    The mean alpha(grid[0]) E x_0 is neglected, as every published sampler does; it is 0 for rectified flow and cosine
    at grid[0] = 1.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
    z = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
    return schedule.sigma(grid[0]) * z


def sample(
    key: Array,
    denoise: Denoise,
    guide: Guide,
    step: Step,
    schedule: Schedule,
    grid: Array,
    x: Array,
    cond: Cond,
    ids: Array | None = None,
    trajectory: bool = False,
) -> Sampled:
    """Runs `x` at time grid[0] down to grid[-1]: x_{i+1} = step(guide(x_i, t_i, t_{i+1})).

    A sample depends on its id (default: its row number), not on the batch it is in: its keys are
    fold_in(fold_in(key, id), step). x [batch, ...]; cond leaves [batch, ...]; grid [steps + 1], decreasing.
    """
    ids = jnp.arange(x.shape[0]) if ids is None else ids
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)

    def body(carry, inputs):
        x, state, nfe = carry
        x, state, step_nfe = advance(keys, inputs, denoise, guide, step, schedule, x, state, cond)
        return (x, state, jax.tree.map(jnp.add, nfe, step_nfe)), (x if trajectory else None)

    state = guide.init(x)
    inputs = step_inputs(grid)
    nfe = zero_nfe(denoise, guide, schedule, x, state, grid, cond)
    (last, _, nfe), path = jax.lax.scan(body, (x, state, nfe), inputs)
    if trajectory:
        path = jnp.concatenate([x[None], path])
    return Sampled(last, nfe, path)


def step_inputs(grid: Array) -> tuple[Array, Array, Array]:
    """What a scan over the steps of a grid reads: (i, t_i, t_{i+1}), each [steps]."""
    return jnp.arange(grid.shape[0] - 1), grid[:-1], grid[1:]


def advance(keys, inputs, denoise, guide, step, schedule, x, state, cond):
    """One guided step, shared by `sample` and by the rollout objective: -> (x_s, state, nfe of this step).

    keys [batch], one per sample; inputs: (i, t, s), scalars, as `step_inputs` lists them.
    """
    i, t, s = inputs
    t, s = jnp.full(x.shape[:1], t, x.dtype), jnp.full(x.shape[:1], s, x.dtype)
    state, guided = guide.apply(state, denoise, schedule, x, t, s, cond)
    step_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)
    return step(step_keys, x, guided, t, s, schedule).astype(x.dtype), state, guided.nfe


def zero_nfe(denoise, guide, schedule, x, state, grid, cond) -> dict[str, Array]:
    """A zero count for each branch that the guide reports, found without computing anything."""
    t = jnp.full(x.shape[:1], grid[0], x.dtype)
    shapes = jax.eval_shape(lambda: guide.apply(state, denoise, schedule, x, t, t, cond)[1].nfe)
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

"""`sample`: a scan of guide and solver over a grid. It never mentions a rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.sampling.solvers import as_solver
from guidance.shapes import as_state, row_keys, with_dtypes_of
from guidance.types import Array, Cond, Denoise, Guide, Schedule, Solver, State, Step


class Sampled(NamedTuple):
    """x0 [batch, ...]; nfe: network evaluations per sample by branch; trajectory [steps + 1, batch, ...] or None."""

    x0: Array
    nfe: dict[str, Array]
    trajectory: Array | None


class Running(NamedTuple):
    """What a sampler hands from step to step beside x: the guide's state, the evaluations so far, the memory."""

    guide: State
    nfe: dict[str, Array]
    memory: State


def initial_noise(key: Array, schedule: Schedule, grid: Array, shape: tuple[int, ...], ids: Array) -> Array:
    """Draws x_T = sigma(grid[0]) z, one key per sample id: [len(ids), *shape].

    The mean alpha(grid[0]) E x_0 is neglected, as every published sampler does; it is 0 for rectified flow and cosine
    at grid[0] = 1.
    """
    checks.one_key(key)
    checks.is_schedule(schedule)
    checks.is_ids(ids)
    z = jax.vmap(lambda k: jax.random.normal(k, shape))(row_keys(key, ids))
    return schedule.sigma(grid[0]) * z


def sample(
    key: Array,
    denoise: Denoise,
    guide: Guide,
    step: Step | Solver,
    schedule: Schedule,
    grid: Array,
    x: Array,
    cond: Cond,
    *,
    ids: Array | None = None,
    trajectory: bool = False,
) -> Sampled:
    """Runs `x` at time grid[0] down to grid[-1]: x_{i+1} = step(guide(x_i, t_i, t_{i+1})).

    `step` is any member of `guidance.sampling`, or your own Step or Solver. A sample depends on its id (default: its
    row number), not on the batch it is in: its keys are fold_in(fold_in(key, id), step). x [batch, ...]; cond leaves
    [batch, ...]; grid [steps + 1], decreasing. The counts in `nfe` are of evaluations that took place: second
    evaluations of a step count, branches and corrections that were skipped do not. Times keep the grid's dtype. x is
    kept in float32 or wider, whatever the network's dtype: a bfloat16 x is raised on entry, and a network of bfloat16
    casts what it is given. Integer x (tokens) stays as it is. Raises TypeError or ValueError for what cannot be
    sampled; see `guidance.checks`.
    """
    checks.inputs(key, guide, schedule, grid, x, cond)
    ids = jnp.arange(x.shape[0]) if ids is None else ids
    checks.is_ids(ids, x.shape[0])
    keys = row_keys(key, ids)
    x, solver = as_state(x), as_solver(step)

    def body(carry, inputs):
        x, running = advance(keys, inputs, denoise, guide, solver, schedule, *carry, cond)
        return (x, running), (x if trajectory else None)

    start = (x, begin(denoise, guide, solver, schedule, grid, x, cond))
    (last, running), path = jax.lax.scan(body, start, step_inputs(grid))
    if trajectory:
        path = jnp.concatenate([x[None], path])
    return Sampled(last, running.nfe, path)


def step_inputs(grid: Array) -> tuple[Array, Array, Array]:
    """What a scan over the steps of a grid reads: (i, t_i, t_{i+1}), each [steps]."""
    return jnp.arange(grid.shape[0] - 1), grid[:-1], grid[1:]


def begin(denoise, guide, solver, schedule, grid, x, cond) -> Running:
    """The state before the first step: no evaluations yet, for each branch that the guide reports."""
    state = guide.init(x)
    t = jnp.full(x.shape[:1], grid[0])
    watched = checks.watched(denoise)
    shapes = jax.eval_shape(lambda: guide.apply(state, watched, schedule, x, t=t, s=t, cond=cond)[1].nfe)
    return Running(state, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), solver.init(x))


def advance(keys, inputs, denoise, guide, solver, schedule, x, running, cond) -> tuple[Array, Running]:
    """One guided step, shared by `sample` and by the rollout objective: -> (x_s, running).

    keys [batch], one per sample; inputs: (i, t, s), scalars, as `step_inputs` lists them.
    """
    i, t, s = inputs
    t, s = jnp.full(x.shape[:1], t), jnp.full(x.shape[:1], s)
    step_keys = jax.vmap(lambda k: jax.random.fold_in(k, i))(keys)

    def evaluate(carry, x, *, t, s):
        state, nfe = carry
        after, guided = guide.apply(state, denoise, schedule, x, t=t, s=s, cond=cond)
        return (with_dtypes_of(after, state), jax.tree.map(jnp.add, nfe, guided.nfe)), guided

    carry = (running.guide, running.nfe)
    memory, carry, x_s = solver.apply(step_keys, running.memory, carry, evaluate, x, t=t, s=s, schedule=schedule)
    state, nfe = carry
    return with_dtypes_of(x_s, x), Running(state, nfe, with_dtypes_of(memory, running.memory))

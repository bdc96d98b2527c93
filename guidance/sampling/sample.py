"""`sample`, which scans a guide and a solver over a grid. It knows no rule."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance import checks
from guidance.sampling.solvers import as_solver
from guidance.shapes import as_state, row_keys, with_dtypes_of
from guidance.types import Array, Cond, Denoise, Guide, Schedule, Solver, State, Step


class Sampled(NamedTuple):
    """Samples x0 [batch, ...], network evaluations per sample by branch, and the trajectory if it was asked for."""

    x0: Array
    nfe: dict[str, Array]
    trajectory: Array | None  # [steps + 1, batch, ...], from noise to x0

    @property
    def evaluations(self) -> Array:
        """Network evaluations per sample, all branches together."""
        return jnp.asarray(sum(self.nfe.values()))


class Running(NamedTuple):
    """The state of a sampler beside x: the guide's state, the evaluations so far by branch, the solver's memory."""

    guide: State
    nfe: dict[str, Array]
    memory: State


def initial_noise(key: Array, schedule: Schedule, grid: Array, shape: tuple[int, ...], ids: Array) -> Array:
    """Draws the initial state sigma(grid[0]) z, z ~ N(0, I), [len(ids), *shape]. A row depends on the key and its id.

    The mean alpha(grid[0]) E x_0 is neglected, as in all published samplers. It is 0 for rectified flow and cosine at
    grid[0] = 1.
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
    steps: Array | None = None,
) -> Sampled:
    """Samples by running x from time grid[0] down to grid[-1]: x_{i+1} = step(guide(x_i, t_i, t_{i+1})).

    x [batch, ...] at grid[0], as from `initial_noise`; cond leaves [batch, ...]; grid [steps + 1], decreasing. step: a
    step or solver of `guidance.sampling`, or your own. ids [batch], default the row numbers: a sample depends on its
    id and not on its batch, since its keys are fold_in(fold_in(key, id), step number).

    `nfe` counts the evaluations that took place, so that skipped branches and corrections do not count. Times keep the
    dtype of the grid. x is kept in float32 or wider, whatever the dtype of the network; integer x (tokens) is not
    cast.

    steps: how many steps of the grid are taken, an integer that may be traced (default: all). Inside jit, grids that
    zeros fill up to one length then compile once. There is no trajectory then, and no gradient.

    Raises TypeError or ValueError for arguments that do not fit (see `guidance.checks`).
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
    if steps is not None:
        last, running = jax.lax.fori_loop(0, steps, lambda i, carry: body(carry, (i, grid[i], grid[i + 1]))[0], start)
        return Sampled(last, running.nfe, None)
    (last, running), path = jax.lax.scan(body, start, step_inputs(grid))
    if trajectory:
        path = jnp.concatenate([x[None], path])
    return Sampled(last, running.nfe, path)


def from_noise(
    keys: Array | tuple[Array, Array],
    denoise: Denoise,
    guide: Guide,
    step: Step | Solver,
    schedule: Schedule,
    grid: Array,
    shape: tuple[int, ...],
    cond: Cond,
    *,
    ids: Array | None = None,
    trajectory: bool = False,
    steps: Array | None = None,
) -> Sampled:
    """Samples from noise: draws `initial_noise` [batch, *shape] and runs `sample` on it.

    keys: two keys, of the noise and of the steps, as from jax.random.split(key). cond leaves [batch, ...]. The other
    arguments, and the errors, are those of `sample`.
    """
    noise_key, step_key = keys
    ids = jnp.arange(jax.tree.leaves(cond)[0].shape[0]) if ids is None else ids
    x = initial_noise(noise_key, schedule, grid, shape, ids)
    return sample(step_key, denoise, guide, step, schedule, grid, x, cond, ids=ids, trajectory=trajectory, steps=steps)


def step_inputs(grid: Array) -> tuple[Array, Array, Array]:
    """Returns the inputs of a scan over the steps of a grid: (i, t_i, t_{i+1}), each [steps]."""
    return jnp.arange(grid.shape[0] - 1), grid[:-1], grid[1:]


def begin(denoise, guide, solver, schedule, grid, x, cond) -> Running:
    """Returns the state before the first step, with a count of 0 for each branch that the guide reports."""
    state = guide.init(x)
    t = jnp.full(x.shape[:1], grid[0])
    watched = checks.watched(denoise)
    shapes = jax.eval_shape(lambda: guide.apply(state, watched, schedule, x, t=t, s=t, cond=cond)[1].nfe)
    return Running(state, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes), solver.init(x))


def advance(keys, inputs, denoise, guide, solver, schedule, x, running, cond) -> tuple[Array, Running]:
    """Takes one guided step, for `sample` and the rollout objective; returns (x_s, running).

    keys [batch], one per sample. inputs: the scalars (i, t, s) of one step, from `step_inputs`.
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

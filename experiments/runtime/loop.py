"""The one training loop: restores, updates, shows progress, saves, and stops by request or when the loss breaks."""

import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runtime import checkpoints, launch, mesh, progress


def compiled(update: Callable) -> Callable:
    """Compiles `update(state, i, *arguments) -> (state, figures)` for `fit`; "loss" is among the figures.

    Returns a function of ((state, broken), i, *arguments) that gives the buffers of the state away. `broken` is the
    number of the first update whose figures are not all finite, -1 before there is one; from then on the state stays
    what it was before that update.
    """

    def guarded(carry, i, *arguments):
        before, broken = carry
        after, figures = update(before, i, *arguments)
        fine = (broken < 0) & jnp.all(jnp.isfinite(jnp.stack([jnp.mean(figure) for figure in figures.values()])))
        state = jax.tree.map(lambda new, old: jnp.where(fine, new, old), after, before)
        return (state, jnp.where(fine | (broken >= 0), broken, i)), figures

    return jax.jit(guarded, donate_argnums=0)


def fit(
    name: str,
    folder,
    metrics_path,
    state: Any,
    update: Callable[[Any, Any], tuple[Any, dict]],
    iterations: int,
    checkpoint_every: int,
    marks: Collection[int] = (),
    at_mark: Callable[[int, Any], None] = lambda step, state: None,
    batch: Callable[[int], Any] = lambda step: (),
) -> Any:
    """Runs `update(carry, i) -> (carry, figures)` of `compiled` for i < iterations; returns the final state.

    The state is placed on the mesh. The loop resumes from the newest checkpoint in `folder`; state and i determine an
    update, so that a resumed run ends in the same bits. `at_mark(step, state)` is called after the updates whose count
    is in `marks`, and called again where the run was killed before its next checkpoint. Raises progress.Stopped when a
    stop was requested, after saving. Raises progress.Diverged once a figure is not finite, after saving the state
    before that update and, as broken_batch.npz, the leaves of `batch(i)`.
    """
    state = jax.tree.map(jnp.copy, mesh.shard(state))
    restored = checkpoints.restore_latest(folder, state)
    done, state = restored if restored else (0, state)
    if done >= iterations:
        return state
    carry = state, mesh.shard(jnp.int32(-1))
    log_every = max(1, iterations // 100)
    with progress.Metrics(metrics_path, name, done) as log:
        with progress.waiting(f"{name}: compiling"):
            carry, figures = update(carry, done)
            jax.block_until_ready(carry)
        for i in progress.track(range(done, iterations), name, total=iterations, start=done):
            if i > done:
                carry, figures = update(carry, i)
            stop = progress.stop_requested()
            save = stop or i + 1 == iterations or (i + 1) % checkpoint_every == 0
            if save or i + 1 in marks or (i + 1) % log_every == 0:
                _refuse_broken(name, folder, *carry, batch)
            if (i + 1) % log_every == 0:
                log.write(i + 1, **figures)
            if i + 1 in marks:
                at_mark(i + 1, carry[0])
            if save:
                checkpoints.save(folder, i + 1, carry[0])
            if stop and i + 1 < iterations:
                raise progress.Stopped
    return carry[0]


def _refuse_broken(name: str, folder, state, broken, batch) -> None:
    """Raises progress.Diverged where an update was `broken`, after saving what is known of it."""
    step = int(broken)
    if step < 0:
        return
    if step > 0:  # there is nothing to save before the first update
        checkpoints.save(folder, step, state)
    leaves = jax.tree.leaves_with_path(mesh.whole(batch(step)))
    arrays = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    file = pathlib.Path(folder) / "broken_batch.npz"

    def write():
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)

    if arrays:
        launch.first(write)
    where = f", its batch in {file}" if arrays else ""
    raise progress.Diverged(f"{name}: the loss of update {step} is not finite; the state before it is saved{where}")

"""The one training loop: restores, updates, shows progress, saves, and stops when asked."""

from collections.abc import Callable
from typing import Any

import jax

from experiments import checkpoints, mesh, progress


def fit(
    name: str,
    folder,
    metrics_path,
    state: Any,
    update: Callable[[Any, Any], tuple[Any, dict]],
    iterations: int,
    checkpoint_every: int,
) -> Any:
    """Runs `update(state, i) -> (state, figures)` for i < iterations; returns the final state.

    The state lies on the mesh, given and returned. Resumes from the newest checkpoint in `folder`; the state and i
    determine an update, so that a resumed run ends in the same bits. Raises progress.Stopped after saving when a stop
    was requested.
    """
    state = mesh.shard(state)
    restored = checkpoints.restore_latest(folder, state)
    done, state = restored if restored else (0, state)
    if done >= iterations:
        return state
    log_every = max(1, iterations // 100)
    with progress.Metrics(metrics_path, name, done) as log:
        with progress.waiting(f"{name}: compiling"):
            state, figures = update(state, done)
            jax.block_until_ready(state)
        for i in progress.track(range(done, iterations), name, total=iterations, start=done):
            if i > done:
                state, figures = update(state, i)
            if (i + 1) % log_every == 0:
                log.write(i + 1, **figures)
            stop = progress.stop_requested()
            if stop or i + 1 == iterations or (i + 1) % checkpoint_every == 0:
                checkpoints.save(folder, i + 1, state)
            if stop and i + 1 < iterations:
                raise progress.Stopped
    return state

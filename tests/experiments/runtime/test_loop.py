"""The training loop: what it does when a figure stops being finite, and that it gives nothing of the caller's away."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.runtime import checkpoints, loop, progress


def _counting(breaks_at):
    """Adds 1 to the state at every update; the loss is NaN at one of them."""

    def update(state, i):
        return {"w": state["w"] + 1}, {"loss": jnp.where(i == breaks_at, jnp.nan, state["w"])}

    return loop.compiled(update)


def _fit(folder, breaks_at, iterations=20, **options):
    start = {"w": jnp.float32(0)}
    batch = lambda step: {"x0": jnp.full(3, step, jnp.float32)}  # noqa: E731
    update = _counting(breaks_at)
    fitted = loop.fit(
        "test", folder / "state", folder / "m.jsonl", start, update, iterations, 5, batch=batch, **options
    )
    assert float(start["w"]) == 0  # not donated
    return fitted


def test_without_a_fault_every_update_counts(tmp_path):
    marks = []
    state = _fit(tmp_path, -5, marks={3, 20}, at_mark=lambda step, state: marks.append((step, float(state["w"]))))
    assert float(state["w"]) == 20 and marks == [(3, 3.0), (20, 20.0)]


@pytest.mark.parametrize("breaks_at", [0, 7, 19])
def test_a_broken_loss_stops_with_the_update_its_batch_and_the_state_before_it(tmp_path, breaks_at):
    for _ in range(2):  # the same again when resumed
        with pytest.raises(progress.Diverged, match=f"^test: the loss of update {breaks_at} is not finite.*$"):
            _fit(tmp_path, breaks_at)
        with np.load(tmp_path / "state" / "broken_batch.npz") as held:
            np.testing.assert_array_equal(held["x0"], np.full(3, breaks_at))
    restored = checkpoints.restore_latest(tmp_path / "state", {"w": jnp.float32(0)})
    if breaks_at == 0:
        assert restored is None
    else:
        assert restored[0] == breaks_at and float(restored[1]["w"]) == breaks_at
    assert float(_fit(tmp_path, -5)["w"]) == 20  # once the cause is gone it goes on from there


def test_the_state_of_a_broken_update_is_never_taken():
    update = _counting(2)
    carry = {"w": jnp.float32(0)}, jnp.int32(-1)
    for i in range(6):
        carry, _ = update(carry, i)
    assert float(carry[0]["w"]) == 2 and int(carry[1]) == 2


def test_it_compiles_once():
    traces = []

    def update(state, i, x):
        traces.append(1)
        return state + x, {"loss": jnp.sum(state)}

    compiled = loop.compiled(update)
    carry = jnp.zeros(2), jnp.int32(-1)
    for i in range(4):
        carry, _ = compiled(carry, i, jax.random.normal(jax.random.key(i), (2,)))
    assert len(traces) == 1

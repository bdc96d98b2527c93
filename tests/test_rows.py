"""State and memory have a row for each sample: whoever exchanges samples can exchange all that they carry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules
from guidance.sampling import initial_noise, uniform_grid
from guidance.sampling.sample import advance, begin, step_inputs
from tests.members import LABELS, every_guide, every_solver

RF = schedules.rectified_flow()
MEANS = jnp.asarray([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [0.0, 0.0]])
GRID = uniform_grid(4, 0.95)
BATCH, MIDDLE = len(LABELS), 2
# The rows as they were and, behind them, a particle method's choice: rows leave, repeat and change places.
CHOICE = np.asarray([3, 0, 0, 4, 2, 3])
KEPT = np.concatenate([np.arange(BATCH), CHOICE])
GUIDES, SOLVERS = every_guide(), every_solver()
# The state of a guide and the memory of a solver meet only in the carry. Hence a guide with state meets every solver,
# and every guide two solvers: one that evaluates twice a step, and one that remembers and draws noise.
WITH_STATE, TWO_SOLVERS = "guided by apg", ("heun", "dpmpp_2m_sde")


def _denoise(x, t, cond):
    """Any function of all it is given: what counts here is who goes on from where."""
    return jnp.tanh(x + MEANS[cond]) * (2 - t[:, None])


def _check_rows(tree, n):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        assert leaf.shape[:1] == (n,), f"{jax.tree_util.keystr(path)} has shape {leaf.shape}, not [batch, ...]"


def _exchanged(guide, solver):
    """Samples [batch + choice, 2] of a run whose rows are gathered in its middle; state and memory are checked."""
    x, keys, cond = initial_noise(jax.random.key(0), RF, GRID, (2,), jnp.arange(BATCH)), jnp.arange(BATCH), LABELS
    running = begin(_denoise, guide, solver, RF, GRID, x, cond)
    for i, t, s in zip(*step_inputs(GRID), strict=True):
        if i == MIDDLE:
            carried = (running.guide, running.memory)
            _check_rows(carried, BATCH)
            x, keys, cond, carried = jax.tree.map(lambda leaf: leaf[KEPT], (x, keys, cond, carried))
            running = running._replace(guide=carried[0], memory=carried[1])
        own = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(1), row))(keys)
        x, running = advance(own, (i, t, s), _denoise, guide, solver, RF, x, running, cond)
    _check_rows((running.guide, running.memory), len(KEPT))
    return np.asarray(x)


@pytest.mark.key_reuse  # every step folds its number into the same keys, outside of a scan
@pytest.mark.parametrize("guide", GUIDES)
def test_exchanged_samples_go_on_as_themselves(guide):
    """A copy of a sample, wherever it has gone, ends where the sample ends."""
    with jax.disable_jit():  # compiling takes far longer than these few numbers
        for name in SOLVERS if guide == WITH_STATE else TWO_SOLVERS:
            ends = _exchanged(GUIDES[guide], SOLVERS[name])
            # samples that reach the same mode end alike; most must differ for an exchange to show
            apart = len(np.unique(ends[:BATCH], axis=0))
            assert np.isfinite(ends).all() and apart > BATCH // 2, f"{name}: nothing is compared"
            np.testing.assert_allclose(ends[BATCH:], ends[CHOICE], rtol=1e-5, atol=1e-6, err_msg=name)

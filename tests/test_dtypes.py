"""Dtypes: times are the grid's, samplers keep x in float32 or wider, predictions are raised once, tokens stay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, schedules, weights
from guidance.learning.rollout import rollout
from guidance.sampling import ddim, sample, uniform_grid
from guidance.shapes import like
from guidance.steering import evolve, feynman_kac, gibbs, predictor_corrector, resample
from tests.members import GIVEN, LABELS, NULL, every_guide, every_rule, every_solver
from tests.test_rows import _denoise

RF = schedules.rectified_flow()
GUIDES, SOLVERS, RULES = every_guide(), every_solver(), every_rule()
TEN = uniform_grid(10)


def _answering(dtype):
    """A denoiser whose predictions have this dtype."""
    return Partial(lambda x, t, cond: _denoise(x, t, cond).astype(dtype))


def _traced(dtype, denoise, guide, solver, grid):
    """The shapes and dtypes of `sample` for x of this dtype: nothing is compiled."""
    x = jnp.zeros((len(LABELS), 2), dtype)
    return jax.eval_shape(lambda: sample(jax.random.key(0), denoise, guide, solver, RF, grid, x, LABELS))


# x, the denoiser's answer, the grid; the last two need x64
MIXED = [
    ("float32", "bfloat16", "float32"), ("bfloat16", "bfloat16", "float32"), ("float16", "float32", "float32"),
    ("float32", "float32", "float64"), ("float64", "float32", "float32"),
]  # fmt: skip


@pytest.mark.parametrize("x, answer, times", MIXED)
def test_every_guide_rule_and_solver_takes_any_mixture(x, answer, times):
    """Both sides of every cond, and the carry of every scan, agree; the state is x's dtype, float32 at least."""
    with jax.enable_x64("float64" in (x, times)):
        grid, denoise = uniform_grid(4).astype(times), _answering(answer)
        runs = {name: (guide, ddim()) for name, guide in GUIDES.items()}
        runs |= {name: (guides.guided(rule, GIVEN["weight"], NULL), ddim()) for name, rule in RULES.items()}
        runs |= {name: (GUIDES["early_stopping"], solver) for name, solver in SOLVERS.items()}
        for name, (guide, solver) in runs.items():
            out = _traced(x, denoise, guide, solver, grid)
            assert out.x0.dtype == jnp.promote_types(x, jnp.float32), name


def test_predictions_are_raised_before_the_rule_sees_them():
    """A bfloat16 network: the gap of its predictions is that of the rounded numbers, not rounded again."""
    x, t = jnp.linspace(-2, 2, 10).reshape(5, 2), jnp.full(5, 0.3)
    guide = guides.cfg(weights.constant(1.5), NULL)
    _, out = guide.apply((), _answering(jnp.bfloat16), RF, x, t=t, s=t / 2, cond=LABELS)
    positive, reference = (
        np.asarray(_denoise(x, t, cond).astype(jnp.bfloat16), np.float32) for cond in (LABELS, jnp.full(5, NULL))
    )
    chex.assert_trees_all_close(out.x0, positive + 1.5 * (positive - reference), rtol=1e-6)
    chex.assert_type((out.x0, out.eps), jnp.float32)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_intervals_guide_exactly_their_steps(dtype):
    """Steps 3 to 5 of ten, and (0.2, 0.8]: three and six references, whatever x is stored in."""
    for x64 in (False, True):
        if dtype == "float64" and not x64:
            continue
        with jax.enable_x64(x64):
            grid, x = uniform_grid(10), jnp.zeros((len(LABELS), 2), dtype)
            for weight, steps in [
                (weights.interval_of_steps(grid, 1.5, 3, 5), 3),
                (weights.interval(1.5, 0.2, 0.8), 6),
            ]:
                guide = guides.cfg(weight, NULL)
                out = jax.jit(
                    lambda guide, grid=grid, x=x: sample(
                        jax.random.key(0), _denoise, guide, ddim(), RF, grid, x, LABELS
                    )
                )(guide)
                assert int(out.nfe["reference"]) == steps


def _clock(keys, x, guided, *, t, s, schedule):
    """A step that writes down the time at which it starts."""
    del keys, guided, s, schedule
    return jnp.broadcast_to(like(t, x), x.shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_thousand_steps_are_a_thousand_times(dtype):
    grid, x = uniform_grid(1000), jnp.zeros((1, 2), dtype)
    arguments = (jax.random.key(0), _denoise, guides.unguided(), Partial(_clock), RF, grid, x, jnp.zeros(1, int))
    out = jax.jit(lambda: sample(*arguments, trajectory=True))()
    seen = np.asarray(out.trajectory[1:, 0, 0])
    assert len(np.unique(seen)) == 1000
    np.testing.assert_array_equal(seen, grid[:-1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_whatever_else_samples_keeps_float32_too(dtype):
    x, null = jnp.zeros((len(LABELS), 2), dtype), NULL
    denoise, key, weight = _answering(dtype), jax.random.key(0), weights.constant(1.0)
    run = lambda key, x: sample(key, denoise, guides.unguided(), ddim(), RF, TEN, x, LABELS)  # noqa: E731
    found = {
        "rollout": lambda: rollout(key, denoise, guides.cfg(weight, null), ddim(), RF, TEN, x, LABELS),
        "feynman_kac": lambda: feynman_kac(key, denoise, 1.0, null, ddim(), RF, TEN, x, LABELS).x,
        "predictor_corrector": lambda: predictor_corrector(key, denoise, weight, null, RF, TEN, x, LABELS).x0,
        "gibbs": lambda: gibbs(key, run(jax.random.key(1), x)._replace(x0=x), run, RF, 0.5, 2).x0,
    }
    for name, function in found.items():
        assert jax.eval_shape(function).dtype == jnp.float32, name


# ---- tokens: integers [batch, positions]; predictions are logits [batch, positions, words]

WORDS, MASK = 3, 3
TOKENS = jnp.full((len(LABELS), 4), MASK, jnp.int32)


def _logits(x, t, cond):
    """Word cond at every position, more certain where x shows it already; no word in particular for the null label."""
    wanted = jnp.where(cond == NULL, 0.0, 4.0)[:, None, None] * jax.nn.one_hot(cond % WORDS, WORDS)[:, None]
    return (wanted + jax.nn.one_hot(x, WORDS)) * (1 - t / 2)[:, None, None]


def _unmask(keys, x, guided, *, t, s, schedule):
    """Masked positions become the likeliest word, from the left, in proportion to the time that has gone."""
    del keys, t, schedule
    revealed = jnp.arange(x.shape[1])[None] < jnp.round((1 - s) * x.shape[1])[:, None]
    word = jnp.argmax(guided.x0, axis=-1).astype(x.dtype)
    return jnp.where((x == MASK) & revealed, word, x)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint16"])
def test_tokens_pass_through_guides_and_samplers_untouched(dtype):
    for weight in (weights.constant(2.0), weights.interval(2.0, 0.3, 0.8), weights.constant(0.0)):
        arguments = Partial(_logits), guides.cfg(weight, NULL), Partial(_unmask), RF, uniform_grid(4)
        out = jax.jit(sample)(jax.random.key(0), *arguments, TOKENS.astype(dtype), LABELS)
        assert out.x0.dtype == dtype
        np.testing.assert_array_equal(out.x0, np.repeat(np.asarray(LABELS)[:, None] % WORDS, 4, axis=1))


def test_guided_logits_are_the_rules_and_hold_no_noise():
    t = jnp.full(len(LABELS), 0.5)
    guide = guides.cfg(weights.constant(1.5), NULL)
    _, out = guide.apply((), Partial(_logits), RF, TOKENS, t=t, s=t / 2, cond=LABELS)
    positive, reference = (_logits(TOKENS, t, cond) for cond in (LABELS, jnp.full_like(LABELS, NULL)))
    chex.assert_trees_all_close(out.x0, positive + 1.5 * (positive - reference), rtol=1e-6)
    assert out.eps is None


def test_a_solver_that_turns_tokens_into_numbers_is_not_cast_back():
    half = Partial(lambda keys, x, guided, *, t, s, schedule: x + 0.5)
    with pytest.raises(TypeError, match="carry"):
        sample(jax.random.key(0), Partial(_logits), guides.unguided(), half, RF, uniform_grid(4), TOKENS, LABELS)


def test_particles_of_tokens_are_resampled_as_they_are():
    """Weights by the share of word 1: a population of tokens beside what it carries keeps its dtypes and its rows."""
    tokens = jnp.asarray([[0, 1], [1, 1], [2, 0]], jnp.int16)
    x, _ = resample(jax.random.key(0), {"tokens": tokens, "row": jnp.arange(3)}, jnp.asarray([0.0, 20.0, 0.0]))
    np.testing.assert_array_equal(x["tokens"], tokens[x["row"]])
    assert x["tokens"].dtype == jnp.int16 and (x["row"] == 1).all()

    def move(key, x, *, t, s):
        del key, t, s
        return x, jnp.sum(x == 1, axis=-1).astype(jnp.float32)

    population = evolve(jax.random.key(1), move, uniform_grid(3), tokens, 2.0)
    assert population.x.dtype == jnp.int16


def test_weights_answer_in_the_dtype_of_time(x64):
    t = jnp.full(4, 0.5, jnp.float32)
    table = weights.table(uniform_grid(4), jnp.ones(4))
    assert table.args[1].dtype == jnp.float64
    for weight in (table, weights.constant(jnp.float64(1)), weights.interval(jnp.float64(1), 0.2, 0.8)):
        assert weight(t=t, s=t, cond=None).dtype == jnp.float32

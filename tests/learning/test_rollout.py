"""The rollout objective: the sampler's own numbers, its gradient, its memory, and its closed-form expectation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from guidance import guides, schedules, weights
from guidance.learning import Model
from guidance.learning.mismatch import grouped_mismatch
from guidance.learning.rollout import REMAT, Rollout, rollout, rollout_loss
from guidance.sampling import churned_ddim, ddim, initial_noise, sample, transition, uniform_grid
from tests import oracles

RF = schedules.rectified_flow()
GRID = np.linspace(0.99, 0, 9)  # uniform; in float64 where a test asks for it


MEANS, VARIANCE, NULL_VARIANCE, NULL = (-1.0, 2.0), 0.3, 2.0, 2


def _gaussian(x, t, cond):
    """Labels 0, 1: N(MEANS[c], .3); null label 2: N(0, 2). Every guided step is affine in x."""
    mean = jnp.asarray([*MEANS, 0.0])[cond][:, None]
    variance = jnp.asarray([VARIANCE, VARIANCE, NULL_VARIANCE])[cond][:, None]
    alpha, sigma = 1 - t[:, None], t[:, None]
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


DENOISE = Partial(_gaussian)
MODEL = Model(DENOISE, RF, NULL)


def _inputs(batch=6):
    x = initial_noise(jax.random.key(1), RF, GRID, (1,), jnp.arange(batch))
    return x, jnp.arange(batch) % 2


def _real():
    """Five true samples of each class."""
    return jnp.asarray(MEANS)[:, None, None] + VARIANCE**0.5 * jax.random.normal(jax.random.key(3), (2, 5, 1))


def _table_guide(omegas):
    return guides.cfg(weights.table(GRID, omegas), NULL, skip=False)


# ---- the same numbers as the sampler


@pytest.mark.parametrize("segments", [1, 4, 8])
def test_states_are_those_of_the_sampler(segments):
    x, cond = _inputs()
    guide, step = guides.cfg(weights.constant(1.0), NULL), churned_ddim(0.6)
    arguments = (DENOISE, guide, step, RF, GRID, x, cond)
    states = jax.jit(rollout, static_argnames="segments")(jax.random.key(2), *arguments, segments=segments)
    path = jax.jit(sample, static_argnames="trajectory")(jax.random.key(2), *arguments, trajectory=True).trajectory
    assert states.shape == (segments, 6, 1)
    chex.assert_trees_all_close(states, path[8 // segments :: 8 // segments], atol=1e-6)


def test_impossible_arguments():
    x, cond = _inputs()
    run = functools.partial(rollout, jax.random.key(0), DENOISE, guides.unguided(), ddim(), RF, GRID, x, cond)
    with pytest.raises(ValueError, match=r"steps \(8\) must be a multiple of the number of segments \(3\)"):
        run(segments=3)
    with pytest.raises(ValueError, match=r"steps \(7\) must be a multiple of the number of segments \(2\)"):
        run(segments=2, detached=1)
    with pytest.raises(ValueError, match="remat must be one of none, steps, segments, got 'all'"):
        run(remat="all")


# ---- gradients


def _end(omegas, x, cond, remat):
    """A smooth function of where the samples end; remat None is the plain sampler."""
    key, guide, step = jax.random.key(2), _table_guide(omegas), churned_ddim(0.5)
    if remat is None:
        return jnp.mean(jnp.sin(sample(key, DENOISE, guide, step, RF, GRID, x, cond).x0))
    states = rollout(key, DENOISE, guide, step, RF, GRID, x, cond, segments=2, remat=remat)
    return jnp.mean(jnp.sin(states[-1]))


_end_gradient = jax.jit(jax.grad(_end, (0, 1)), static_argnums=3)


@pytest.mark.key_reuse  # recomputation draws the same noise again, on purpose
@pytest.mark.parametrize("remat", REMAT)
def test_gradient_is_that_of_the_plain_sampler(remat, x64):
    """Recomputation changes no derivative: with respect to every step's omega, and to the start."""
    x, cond = _inputs()
    omegas = jnp.linspace(0.2, 1.5, 8)
    got, expected = (_end_gradient(omegas, x, cond, choice) for choice in (remat, None))
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-12)
    assert float(jnp.min(jnp.abs(got[0]))) > 0  # every step has its gradient


@pytest.mark.key_reuse  # recomputation draws the same noise again, on purpose
@pytest.mark.parametrize("remat", REMAT)
def test_detached_steps_change_nothing_but_their_own_gradient(remat, x64):
    """Three steps that no one differentiates: the others have the derivatives of the plain sampler."""
    x, cond = _inputs()
    omegas = jnp.asarray([0.0, 0.0, 0.0, 0.3, 1.0, 0.5, 0.7, 0.2])

    def end(omegas):
        arguments = jax.random.key(2), DENOISE, _table_guide(omegas), churned_ddim(0.5), RF, GRID, x, cond
        return jnp.mean(
            jnp.sin(rollout(*arguments, segments=1 if remat == "none" else 5, remat=remat, detached=3)[-1])
        )

    value, gradient = jax.jit(jax.value_and_grad(end))(omegas)
    chex.assert_trees_all_close(value, _end(omegas, x, cond, None), rtol=1e-12)
    expected = _end_gradient(omegas, x, cond, None)[0]
    chex.assert_trees_all_close(gradient[3:], expected[3:], rtol=1e-9, atol=1e-12)
    assert float(jnp.max(jnp.abs(gradient[:3]))) == 0 and float(jnp.min(jnp.abs(expected))) > 0


@pytest.mark.key_reuse  # recomputation draws the same noise again, on purpose
def test_gradient_against_finite_differences(x64):
    x, cond = _inputs()
    f = jax.jit(lambda omegas: _end(omegas, x, cond, "segments"))
    omegas = jnp.linspace(0.2, 1.5, 8)
    _compare_with_differences(f, omegas, _end_gradient(omegas, x, cond, "segments")[0])


def _compare_with_differences(f, omegas, gradient, h=1e-5):
    """Central differences: error of order h^2, rounding of order eps/h."""
    for i in (0, 3, 7):
        shift = h * jnp.eye(8)[i]
        difference = (f(omegas + shift) - f(omegas - shift)) / (2 * h)
        assert float(gradient[i]) == pytest.approx(float(difference), rel=1e-5, abs=1e-9)


@pytest.mark.key_reuse  # recomputation draws the same noise again, on purpose
def test_loss_gradient_against_finite_differences(x64):
    """The whole objective, path terms and features included."""
    real = _real()

    def loss(omegas):
        weight, settings = weights.table(GRID, omegas), Rollout(3, segments=4, path_weight=0.5, features=jnp.tanh)
        return rollout_loss(jax.random.key(0), MODEL, weight, churned_ddim(0.5), GRID, real, jnp.arange(2), settings)

    omegas = jnp.linspace(0.2, 1.5, 8)
    _compare_with_differences(jax.jit(loss), omegas, jax.jit(jax.grad(loss))(omegas))


# ---- memory


def _wide(x, t, cond):
    """A denoiser whose activations are much larger than its state: four layers of width 512 on two coordinates."""
    widths = [2, 512, 512, 512, 2]
    rng = np.random.default_rng(0)
    h = x
    for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True):
        h = jnp.tanh(h @ jnp.asarray(rng.normal(size=(fan_in, fan_out)) / fan_in**0.5, jnp.float32) + t[:, None])
    return h + 0.1 * cond[:, None]


def _narrow(x, t, cond):
    """A denoiser without activations to speak of: the states themselves are what fills the memory."""
    return jnp.tanh(x) + cond[:, None]


def _memory(steps, segments, remat, denoise=_wide, dim=2):
    """Bytes of temporaries of the compiled gradient."""
    grid = uniform_grid(steps)

    def loss(omega, x):
        guide = guides.cfg(weights.constant(omega), 3, skip=False)
        cond = jnp.zeros(64, jnp.int32)
        arguments = jax.random.key(0), denoise, guide, ddim(), RF, grid, x, cond
        return jnp.mean(rollout(*arguments, segments=segments, remat=remat)[-1])

    compiled = jax.jit(jax.grad(loss)).lower(1.0, jnp.zeros((64, dim))).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_number_of_steps():
    """16 times the steps: with segments of sqrt(steps) under 20 % more memory, with all activations over 5 times."""
    assert _memory(256, 16, "segments") < 1.2 * _memory(16, 4, "segments")
    assert _memory(256, 16, "none") > 5 * _memory(16, 4, "none")


def test_states_grow_with_the_root_of_the_number_of_steps():
    """16 times the steps keep 16 times the states when every step keeps its own, 4 times with sqrt(steps) segments."""
    small, large = (_memory(steps, segments, "segments", _narrow, 512) for steps, segments in ((16, 4), (256, 16)))
    assert large < 4.5 * small
    assert _memory(256, 16, "steps", _narrow, 512) > 8 * _memory(16, 4, "steps", _narrow, 512)


# ---- expectations in closed form: one-dimensional Gaussians, DDIM


def _laws(grid, omega):
    """Mean and variance at every grid time of each class under guided DDIM, started from N(0, grid[0]^2)."""
    grid = np.asarray(grid, np.float64)
    laws = []
    for m in MEANS:
        mean, variance = 0.0, grid[0] ** 2
        path = [(mean, variance)]
        for t, s in zip(grid[:-1], grid[1:], strict=True):
            a, b, _ = (float(c) for c in transition(RF, t=jnp.asarray(t), s=jnp.asarray(s), churn=0.0))
            k_c, k_u = ((1 - t) * v / ((1 - t) ** 2 * v + t**2) for v in (VARIANCE, NULL_VARIANCE))
            slope = (1 + omega) * k_c - omega * k_u
            offset = (1 + omega) * (m - k_c * (1 - t) * m)
            mean, variance = (a + b * slope) * mean + b * offset, (a + b * slope) ** 2 * variance
            path.append((mean, variance))
        laws.append(path)
    return laws


def _folded(mean, sd):
    """E|Z| for Z ~ N(mean, sd^2)."""
    return sd * np.sqrt(2 / np.pi) * np.exp(-(mean**2) / (2 * sd**2)) + mean * (1 - 2 * stats.norm.cdf(-mean / sd))


def _expected(generated, true):
    """E|y - x| - E|y - y'|/2 for Gaussians (mean, variance)."""
    (m1, v1), (m2, v2) = generated, true
    return _folded(m1 - m2, (v1 + v2) ** 0.5) - 0.5 * _folded(0.0, (2 * v1) ** 0.5)


@functools.partial(jax.jit, static_argnames=("path_weight", "features", "detached"))
def _losses(omega, real_law, path_weight=0.0, features=None, detached=0):
    """2000 independent values of the loss with 3 particles and 4 true samples per class."""
    grid = uniform_grid(4)

    def one(key):
        real_key, key = jax.random.split(key)
        mean, variance = real_law
        real = mean[:, None, None] + jnp.sqrt(variance)[:, None, None] * jax.random.normal(real_key, (2, 4, 1))
        settings = Rollout(3, segments=2, path_weight=path_weight, features=features, detached=detached)
        return rollout_loss(key, MODEL, weights.constant(omega), ddim(), grid, real, jnp.arange(2), settings)

    return jax.vmap(one)(jax.random.split(jax.random.key(0), 2000))


def _agrees(values, expected):
    values = np.asarray(values, np.float64)
    return abs(values.mean() - expected) < 5 * oracles.standard_error(values)


def _law_arrays(law):
    return tuple(jnp.asarray(column, jnp.float32) for column in zip(*law, strict=True))


@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_loss_of_equal_laws_is_its_remainder(omega):
    """True samples drawn from the sampler's own law: the energy distance, loss + energy_offset, is 0 in the mean."""
    law = [path[-1] for path in _laws(uniform_grid(4), omega)]
    remainder = np.mean([0.5 * _folded(0.0, (2 * v) ** 0.5) for _, v in law])
    assert _agrees(_losses(omega, _law_arrays(law)), remainder)


@pytest.mark.parametrize("omega", [0.0, 1.0])
def test_loss_of_different_laws(omega):
    """True samples from the data: the closed form of E|y - x| - E|y - y'|/2, averaged over the classes."""
    true = [(m, VARIANCE) for m in MEANS]
    expected = np.mean(
        [_expected(path[-1], law) for path, law in zip(_laws(uniform_grid(4), omega), true, strict=True)]
    )
    assert _agrees(_losses(omega, _law_arrays(true)), expected)


def test_features_are_matched_at_the_end():
    """Features 3 x + 1 scale distances of order one by 3."""
    true = [(m, VARIANCE) for m in MEANS]
    plain = _losses(1.0, _law_arrays(true))
    scaled = _losses(1.0, _law_arrays(true), features=Partial(lambda x: 3 * x + 1))
    chex.assert_trees_all_close(scaled, 3 * plain, rtol=1e-4, atol=1e-4)


@pytest.mark.key_reuse  # the checker takes a vmapped lax.map over keys for a second use
@pytest.mark.parametrize(("detached", "inner"), [(0, 2), (2, 3)])
def test_path_term_compares_the_middle_of_the_path(detached, inner):
    """At the inner segment end t the generated law meets N((1 - t) m, (1 - t)^2 v + t^2), times path_weight.

    Two segments of four steps meet at t = 1/2, those of the last two at t = 1/4.
    """
    true, t = [(m, VARIANCE) for m in MEANS], 1 - inner / 4
    without, with_path = (
        np.asarray(_losses(1.0, _law_arrays(true), weight, detached=detached), np.float64) for weight in (0.0, 0.7)
    )
    middle = [((1 - t) * m, (1 - t) ** 2 * VARIANCE + t**2) for m in MEANS]
    laws = _laws(uniform_grid(4), 1.0)
    expected = 0.7 * np.mean([_expected(path[inner], law) for path, law in zip(laws, middle, strict=True)])
    assert _agrees(with_path - without, expected)


def test_each_condition_meets_its_own_data():
    """The classes are far apart: true samples exchanged between the conditions cost about their distance."""
    true = [(m, VARIANCE) for m in MEANS]
    right, wrong = _losses(0.0, _law_arrays(true)), _losses(0.0, _law_arrays(true[::-1]))
    assert 2.0 < float(jnp.mean(wrong - right)) < 3.5


def test_one_segment_needs_no_path_term():
    """The loss by hand from the sampler's states: no randomness enters but that of start and steps."""
    real, cond = _real(), jnp.arange(2)
    half, arguments = weights.constant(0.5), (ddim(), GRID, real, cond, Rollout(3))
    loss = jax.jit(lambda half: rollout_loss(jax.random.key(0), MODEL, half, *arguments))(half)
    start_key, step_key, _ = jax.random.split(jax.random.key(0), 3)
    x = initial_noise(start_key, RF, GRID, (1,), jnp.arange(6))
    arguments = (DENOISE, guides.cfg(half, NULL), ddim(), RF, GRID, x, jnp.repeat(cond, 3))
    y = jax.jit(sample)(step_key, *arguments).x0.reshape(2, 3, 1)
    chex.assert_trees_all_close(loss, grouped_mismatch(y, real, 1.0, 1.0), rtol=1e-5)

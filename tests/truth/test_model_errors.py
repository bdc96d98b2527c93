"""Model errors with a known cause: each is what its closed form says, and only the first is repaired by guidance."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules
from guidance.shapes import null_like
from guidance.truth import mixtures, model_errors
from tests import oracles
from tests.oracles import NAMES, example, points


@pytest.mark.parametrize("r", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_guidance_repairs_attenuation_exactly(name, r):
    with jax.enable_x64(True):
        mixture = example("diagonal")
        exact = mixtures.denoise(mixture, schedules.by_name(name))
        weak = model_errors.attenuated(exact, r, mixture.null)
        x, t, cond = points()
        cond = cond % 2
        null = null_like(cond, mixture.null)
        np.testing.assert_allclose(weak(x, t, null), exact(x, t, null), rtol=1e-12)
        d_c, d_u, omega = weak(x, t, cond), weak(x, t, null), r / (1 - r)
        np.testing.assert_allclose(d_c + omega * (d_c - d_u), exact(x, t, cond), rtol=1e-10, atol=1e-12)
        if r:
            assert np.abs(d_c - exact(x, t, cond)).max() > 0.01
        np.testing.assert_allclose(oracles.omega_attenuated(0.0, r), omega, rtol=1e-12)


def test_attenuation_of_a_continuous_condition():
    """HG, where the gap of the attenuated branches is (1 - r) times the true one."""
    exact = oracles.hg_denoise(schedules.by_name("rectified_flow"))
    x, cond = oracles.hg_sample(jax.random.key(0), 6)
    t, null = jnp.full(6, 0.5), null_like(cond, oracles.HG_NULL)
    weak = model_errors.attenuated(exact, 0.3, oracles.HG_NULL)
    gap = exact(x, t, cond) - exact(x, t, null)
    chex.assert_trees_all_close(weak(x, t, cond) - weak(x, t, null), 0.7 * gap, rtol=1e-4, atol=1e-5)


def test_sweep_over_attenuation_compiles_once():
    exact, (x, t, cond) = mixtures.denoise(example("full"), schedules.by_name("cosine")), points()
    call = jax.jit(chex.assert_max_traces(lambda d, *a: d(*a), n=1))
    outputs = [call(model_errors.attenuated(exact, r, 2), x, t, cond) for r in (0.1, 0.4)]
    assert np.abs(outputs[0] - outputs[1]).max() > 0.01
    slope = jax.grad(lambda r: model_errors.attenuated(exact, r, 2)(x, t, cond).sum())(0.1)
    np.testing.assert_allclose(slope, (outputs[1] - outputs[0]).sum() / 0.3, rtol=1e-4)


@pytest.mark.parametrize("form", ["isotropic", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_smoothed_is_the_denoiser_of_the_blurred_mixture(name, form):
    with jax.enable_x64(True):
        mixture, schedule, h = example(form), schedules.by_name(name), 0.6
        exact = mixtures.denoise(mixture, schedule)
        x, t, cond = points()
        t = t.at[0].set(0.0).at[1].set(1.0)
        blurred = mixtures.denoise(mixture._replace(variances=mixture.variances + h**2), schedule)
        actual = model_errors.smoothed(exact, schedule, h)(x, t, cond)
        # the inverse log-SNR near t = 1 costs digits: alpha there is down to .04 and 1 - t is formed from t
        np.testing.assert_allclose(actual, blurred(x, t, cond), rtol=1e-9, atol=1e-9)
        assert np.abs(actual - exact(x, t, cond)).max() > 0.05
        np.testing.assert_allclose(
            model_errors.smoothed(exact, schedule, 0.0)(x, t, cond), exact(x, t, cond), rtol=1e-9
        )
        once = model_errors.smoothed(exact, schedule, 0.5)
        np.testing.assert_allclose(
            model_errors.smoothed(once, schedule, 1.2)(x, t, cond),
            model_errors.smoothed(exact, schedule, 1.3)(x, t, cond),
            rtol=1e-9,
        )


@pytest.mark.parametrize("name", NAMES)
def test_smoothed_is_finite_at_both_ends_in_single_precision(name):
    mixture, schedule = example("isotropic"), schedules.by_name(name)
    exact, x = mixtures.denoise(mixture, schedule), points()[0]
    cond = jnp.arange(9) % 3

    def everything(x, t, h):
        out = model_errors.smoothed(exact, schedule, h)(x, t, cond)
        return out.sum(), (
            out,
            mixtures.denoise(mixture._replace(variances=mixture.variances + h**2), schedule)(x, t, cond),
        )

    everything = jax.jit(jax.grad(everything, (0, 2), has_aux=True))
    for time in (0.0, 1e-4, 0.5, 1 - 1e-6, 1.0):
        for h in (0.0, 0.5):
            gradients, (actual, blurred) = everything(x, jnp.full(9, time), h)
            chex.assert_tree_all_finite(gradients)
            # near t = 1 the inverse log-SNR has few digits left in float32, but there the state hardly matters
            chex.assert_trees_all_close(actual, blurred, rtol=1e-3, atol=1e-3)


def test_perturbed_keeps_the_joint_law_a_law():
    mixture = example("full")
    chex.assert_trees_all_close(model_errors.perturbed(jax.random.key(0), mixture), mixture, rtol=1e-6, atol=1e-6)
    wrong = model_errors.perturbed(jax.random.key(1), mixture, log_weight_scale=0.7)
    chex.assert_trees_all_close(wrong.means, mixture.means)
    assert np.abs(np.exp(wrong.log_weights) - np.exp(mixture.log_weights)).max() > 0.01
    np.testing.assert_allclose(np.exp(wrong.log_weights).sum(-1), np.ones(3), rtol=1e-5)
    np.testing.assert_allclose(np.exp(wrong.log_prior).sum(), 1.0, rtol=1e-5)
    average = np.exp(wrong.log_prior) @ np.exp(wrong.log_weights[:-1])
    np.testing.assert_allclose(average, np.exp(wrong.log_weights[-1]), rtol=1e-5)
    np.testing.assert_array_equal(np.isinf(wrong.log_weights), np.isinf(mixture.log_weights))


def test_perturbed_moves_the_means_by_their_scale():
    n = 400
    mixture = mixtures.from_classes([np.zeros((n, 5))], 1.0)
    moves = np.asarray(model_errors.perturbed(jax.random.key(1), mixture, mean_scale=0.3).means) / 0.3
    # the variance of n d unit normals has standard error sqrt(2/(n d)), their mean 1/sqrt(n d)
    assert abs(moves.var() - 1) < 5 * np.sqrt(2 / moves.size)
    assert abs(moves.mean()) < 5 / np.sqrt(moves.size)

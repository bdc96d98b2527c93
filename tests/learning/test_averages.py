"""The power-function averages: their profile, its width, and what they do to known sequences."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.learning import averages


@pytest.mark.parametrize("sigma_rel, published", [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_the_published_ones(sigma_rel, published):
    """arXiv 2312.02696, section 3.1: sigma_rel = 0.05 and 0.10 give gamma = 16.97 and 6.94."""
    assert averages.exponent(sigma_rel) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.25])
def test_the_profile_has_the_width_that_it_is_named_after(sigma_rel):
    tau = (np.arange(200_000) + 0.5) / 200_000
    weight = tau ** averages.exponent(sigma_rel)
    mean = np.average(tau, weights=weight)
    assert np.sqrt(np.average((tau - mean) ** 2, weights=weight)) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.0, 0.3, 12**-0.5])
def test_other_widths_are_refused(sigma_rel):
    with pytest.raises(ValueError, match="allowed"):
        averages.exponent(sigma_rel)


def _run(sequence, profiles):
    def one(state, value):
        return averages.update(state, {"w": value}, profiles), None

    start = averages.start({"w": jnp.float32(1e3)}, profiles)
    return jax.lax.scan(one, start, jnp.asarray(sequence, jnp.float32))[0]


def test_a_constant_stays_and_the_start_is_forgotten_at_once():
    out = _run(np.full(50, 2.5), (0.05, 0.1))
    chex.assert_trees_all_close(tuple(mean["w"] for mean in out.means), (2.5, 2.5), rtol=1e-6)
    assert int(out.count) == 50


def test_a_ramp_is_averaged_to_its_mean_under_the_profile():
    """theta_t = t: E tau under tau^gamma on [0, T] is T (gamma + 1) / (gamma + 2), up to the discretisation 1 / T."""
    profiles, n = (0.05, 0.1, 0.2), 4000
    out = _run(np.arange(1, n + 1), profiles)
    for mean, sigma_rel in zip(out.means, profiles, strict=True):
        gamma = averages.exponent(sigma_rel)
        assert float(mean["w"]) == pytest.approx(n * (gamma + 1) / (gamma + 2), rel=2 / n)

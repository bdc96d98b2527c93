"""Discrete timesteps and our time: equal signal-to-noise ratios, by the products of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules
from guidance.nets import timesteps

BETAS = timesteps.linear_betas()
TABLE = timesteps.log_snr_table(BETAS)
K = np.asarray([0, 1, 250, 500, 999])


def test_the_table_is_the_product_of_the_paper():
    assert (len(BETAS), BETAS[0], BETAS[-1]) == (1000, 1e-4, 0.02)
    alpha_bar = np.cumprod(1 - BETAS)
    np.testing.assert_allclose(TABLE, np.log(alpha_bar / (1 - alpha_bar)), rtol=1e-9)


@pytest.mark.parametrize("name", ["linear_vp", "cosine", "rectified_flow", "edm"])
def test_an_integer_timestep_comes_back_with_its_own_ratio(x64, name):
    schedule = schedules.by_name(name)
    t = timesteps.times(TABLE, schedule, K)
    np.testing.assert_allclose(timesteps.timestep(TABLE, schedule.log_snr(t)), K, atol=1e-6)
    alpha_bar = np.cumprod(1 - BETAS)[K]
    ratio = (schedule.alpha(t) / schedule.sigma(t)) ** 2
    np.testing.assert_allclose(ratio, alpha_bar / (1 - alpha_bar), rtol=1e-9)


def test_cosine_betas_are_those_of_the_paper():
    """Their products are cos^2(pi/2 (u + 0.008)/1.008) over its value at u = 0, u = (k + 1)/T; the last is cut."""
    betas = timesteps.cosine_betas(50)
    u = np.arange(1, 51) / 50
    f = np.cos(np.pi / 2 * (u + 0.008) / 1.008) ** 2 / np.cos(np.pi / 2 * 0.008 / 1.008) ** 2
    np.testing.assert_allclose(np.cumprod(1 - betas)[:-1], f[:-1], rtol=1e-9)
    assert len(betas) == 50 and betas[-1] == 0.999 and betas.max() == 0.999


def test_linear_vp_is_the_continuous_limit(x64):
    """-log alpha_bar_k = sum beta (1 + beta/2 + ..) and B((k + 1)/1000) = sum beta to within half a step: the time of
    k is (k + 1)/1000 to within a step or, as beta is at most 0.02, half a per cent."""
    k = np.arange(1000)
    t = timesteps.times(TABLE, schedules.linear_vp(), k)
    np.testing.assert_allclose(t, (k + 1) / 1000, atol=1.1e-3, rtol=5e-3)
    assert bool(jnp.all(jnp.diff(t) > 0))


def test_between_and_beyond_the_timesteps():
    middle = (TABLE[10] + TABLE[11]) / 2
    log_snr = jnp.asarray([middle, TABLE[0] + 5, TABLE[-1] - 5, 80.0, -80.0])
    np.testing.assert_allclose(
        jax.jit(lambda a: timesteps.timestep(TABLE, a))(log_snr), [10.5, 0, 999, 0, 999], atol=1e-4
    )

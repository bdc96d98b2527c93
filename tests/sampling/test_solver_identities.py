"""DPM-Solver++ where its answer is known to rounding: predictions that are linear in lambda = log(alpha/sigma).

The second-order members replace D by a constant over a step, its value half-way in lambda: with
h = lambda_s - lambda_t,

    x_s = (sigma_s/sigma_t) e^(-eta h) x_t + alpha_s (1 - e^(-(1 + eta) h)) D(lambda_t + h/2) + noise

for D linear in lambda, on grids of any spacing (orders of convergence do not see h and h_prev exchanged: on a smooth
grid their ratio tends to 1).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, sampling, schedules
from tests.samplers import driven

VP = schedules.cosine()
GRID = np.array([0.9, 0.83, 0.6, 0.55, 0.2, 0.12])  # steps of very different lengths in lambda
SLOPE, OFFSET, START = np.array([0.7, -1.2]), np.array([0.3, 2.0]), np.array([1.1, -0.4])


def line(x, t, cond):
    """D = offset + slope lambda(t)."""
    del cond
    lam = jnp.log(VP.alpha(t) / VP.sigma(t))
    return jnp.asarray(OFFSET)[None] + jnp.asarray(SLOPE)[None] * lam[:, None] + 0 * x


def path_by_midpoints(eta, first_order_start):
    alpha, sigma = np.cos(np.pi / 2 * GRID), np.sin(np.pi / 2 * GRID)
    lam = np.log(alpha / sigma)
    x, path = START, [START]
    for i in range(len(GRID) - 1):
        h = lam[i + 1] - lam[i]
        place = lam[i] if first_order_start and i == 0 else lam[i] + h / 2
        prediction = OFFSET + SLOPE * place
        x = sigma[i + 1] / sigma[i] * np.exp(-eta * h) * x
        x = x + alpha[i + 1] * (1 - np.exp(-(1 + eta) * h)) * prediction
        path.append(x)
    return np.stack(path)


@pytest.mark.parametrize(
    "solver, eta, first_order_start",
    [
        (sampling.dpmpp_2m(), 0.0, True),
        (sampling.dpmpp_2m_sde(1.0), 1.0, True),
        (sampling.dpmpp_2m_sde(0.4), 0.4, True),
        (sampling.dpmpp_2s(), 0.0, False),
        (sampling.dpmpp_2s(0.8), 0.0, False),
        (sampling.dpmpp_2s_sde(1.0, 0.3), 1.0, False),
    ],
    ids=["2m", "2m_sde", "2m_sde_0.4", "2s", "2s_0.8", "2s_sde"],
)
def test_a_line_in_lambda_is_replaced_by_its_middle(solver, eta, first_order_start, x64):
    quiet = jnp.zeros((len(GRID) - 1, 2, 1, 2))
    run = jax.jit(lambda x: driven(solver, Partial(line), guides.unguided(), VP, jnp.asarray(GRID), x, None, quiet))
    path = run(jnp.asarray(START)[None])[:, 0]
    np.testing.assert_allclose(path, path_by_midpoints(eta, first_order_start), rtol=1e-9)


@pytest.mark.parametrize(
    "gamma, s_noise, noise_min, noise_max, raised",
    [
        (0.2, 1.0, 0.0, np.inf, 1.2),
        (0.2, 0.7, 0.0, np.inf, 1.2),
        (5.0, 1.0, 0.0, np.inf, 2**0.5),
        (0.2, 1.0, 1.1, np.inf, 1.0),
        (0.2, 1.0, 0.0, 0.9, 1.0),
    ],
)
def test_the_noise_level_is_raised_by_the_factor_that_was_asked_for(gamma, s_noise, noise_min, noise_max, raised, x64):
    """From rho = sigma/alpha = 1 where D = 0: y_s = (rho_s/rho') (y + S_noise sqrt(rho'^2 - rho^2) z), y = x/alpha.

    rho' = (1 + gamma) rho, gamma at most sqrt(2) - 1 (arXiv 2206.00364, algorithm 2). Marginals and orders do not see
    the factor: they are kept at any.
    """
    grid, z = jnp.asarray([0.5, 0.25]), np.array([0.6, -1.3])
    alpha, rho_s = np.cos(np.pi / 8), np.tan(np.pi / 8)
    noise = jnp.asarray(np.broadcast_to(z, (1, 2, 1, 2)))
    nothing = Partial(lambda x, t, cond: 0 * x)
    solver = sampling.edm_stochastic(gamma, s_noise, noise_min, noise_max)
    path = driven(solver, nothing, guides.unguided(), VP, grid, jnp.asarray(START)[None], None, noise)
    y = START / np.cos(np.pi / 4) + s_noise * np.sqrt(raised**2 - 1) * z
    np.testing.assert_allclose(path[-1, 0], alpha * rho_s / raised * y, rtol=1e-9)

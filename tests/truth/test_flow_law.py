"""The exact law of the constant-omega CFG flow on CFG1D, in float64: CFG does not sample the tilted law.

    q_omega(x) ~ p_c(x)^(1+omega) p_u(x)^(-omega) exp(-omega (1+omega)/2 int |s_c - s_u|^2(X_tau) dtau),   tau = rho^2

where X_tau is the guided ODE dX/dtau = -s_omega/2 from x back to noise. The density of the flow itself comes from the
change of variables, log q(x) = log q_T(X_T) + int div(dX/dtau) dtau, with the score taken from the library's guide.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import guides, predictions, schedules, weights
from guidance.truth import mixtures
from tests import oracles

EDM = schedules.edm()
LOW, HIGH, STEPS = 0.01, 1e4, 600
X = np.linspace(0.3, 4.2, 1201)

# FLOW-2, 3, 4: L1 with an N(0, T) start; (mean, var) of the flow and of the tilt at tau = .01, and the L1 between them
VALUES = {
    0.5: (0.0239, (2.20048, 0.18632), (2.00099, 0.32855), 0.4384),
    1.0: (0.0319, (2.32734, 0.09640), (2.00160, 0.31396), 0.7901),
    2.0: (0.0478, (2.45505, 0.01544), (2.00260, 0.30292), 1.2552),
}


def _time(tau, x):
    return jnp.broadcast_to(EDM.time(-jnp.log(tau)), x.shape)


def _log_tilt(x, tau, omega):
    """log p_c^(1+omega) p_u^(-omega), not normalised, at noise level sqrt(tau)."""
    at = lambda label: mixtures.log_density(  # noqa: E731
        oracles.cfg_1d(), EDM, x[:, None], _time(tau, x), jnp.full(x.shape, label)
    )
    return (1 + omega) * at(0) - omega * at(2)


def _guided_score(x, tau, omega):
    mixture = oracles.cfg_1d()
    guide, t = guides.cfg(weights.constant(omega), mixture.null, skip=False), _time(tau, x)
    apply = functools.partial(guide.apply, (), mixtures.denoise(mixture, EDM), EDM)
    x0 = apply(x[:, None], t=t, s=t, cond=jnp.zeros(x.shape, int))[1].x0
    return predictions.x0_to("score", EDM, x[:, None], x0, t)[:, 0]


def _squared_gap(x, tau):
    score = lambda label: mixtures.score(  # noqa: E731
        oracles.cfg_1d(), EDM, x[:, None], _time(tau, x), jnp.full(x.shape, label)
    )
    return (score(0) - score(2))[:, 0] ** 2


@jax.jit
def _backwards(x, omega):
    """(X_T, int div dtau, int |gap|^2 dtau) from tau = LOW to HIGH: Runge-Kutta 4 in log tau."""

    def slope(state, u):
        tau = jnp.exp(u)
        score, divergence = jax.jvp(lambda x: _guided_score(x, tau, omega), (state[0],), (jnp.ones_like(x),))
        return tau * jnp.stack([-0.5 * score, -0.5 * divergence, _squared_gap(state[0], tau)])

    h = (np.log(HIGH) - np.log(LOW)) / STEPS

    def body(state, u):
        a = slope(state, u)
        b = slope(state + h / 2 * a, u + h / 2)
        c = slope(state + h / 2 * b, u + h / 2)
        d = slope(state + h * c, u + h)
        return state + h / 6 * (a + 2 * b + 2 * c + d), None

    start = jnp.stack([x, jnp.zeros_like(x), jnp.zeros_like(x)])
    return jax.lax.scan(body, start, np.log(LOW) + h * jnp.arange(STEPS))[0]


def _normalised(log_density):
    density = np.exp(log_density - np.max(log_density))
    return density / np.trapezoid(density, X)


def _moments(density):
    mean = np.trapezoid(X * density, X)
    return mean, np.trapezoid((X - mean) ** 2 * density, X)


def _densities(omega):
    """Of the flow matched to the tilt at the noise end, of the flow from N(0, T), of the formula, of the tilt."""
    x = jnp.asarray(X)
    end, divergence, gap = _backwards(x, omega)
    tilt = _log_tilt(x, LOW, omega)
    logs = (
        _log_tilt(end, HIGH, omega) + divergence,
        -(end**2) / (2 * HIGH) + divergence,
        tilt - 0.5 * omega * (1 + omega) * gap,
        tilt,
    )
    return [_normalised(np.asarray(log)) for log in logs]


def _l1(a, b):
    return np.trapezoid(np.abs(a - b), X)


@pytest.mark.parametrize("omega", VALUES)
def test_flow_1_to_4_the_law_of_the_cfg_flow(omega, x64):
    flow, from_noise, formula, tilt = _densities(omega)
    off, flow_moments, tilt_moments, apart = VALUES[omega]
    assert _l1(flow, formula) < 1e-6
    assert _l1(from_noise, formula) == pytest.approx(off, abs=1e-3)
    np.testing.assert_allclose(_moments(flow), flow_moments, atol=1e-4)
    np.testing.assert_allclose(_moments(tilt), tilt_moments, atol=1e-4)
    assert _l1(flow, tilt) == pytest.approx(apart, abs=1e-4)


def test_flow_5_the_tilted_density_of_the_data(x64):
    np.testing.assert_allclose(
        _moments(_normalised(np.asarray(_log_tilt(jnp.asarray(X), 0.0, 2.0)))), (2.00236, 0.30221), atol=1e-4
    )

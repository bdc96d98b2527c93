"""The exact flow map of a one-dimensional mixture: quantiles, the ODE itself, and published look-ahead values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from guidance import schedules
from guidance.truth import flow_1d, mixtures, tilts
from tests import oracles
from tests.oracles import NAMES

flow_map = jax.jit(flow_1d.flow_map)


def labels(x, label=0):
    return jnp.full(x.shape[:1], label)


@jax.jit
def velocity(mixture, schedule, x, t, cond):
    """d x / d t of the probability flow: (alpha'/alpha) x + (alpha' sigma/alpha - sigma') sigma score."""
    a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    rate = schedule.alpha_dot(t)[:, None] / a
    drift = (rate * s - schedule.sigma_dot(t)[:, None]) * s
    return rate * x + drift * mixtures.score(mixture, schedule, x, t, cond)


@pytest.mark.parametrize("name", NAMES)
def test_flow_map_matches_quantiles_and_solves_the_ode(name):
    with jax.enable_x64(True):
        mixture, schedule = oracles.tilt_prior(), schedules.by_name(name)
        t, s = (schedule.time(jnp.full(41, v)) for v in (-1.0, 1.5))
        means, variances = np.asarray(mixture.means[:, 0]), np.asarray(mixture.variances[:, 0])
        weights = np.exp(mixture.log_weights[0])
        a, sigma = float(schedule.alpha(t[0])), float(schedule.sigma(t[0]))
        x = a * jnp.linspace(-3, 3, 41)[:, None] + 0.3 * sigma
        y = flow_map(mixture, schedule, x, t=t, s=s, cond=labels(x))

        def cdf(x, time):
            a, s = float(schedule.alpha(time)[0]), float(schedule.sigma(time)[0])
            return scipy.special.ndtr((np.asarray(x) - a * means) / np.sqrt(a**2 * variances + s**2)) @ weights

        np.testing.assert_allclose(cdf(y, s), cdf(x, t), rtol=1e-9, atol=1e-14)
        # d X / d s = v(X, s);  d X / d t = -v(x, t) d X / d x
        slopes = jax.jit(
            jax.grad(
                lambda x_t, t, s: flow_1d.flow_map(mixture, schedule, x_t, t=t, s=s, cond=labels(x)).sum(),
                (0, 1, 2),
            )
        )
        along_x, along_t, along_s = slopes(x, t, s)
        v_start, v_end = (velocity(mixture, schedule, *at, labels(x))[:, 0] for at in ((x, t), (y, s)))
        np.testing.assert_allclose(along_s, v_end, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(along_t, -along_x[:, 0] * v_start, rtol=1e-7, atol=1e-9)
        # there and back, and in two steps
        np.testing.assert_allclose(flow_map(mixture, schedule, y, t=s, s=t, cond=labels(x)), x, rtol=1e-9, atol=1e-9)
        middle = schedule.time(jnp.zeros(41))
        halfway = flow_map(mixture, schedule, x, t=t, s=middle, cond=labels(x))
        np.testing.assert_allclose(
            flow_map(mixture, schedule, halfway, t=middle, s=s, cond=labels(x)), y, rtol=1e-9, atol=1e-9
        )


def test_one_gaussian_flows_affinely_far_into_the_tails():
    """CMD-1 as well: ((sqrt(s0^2 + rho^2) - s0)/rho)^2 = (X - D)^2 / (posterior variance), averaged over x."""
    for double in (True, False):
        with jax.enable_x64(double):
            gaussian, schedule = mixtures.from_classes([[[0.0]]], 0.25), schedules.by_name("edm")
            rho = jnp.array([0.1, 1.0, 20.0])
            t, total = schedule.time(-2 * jnp.log(rho)), jnp.sqrt(0.25 + rho**2)
            tolerance = 1e-10 if double else 1e-5
            for z in (-60.0, -3.0, 0.5, 8.0, 60.0):
                x = (z * total)[:, None]
                end = flow_map(gaussian, schedule, x, t=t, s=jnp.zeros(3), cond=labels(x))
                np.testing.assert_allclose(end[:, 0], np.full(3, 0.5 * z), rtol=tolerance)
            x = total[:, None]
            gap = flow_map(gaussian, schedule, x, t=t, s=jnp.zeros(3), cond=labels(x))
            gap = gap - jax.jit(mixtures.denoise(gaussian, schedule))(x, t, labels(x))
            posterior_variance = 0.25 * rho**2 / total**2
            np.testing.assert_allclose(gap[:, 0] ** 2 / posterior_variance, [0.009805, 0.381966, 0.951234], atol=1e-5)


def test_flow_between_far_modes_in_single_precision():
    """In the gap of modes 60 sigma apart F is flat to e^-450; the map must follow the ODE there (RK4 in float64)."""
    mean, start, stop, count = 30.0, 0.3, 0.0, 4000

    def v(x, t):
        a, spread = 1 - t, (1 - t) ** 2 + t**2
        share = scipy.special.expit(2 * a * mean * x / spread)
        x0 = (2 * share - 1) * mean + a / spread * (x - a * (2 * share - 1) * mean)
        return (x - x0) / t

    x = np.array([-12.0, -2.0, 0.05, 0.4, 3.0, 25.0])
    # (x - D)/t is regular at 0: stop one part in 1e6 before it.
    times = np.linspace(start, 1e-6, count + 1)
    y = x.copy()
    for t, s in zip(times[:-1], times[1:], strict=True):
        h = s - t
        k1 = v(y, t)
        k2 = v(y + h / 2 * k1, t + h / 2)
        k3 = v(y + h / 2 * k2, t + h / 2)
        k4 = v(y + h * k3, s)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    mixture, schedule = mixtures.from_classes([[[-mean], [mean]]], 1.0), schedules.by_name("rectified_flow")
    state = jnp.asarray(x, jnp.float32)[:, None]
    at = {"t": jnp.full(len(x), start), "s": jnp.full(len(x), stop), "cond": labels(x)}
    end = flow_map(mixture, schedule, state, **at)
    assert end.dtype == jnp.float32
    # log tails of size 450 carry 450 eps, which the slope (about 30) of the log tail turns into an error of y.
    np.testing.assert_allclose(end[:, 0], y, rtol=3e-5, atol=1e-4)
    slope = jax.grad(lambda x: flow_map(mixture, schedule, x, **at).sum())(state)
    assert np.isfinite(slope).all() and (slope > 0).all()


def test_derivatives_in_the_state_and_the_mixture():
    """First and second derivative in x and the first in means, against central differences of step 1e-4."""
    with jax.enable_x64(True):
        mixture, schedule, h = oracles.tilt_prior(), schedules.by_name("cosine"), 1e-4
        at = {"t": jnp.array([0.6]), "s": jnp.array([0.0]), "cond": jnp.zeros(1, jnp.int32)}

        @jax.jit
        def end(x):
            return flow_map(mixture, schedule, jnp.reshape(x, (1, 1)), **at)[0, 0]

        @jax.jit
        def moved(shift):
            shifted = mixture._replace(means=mixture.means + shift * jnp.array([[1.0], [-0.5]]))
            return flow_map(shifted, schedule, jnp.full((1, 1), 0.2), **at)[0, 0]

        for x in (-0.7, 0.2, 1.1):
            np.testing.assert_allclose(jax.grad(end)(x), (end(x + h) - end(x - h)) / (2 * h), rtol=1e-5)
            second = (end(x + h) - 2 * end(x) + end(x - h)) / h**2
            np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(end)))(x), second, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(jax.grad(moved)(0.0), (moved(h) - moved(-h)) / (2 * h), rtol=1e-5)


def test_look_ahead_identity():
    """FMT-1: -d_t r_t - v d_x r_t = r(X_{t,0}) for r_t = (1 - t) r(X_{t,0}); here with exact derivatives."""
    with jax.enable_x64(True):
        mixture, schedule, reward = oracles.tilt_prior(), schedules.by_name("rectified_flow"), oracles.tilt_reward()
        x = jnp.linspace(-2, 2, 9)[:, None]

        @jax.jit
        def look_ahead(x, t):
            return (1 - t) * reward(flow_map(mixture, schedule, x, t=t, s=jnp.zeros_like(t), cond=labels(x)))

        for time in (0.7, 0.4, 0.1):
            t = jnp.full(9, time)
            v = velocity(mixture, schedule, x, t, labels(x))
            _, change = jax.jvp(look_ahead, (x, t), (v, jnp.ones_like(t)))
            np.testing.assert_allclose(-change, look_ahead(x, t) / (1 - t), rtol=1e-6, atol=1e-8)


def test_flow_endpoint_is_not_a_posterior_sample():
    """CMD-2, CMD-3: TILT at rho = 2, by quadrature over the EDM state."""
    with jax.enable_x64(True):
        mixture, schedule, reward = oracles.tilt_prior(), schedules.by_name("edm"), oracles.tilt_reward()
        x = jnp.linspace(-18, 18, 8001)[:, None]
        t, cond = jnp.full(len(x), schedule.time(-2 * jnp.log(2.0))), labels(x)
        p = np.exp(mixtures.log_density(mixture, schedule, x, t, cond))
        p = p / p.sum()
        end = flow_map(mixture, schedule, x, t=t, s=jnp.zeros_like(t), cond=cond)
        x0 = jax.jit(mixtures.denoise(mixture, schedule))(x, t, cond)
        value = np.asarray(jax.jit(lambda x: tilts.soft_value(mixture, schedule, reward, 1.0, x, t, cond))(x))
        for state, variance, mean_exp, rmse in ((end, 3.0940, 1.8119, 1.768), (x0, 1.4558, 1.0869, 1.150)):
            state, r = np.asarray(state[:, 0]), np.asarray(reward(state))
            np.testing.assert_allclose(p @ state**2 - (p @ state) ** 2, variance, atol=5e-4)
            np.testing.assert_allclose(p @ np.exp(r), mean_exp, atol=5e-4)
            np.testing.assert_allclose(np.sqrt(p @ (r - value) ** 2), rmse, atol=2e-3)
        np.testing.assert_allclose(p @ np.exp(value), oracles.TILT["z"], atol=5e-4)


def test_tilted_mean_through_the_noise():
    """NOI-1: the noise law tilted by e^{r(X_{1,0}(z))} maps to the tilted data."""
    with jax.enable_x64(True):
        schedule, z = schedules.by_name("rectified_flow"), jnp.linspace(-9, 9, 20_001)[:, None]
        end = flow_map(oracles.tilt_prior(), schedule, z, t=jnp.ones(len(z)), s=jnp.zeros(len(z)), cond=labels(z))
        weight = np.exp(-0.5 * np.asarray(z[:, 0]) ** 2 + np.asarray(oracles.tilt_reward()(end)))
        # the map all but jumps between the modes, so the rule is of first order there: step 1e-3 times a jump of 3
        np.testing.assert_allclose(weight @ np.asarray(end[:, 0]) / weight.sum(), oracles.TILT["mean"], atol=3e-4)


def test_transforms_labels_and_dtype():
    mixture, schedule = oracles.cfg_1d(), schedules.by_name("edm")
    x, cond = jnp.linspace(-3, 4, 6)[:, None], jnp.array([0, 1, 2, 0, 1, 2])
    t, s = schedule.time(jnp.linspace(-2, 0, 6)), jnp.zeros(6)
    batch = flow_map(mixture, schedule, x, t=t, s=s, cond=cond)
    assert batch.dtype == x.dtype and batch.shape == x.shape
    one = jax.vmap(lambda x, t, s, c: flow_map(mixture, schedule, x[None], t=t[None], s=s[None], cond=c[None])[0])
    np.testing.assert_allclose(one(x, t, s, cond), batch, rtol=1e-5)
    np.testing.assert_allclose(flow_1d.flow_map(mixture, schedule, x, t=t, s=s, cond=cond), batch, rtol=1e-5)
    np.testing.assert_allclose(flow_map(mixture, schedule, x, t=t, s=t, cond=cond), x, rtol=1e-5, atol=1e-6)
    # Labels matter, and the null condition is the second "class" of this pair.
    null = flow_map(mixture, schedule, x, t=t, s=s, cond=labels(x, 2))
    np.testing.assert_array_equal(null, flow_map(mixture, schedule, x, t=t, s=s, cond=labels(x, 1)))
    assert (np.abs(null - flow_map(mixture, schedule, x, t=t, s=s, cond=labels(x, 0))) > 1e-3).all()


def test_only_on_the_line():
    with pytest.raises(ValueError, match="dimension 2"):
        flow_map(
            oracles.toy2(),
            schedules.by_name("edm"),
            jnp.zeros((1, 2)),
            t=jnp.ones(1),
            s=jnp.zeros(1),
            cond=jnp.zeros(1, int),
        )

"""CFG as predictor-corrector on PC1D: p = N(0, 2), p_c = N(0, 1), where steps are linear and variances known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, predictions, sampling, schedules, steering, weights
from guidance.shapes import like, normal_like
from guidance.truth import mixtures

EDM = schedules.edm()


def pc_1d():
    """Label 0: N(0, 1); label 2, the null: N(0, 2), given by its own 'class'."""
    return mixtures.from_classes([[[0.0]], [[0.0]]], [1.0, 2.0], class_prior=(0, 1))


# PCG-1: variance at 0 of the power density, the CFG-SDE, the CFG-ODE
VARIANCES = {0.0: (1, 1, 1), 0.5: (0.8, 0.75, 0.70710678), 2.0: (0.5, 0.3875, 0.25), 6.0: (0.25, 0.15382737, 0.015625)}


def _precision(tau, omega):
    """-d score/d x of CFG at rho^2 = tau, from the library's guide and the exact denoiser; tau [n]."""
    mixture = pc_1d()
    guide, t = guides.cfg(weights.constant(omega), mixture.null, skip=False), EDM.time(-jnp.log(tau))
    x, labels = jnp.ones((tau.shape[0], 1)), jnp.zeros(tau.shape[0], int)
    x0 = guide.apply((), mixtures.denoise(mixture, EDM), EDM, x, t=t, s=t, cond=labels)[1].x0
    return -predictions.x0_to("score", EDM, x, x0, t)[:, 0]


@pytest.mark.parametrize("omega", VARIANCES)
def test_pcg_1_power_density_sde_and_ode_have_different_variances(omega, x64):
    """d V/d tau = 2 a V - 1 (SDE) and a V (ODE), a the precision of the CFG score, by Runge-Kutta in log tau.

    Formulas: power density 2/(omega + 2), SDE (2 - 2^(-2 omega))/(1 + 2 omega), ODE 2^(-omega).
    """

    def slope(state, u):
        tau = jnp.exp(u)
        a = _precision(tau[None], omega)[0]
        return tau * jnp.stack([2 * a * state[0] - 1, a * state[1]])

    def body(state, u):
        a = slope(state, u)
        b = slope(state - h / 2 * a, u - h / 2)
        c = slope(state - h / 2 * b, u - h / 2)
        d = slope(state - h * c, u - h)
        return state - h / 6 * (a + 2 * b + 2 * c + d), None

    top, bottom, steps = np.log(1e10), np.log(1e-10), 3000
    h = (top - bottom) / steps
    start = jnp.full(2, np.exp(top))  # V = tau + O(1) for pure noise, which the flow forgets
    ends = jax.jit(lambda start: jax.lax.scan(body, start, top - h * jnp.arange(steps))[0])(start)
    power, sde, ode = VARIANCES[omega]
    assert 1 / float(_precision(jnp.asarray([1e-7]), omega)[0]) == pytest.approx(power, abs=1e-6)
    np.testing.assert_allclose(ends, [sde, ode], atol=1e-8)


def _euler(keys, x, guided, *, t, s, schedule):
    """Euler in rho^2 for the probability flow, the discretisation of the published recursion."""
    rho2 = lambda time: jnp.exp(-schedule.log_snr(time))  # noqa: E731
    return x + like(0.5 * (rho2(t) - rho2(s)) / rho2(t), x) * (guided.x0 - x)


def _variance(step, tau, start):
    """The variance after all steps, each of which is x -> a x + b z: one call for all steps, at x = 0 and x = 1."""
    mixture = pc_1d()
    denoise, weight = mixtures.denoise(mixture, EDM), weights.constant(6.0)
    t, s = EDM.time(-jnp.log(tau[:-1])), EDM.time(-jnp.log(tau[1:]))
    keys, labels = jax.random.split(jax.random.key(0), t.shape[0]), jnp.zeros(t.shape, int)

    @jax.jit
    def end(x):
        x = steering.predict(keys, denoise, step, EDM, x, t=t, s=s, cond=labels)
        return steering.correct(keys, denoise, weight, mixture.null, EDM, x, t=t, s=s, cond=labels)[:, 0]

    moved = end(jnp.zeros((t.shape[0], 1)))
    gain = end(jnp.ones((t.shape[0], 1))) - moved
    noise = moved / normal_like(keys, moved[:, None])[:, 0]
    for a, b in zip(np.asarray(gain), np.asarray(noise), strict=True):
        start = a**2 * start + b**2
    return start


# steps: (CFG-SDE, predictor and corrector at weight 2 omega)
RECURSIONS = {200: (0.157518, 0.155704), 2000: (0.154212, 0.154030), 20000: (0.153886, 0.153868)}


@pytest.mark.key_reuse
@pytest.mark.parametrize("steps", RECURSIONS)
def test_pcg_2_predictor_and_corrector_are_the_cfg_sde_in_the_limit(steps, x64):
    """rho^2 from 400 to 1e-4 in log steps, start variance 400; the limit of both is 0.153827."""
    tau = jnp.geomspace(400.0, 1e-4, steps + 1)
    precision, dt = np.asarray(_precision(tau[:-1], 6.0)), -np.diff(tau)
    sde = 400.0
    for a, d in zip(precision, dt, strict=True):
        sde = (1 - d * a) ** 2 * sde + d
    expected_sde, expected = RECURSIONS[steps]
    assert sde == pytest.approx(expected_sde, abs=1e-6)
    assert _variance(Partial(_euler), tau, 400.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.key_reuse
def test_the_ddim_predictor_has_the_same_limit_at_first_order(x64):
    errors = [
        abs(_variance(sampling.ddim(), jnp.geomspace(400.0, 1e-4, k + 1), 400.0) - 0.15382737) for k in (1000, 2000)
    ]
    assert errors[1] < 5e-4 and errors[0] / errors[1] == pytest.approx(2, abs=0.2)


@pytest.mark.key_reuse
def test_langevin_is_its_formula_and_stands_still_at_size_zero():
    keys, x = jax.random.split(jax.random.key(0), 2), jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    size = jnp.asarray([0.25, 0.0])
    slope = jax.grad(lambda size: jnp.sum(steering.langevin(keys, x, -x, size)))(size)
    assert np.all(np.isfinite(slope))
    z = normal_like(keys, x)
    expected = jnp.stack([x[0] - 0.125 * x[0] + 0.5 * z[0], x[1]])
    np.testing.assert_allclose(steering.langevin(keys, x, -x, size), expected, rtol=1e-6)


def _sample(schedule, corrections, omega=2.0, steps=50, n=4000, size=1.0):
    mixture = pc_1d()
    grid, labels = sampling.uniform_grid(steps), jnp.zeros(n, jnp.int32)
    x = sampling.initial_noise(jax.random.key(0), schedule, grid, (1,), jnp.arange(n))
    run = jax.jit(
        lambda x: steering.predictor_corrector(
            jax.random.key(1), mixtures.denoise(mixture, schedule), weights.constant(omega), mixture.null,
            schedule, grid, x, labels, corrections=corrections, size=size,
        )
    )  # fmt: skip
    return run(x), x


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_sampling_on_every_schedule(name):
    """Finite from pure noise to data, counted, and between the power density at 2 omega (1/3) and the data (1)."""
    out, _ = _sample(schedules.by_name(name), 1)
    assert {branch: int(n) for branch, n in out.nfe.items()} == {"positive": 100, "reference": 50}
    assert 1 / 3 < float(out.x0.var()) < 0.6


def test_no_correction_is_unguided_sampling():
    schedule = schedules.rectified_flow()
    out, x = _sample(schedule, 0, n=64)
    mixture, grid = pc_1d(), sampling.uniform_grid(50)
    plain = sampling.sample(
        jax.random.key(1), mixtures.denoise(mixture, schedule), guides.unguided(), sampling.ddim(), schedule, grid, x,
        jnp.zeros(64, jnp.int32),
    )  # fmt: skip
    np.testing.assert_allclose(out.x0, plain.x0, rtol=1e-4, atol=1e-5)
    assert {branch: int(n) for branch, n in out.nfe.items()} == {"positive": 50, "reference": 0}


def test_many_corrections_reach_the_power_density():
    """Weight 2 omega = 4 at the last noise level before data: variance 2/(4 + 2), up to discretisation."""
    out, _ = _sample(schedules.rectified_flow(), 8, steps=100)
    assert float(out.x0.var()) == pytest.approx(1 / 3, abs=0.06)

"""One battery over all samplers and schedules, and what a solver owes its guide: order, noise and honest counts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, sampling, schedules, weights
from guidance.learning.rollout import rollout
from guidance.schedules import SCHEDULES
from guidance.types import Guide, Guided
from tests.samplers import DETERMINISTIC, SOLVERS, STOCHASTIC, paired, unasked
from tests.tracing import counted

RF = schedules.rectified_flow()
MEANS, NULL = jnp.asarray([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0], [0.0, 0.0]]), 4
STEPS = 4
GRID = sampling.uniform_grid(STEPS)  # 1, .75, .5, .25, 0
COND = jnp.asarray([0, 1, 3])
TWICE = ("heun", "edm", "edm_stochastic", "dpmpp_2s", "dpmpp_2s_sde")
every_solver = pytest.mark.parametrize("name", list(SOLVERS))


def _gaussian(schedule, x, t, cond):
    """Four classes N(mean, I/4); the null label as N(0, 4.25 I): cheap to compile."""
    alpha, sigma, mean = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None], MEANS[cond]
    variance = jnp.where(cond == NULL, 4.25, 0.25)[:, None]
    return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)


def _start(schedule, grid=GRID, seed=1):
    return sampling.initial_noise(jax.random.key(seed), schedule, grid, (2,), jnp.arange(3))


def _sampled(solver, schedule, grid, omega, x, cond):
    guide = guides.cfg(weights.constant(omega), NULL)
    return sampling.sample(jax.random.key(2), Partial(_gaussian, schedule), guide, solver, schedule, grid, x, cond)


@jax.jit
def _sampled_with_gradient(solver, schedule, grid, omega, x, cond):
    """The samples, the evaluations, and the gradient of a bounded function of the samples."""

    def total(omega, x):
        out = _sampled(solver, schedule, grid, omega, x, cond)
        return jnp.sum(jnp.sin(out.x0)), out

    (_, out), gradient = jax.value_and_grad(total, (0, 1), has_aux=True)(omega, x)
    return out, gradient


@jax.jit
def _sampled_with_tangent(solver, schedule, grid, omega, x, cond):
    """The same for samplers with a while loop, which have forward derivatives only."""
    run = lambda omega, x: _sampled(solver, schedule, grid, omega, x, cond).x0  # noqa: E731
    _, tangent = jax.jvp(run, (omega, x), (jnp.ones_like(omega), jnp.ones_like(x)))
    return _sampled(solver, schedule, grid, omega, x, cond), tangent


def _run(name, schedule, grid=GRID, omega=1.0, x=None, cond=COND):
    x = _start(schedule, grid) if x is None else x
    run = _sampled_with_tangent if name == "adaptive" else _sampled_with_gradient
    return run(sampling.as_solver(SOLVERS[name]), schedule, grid, jnp.float32(omega), x, cond)


def _expected_evaluations(name, schedule):
    if name not in TWICE:
        return STEPS
    # from alpha = 0 only the solver that steps on the clock has a second evaluation
    infinite_start = float(schedule.alpha(jnp.ones(()))) == 0 and name != "heun"
    return 2 * STEPS - 1 - infinite_start


# ---- the battery


@pytest.mark.parametrize("name, schedule", paired(SOLVERS))
def test_battery(name, schedule):
    """From t = 1 to 0: samples and gradients are finite, evaluations exact, samples independent of their batch."""
    schedule = SCHEDULES[schedule]()
    x = _start(schedule)
    out, derivative = _run(name, schedule, x=x)
    chex.assert_tree_all_finite((out.x0, derivative))
    assert float(sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(derivative))) > 0
    assert out.x0.dtype == x.dtype and out.nfe["positive"] == out.nfe["reference"]
    if name != "adaptive":
        assert int(out.nfe["positive"]) == _expected_evaluations(name, schedule)
    others = _run(name, schedule, x=x.at[1:].multiply(-0.7), cond=COND.at[1:].set(2))[0]
    assert float(jnp.max(jnp.abs(out.x0[1:] - others.x0[1:]))) > 1e-2
    chex.assert_trees_all_close(out.x0[0], others.x0[0], atol=1e-5)


@every_solver
def test_any_grid_ends_without_nan(name):
    """Noise levels of every spacing, tiny last levels included; the last step goes to t = 0."""
    grids = [
        sampling.edm_grid(RF, STEPS),
        sampling.log_snr_grid(RF, STEPS),
        sampling.cosine_grid(RF, STEPS),
        sampling.shifted(RF, GRID, 3.0),
        sampling.as_grid([1.0, 0.5, 1e-6, 1e-12, 0.0]),
        sampling.noise_level_grid(RF, [1e4, 1.0, 1e-3, 1e-5, 0.0]),
    ]
    for grid in grids:
        chex.assert_tree_all_finite(_run(name, RF, grid))


@every_solver
def test_jit_and_vmap_change_no_number(name):
    """A sweep over omega, mapped, is that of single runs, evaluations included, and of a run that is not compiled."""
    x, omegas = _start(RF), jnp.asarray([0.0, 1.5])
    mapped = jax.jit(jax.vmap(lambda omega: _sampled(SOLVERS[name], RF, GRID, omega, x, COND)))(omegas)
    for i, omega in enumerate(omegas):
        single = _run(name, RF, omega=omega, x=x)[0]
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], mapped), single, rtol=1e-4, atol=1e-4)
    plain = _sampled(SOLVERS[name], RF, GRID, 1.5, x, COND)
    chex.assert_trees_all_close(plain, single, rtol=1e-4, atol=1e-4)


@every_solver
def test_evaluations_are_those_that_took_place(name):
    """The network itself counts its calls; the limited interval (.3, .6] skips the reference branch elsewhere."""
    rows = []
    exact = Partial(_gaussian, RF)

    def denoise(x, t, cond):
        jax.debug.callback(lambda x: rows.append(x.shape[0]), x)
        return exact(x, t, cond)

    guide = guides.cfg(weights.interval(1.0, 0.3, 0.6), NULL)
    x = _start(RF)
    run = jax.jit(lambda x: sampling.sample(jax.random.key(2), denoise, guide, SOLVERS[name], RF, GRID, x, COND))
    nfe = {branch: int(count) for branch, count in jax.block_until_ready(run(x)).nfe.items()}
    jax.effects_barrier()
    assert sum(rows) == len(COND) * sum(nfe.values())
    if name != "adaptive":
        # starts in the interval: .5; ends, or inner times, of the steps that are evaluated twice: one more
        expected = {"positive": _expected_evaluations(name, RF), "reference": 2 if name in TWICE else 1}
        assert nfe == expected


# ---- knobs that make one sampler another


@pytest.mark.parametrize(
    "one, other",
    [
        (sampling.dpmpp_2m_sde(0.0), sampling.dpmpp_2m()),
        (sampling.dpmpp_2s_sde(0.0), sampling.dpmpp_2s()),
        (sampling.edm_stochastic(0.0), sampling.edm()),
        (sampling.edm_stochastic(0.3, noise_min=1e3), sampling.edm()),
        (sampling.edm_stochastic(0.3, noise_max=1e-3), sampling.edm()),
        (sampling.edm_stochastic(9.0), sampling.edm_stochastic(2**0.5 - 1)),
        (sampling.euler(), sampling.ddim()),
        (sampling.churned_ddim(1.0), sampling.ddpm()),
    ],
    ids=["2m eta 0", "2s eta 0", "gamma 0", "noise_min", "noise_max", "gamma capped", "euler", "ddpm"],
)
def test_equal_samplers(one, other):
    x, cond = _start(RF), COND
    run = jax.jit(lambda solver: _sampled(solver, RF, GRID, 1.0, x, cond).x0)
    chex.assert_trees_all_close(run(sampling.as_solver(one)), run(sampling.as_solver(other)), atol=1e-5)


def test_knobs_are_leaves():
    """A sweep over churn, eta and S_noise compiles once, and each changes the sample."""
    x = _start(RF)
    run, traces = counted(lambda solver: _sampled(solver, RF, GRID, 1.0, x, COND).x0)
    for make in (sampling.dpmpp_2m_sde, sampling.dpmpp_2s_sde, sampling.edm_stochastic, sampling.churned_ddim):
        before = len(traces)
        values = [run(sampling.as_solver(make(jnp.float32(knob)))) for knob in (0.1, 0.4)]
        assert len(traces) == before + 1
        assert float(jnp.max(jnp.abs(values[0] - values[1]))) > 1e-3
    first, second = (run(sampling.edm_stochastic(0.2, s_noise=s)) for s in (1.0, 1.01))
    assert float(jnp.max(jnp.abs(first - second))) > 1e-4


@pytest.mark.parametrize(
    "order, variant, message",
    [(4, "bh2", "order = 4: allowed: an integer from 1 to 3"), (2, "bh3", "allowed: bh1 or bh2")],
)
def test_unknown_unipc(order, variant, message):
    with pytest.raises(ValueError, match=message):
        sampling.unipc(order, variant)


# ---- guides with a noise of their own, and guides with state


def _fixed_guide(x0, eps):
    def apply(state, denoise, schedule, x, *, t, s, cond):
        return state, Guided(x0, eps, {"positive": jnp.ones((), jnp.int32)})

    return Guide(lambda x: (), apply)


def _unasked(x, t, cond):
    """The denoiser of guides that do not ask it."""
    raise AssertionError("asked")


@pytest.mark.parametrize("name", list(DETERMINISTIC))
def test_solvers_keep_the_noise_that_the_guide_names(name):
    """With constant x0 and eps, eps not the one implied by x0 (CFG++), each is DDIM: alpha_s x0 + sigma_s eps."""
    x0, eps, x = jnp.full((3, 2), 0.4), jnp.full((3, 2), -1.7), _start(RF)
    out = sampling.sample(
        jax.random.key(0), unasked, _fixed_guide(x0, eps), DETERMINISTIC[name], RF, GRID, x, None, trajectory=True
    )
    expected = np.broadcast_to((0.4 - 2.1 * np.asarray(GRID)[1:])[:, None, None], (STEPS, 3, 2))
    np.testing.assert_allclose(out.trajectory[1:], expected, atol=1e-5)


def test_a_guide_sees_evaluations_in_order():
    """The guide answers x0 = n at its n-th evaluation (n = 1, 2, ..); Heun on 1 -> 1/2 -> 0 by hand.

    x = 2: v_1 = (2 - 1)/1, prediction 2 - 1/2 = 1.5; v_2 = (1.5 - 2)/.5 = -1; x_(1/2) = 2 - (1 - 1)/4 = 2. The last
    step is x0 = 3.
    """

    def apply(n, denoise, schedule, x, *, t, s, cond):
        n = n + 1
        x0 = jnp.full_like(x, n)
        return n, Guided(x0, (x - (1 - t[:, None]) * x0) / t[:, None], {"positive": jnp.ones((), jnp.int32)})

    guide = Guide(lambda x: jnp.zeros(()), apply)
    grid, x = sampling.uniform_grid(2), jnp.full((1, 1), 2.0)
    out = sampling.sample(jax.random.key(0), unasked, guide, sampling.heun(), RF, grid, x, None, trajectory=True)
    chex.assert_trees_all_close(out.trajectory[:, 0, 0], jnp.asarray([2.0, 2.0, 3.0]))
    assert int(out.nfe["positive"]) == 3


def test_half_precision_networks_keep_the_state_in_float32():
    half = lambda x, t, cond: (0.5 * x).astype(jnp.bfloat16)  # noqa: E731
    for name in ("heun", "dpmpp_2m", "unipc", "dpmpp_2s_sde", "edm_stochastic"):
        out = sampling.sample(jax.random.key(1), half, guides.unguided(), SOLVERS[name], RF, GRID, _start(RF), COND)
        assert out.x0.dtype == jnp.float32 and bool(jnp.all(jnp.isfinite(out.x0)))


@pytest.mark.parametrize("name", ["edm_stochastic", "unipc"])
@pytest.mark.key_reuse  # recomputation draws the same noise again, on purpose
def test_rollouts_take_solvers(name):
    """The rollout's states are the sampler's, memory and second evaluations included; its gradient is finite."""
    x, key, denoise, solver = _start(RF), jax.random.key(2), Partial(_gaussian, RF), SOLVERS[name]

    def states(omega):
        guide = guides.cfg(weights.constant(omega), NULL, skip=False)
        return rollout(key, denoise, guide, solver, RF, GRID, x, COND, segments=2)

    guide = guides.cfg(weights.constant(1.0), NULL)
    path = jax.jit(
        lambda: sampling.sample(key, denoise, guide, solver, RF, GRID, x, COND, trajectory=True)
    )().trajectory
    chex.assert_trees_all_close(jax.jit(states)(1.0), path[2::2], atol=1e-5)
    slope = jax.jit(jax.grad(lambda omega: jnp.sum(jnp.sin(states(omega)))))(1.0)
    assert bool(jnp.isfinite(slope)) and float(slope) != 0


def test_stochastic_solvers_draw_anew_in_every_step_for_every_sample():
    for name in STOCHASTIC:
        x = jnp.zeros((3, 2))
        out = sampling.sample(
            jax.random.key(0), Partial(lambda x, t, cond: jnp.zeros_like(x)), guides.unguided(), STOCHASTIC[name], RF,
            sampling.uniform_grid(3, 0.9, 0.3), x, None, trajectory=True,
        )  # fmt: skip
        moves = np.asarray(jnp.diff(out.trajectory, axis=0))
        assert len(np.unique(moves)) == moves.size

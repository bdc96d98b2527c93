"""Shapes of weights: areas, end points, published vectors; and one battery over all of them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import schedules, weights
from guidance.sampling import edm_grid, log_snr_grid, uniform_grid
from tests.tracing import counted

GRID = uniform_grid(10)
EDM = schedules.edm()
NINE_NODES, NINE_WEIGHTS = np.polynomial.legendre.leggauss(9)


_call = jax.jit(lambda weight, s, t: weight(t=t, s=s, cond=jnp.zeros(t.shape, int)))


def at(weight, t):
    """omega at the times t [n] (the weights here ignore s and the condition)."""
    t = jnp.asarray(t, float)
    return _call(weight, t, t)


def on_steps(weight, grid):
    return _call(weight, grid[1:], grid[:-1])


def integral(weight, pieces=8):
    """The integral of omega over [0, 1] by Gauss-Legendre on pieces: exact with kinks at multiples of 1/pieces."""
    left = np.arange(pieces)[:, None] / pieces
    t = (left + (NINE_NODES[None] + 1) / (2 * pieces)).reshape(-1)
    return float(np.sum(np.tile(NINE_WEIGHTS, pieces) * np.asarray(at(weight, t))) / (2 * pieces))


# ---- every weight: builders from knobs (all of them leaves), each with example knobs

BATTERY = {
    "constant": (weights.constant, (2.0,)),
    "interval": (weights.interval, (2.0, 0.3, 0.7)),
    "interval_of_noise_levels": (
        lambda omega, lo, hi: weights.interval_of_noise_levels(EDM, omega, lo, hi), (2.0, 0.2, 5.0),
    ),
    "interval_of_noise_levels snapped": (
        lambda omega, lo, hi: weights.interval_of_noise_levels(EDM, omega, lo, hi, GRID), (2.0, 0.2, 5.0),
    ),
    "interval_of_log_snr": (
        lambda omega, lo, hi: weights.interval_of_log_snr(schedules.cosine(), omega, lo, hi), (2.0, -3.0, 3.0),
    ),
    "interval_of_steps": (lambda omega: weights.interval_of_steps(GRID, omega, 2, 6), (2.0,)),
    "table": (lambda omega: weights.table(GRID, omega * jnp.arange(10.0)), (2.0,)),
    "clamp_linear": (weights.clamp_linear, (2.0, 1.0)),
    "powered_cosine": (weights.powered_cosine, (2.0, 0.5, 0.8)),
    "powered_cosine of omega": (lambda *k: weights.powered_cosine(*k, of="omega"), (2.0, 3.0)),
    "beta": (weights.beta, (2.0, 2.0, 3.0)),
    "flat beta": (weights.beta, (2.0, 1.0, 1.0)),
    "exponential": (weights.exponential, (2.0, 0.7)),
    "triangle": (lambda omega: weights.triangle(GRID, omega), (2.0,)),
    "step_up": (lambda omega, switch, share: weights.step_up(GRID, omega, switch, share), (2.0, 0.4, 0.5)),
    "step_down": (lambda omega, switch, share: weights.step_down(GRID, omega, switch, share), (2.0, 0.4, 0.5)),
} | {f"ramp {shape}": (lambda *k, shape=shape: weights.ramp(shape, *k), (2.0, 0.5)) for shape in weights.RAMPS} | {
    f"ramp {shape} of omega": (lambda *k, shape=shape: weights.ramp(shape, *k, of="omega"), (2.0,))
    for shape in weights.RAMPS
}  # fmt: skip
every_weight = pytest.mark.parametrize("name", list(BATTERY))


@every_weight
def test_shape_dtype_and_finite_ends(name):
    make, knobs = BATTERY[name]
    t = jnp.asarray([0.0, 1e-3, 0.35, 0.5, 1.0])
    omega = make(*knobs)(t=t, s=t, cond=jnp.zeros(5, int))
    chex.assert_shape(omega, (5,))
    chex.assert_type(omega, t.dtype)
    chex.assert_tree_all_finite(omega)
    assert float(jnp.max(jnp.abs(omega))) > 0


@every_weight
def test_a_sweep_over_all_leaves_compiles_once(name):
    make, knobs = BATTERY[name]
    call, traces = counted(lambda weight: at(weight, [0.2, 0.9]))
    for factor in (1.0, 1.1, 1.2):
        call(jax.tree.map(jnp.asarray, make(*(factor * k for k in knobs))))
    assert len(traces) == 1


@every_weight
def test_jit_vmap_and_gradients_through_the_knobs(name):
    """jit and vmap change no number; gradients are finite at both ends and, in omega, as differences say.

    Gradients in time are finite inside; at t = 1 a power below 1 has none.
    """
    make, knobs = BATTERY[name]
    t = jnp.asarray([0.0, 0.15, 0.45, 0.8, 1.0])
    total = lambda *k, t=t: jnp.sum(jnp.sin(0.01 * at(make(*k), t)))  # noqa: E731
    knobs = tuple(map(jnp.asarray, knobs))
    stacked = tuple(jnp.stack([k, 1.01 * k]) for k in knobs)
    eager = jnp.stack([total(*(k[i] for k in stacked)) for i in range(2)])
    chex.assert_trees_all_close(jax.jit(jax.vmap(total))(*stacked), eager, rtol=1e-4, atol=1e-6)
    gradient = jax.jit(jax.grad(total, argnums=tuple(range(len(knobs)))))(*knobs)
    chex.assert_tree_all_finite(gradient)
    step = 0.1
    up, down = total(knobs[0] + step, *knobs[1:]), total(knobs[0] - step, *knobs[1:])
    assert float(gradient[0]) == pytest.approx(float(up - down) / (2 * step), rel=0.02, abs=1e-4)
    assert float(gradient[0]) != 0
    chex.assert_tree_all_finite(jax.grad(lambda t: total(*knobs, t=t))(t[1:-1]))


# ---- limited intervals


def test_lig_1_noise_levels_of_the_published_grid(x64):
    """LIG-1: 32 steps, 80 to .002, exponent 7; as levels of our grid."""
    levels = schedules.noise_level(EDM, edm_grid(EDM, 32))
    index = np.asarray([13, 15, 17, 19, 20, 21, 22, 23])
    expected = jnp.asarray([4.999, 2.902, 1.609, 0.845, 0.598, 0.415, 0.283, 0.189])
    chex.assert_trees_all_close(levels[index], expected, atol=0.0005)


PUBLISHED = [((0.19, 1.61), (17, 22)), ((0.60, 5.00), (13, 19)), ((0.28, 2.90), (15, 21))]


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
@pytest.mark.parametrize("levels, steps", PUBLISHED)
def test_snapped_noise_levels_are_the_published_steps(name, levels, steps):
    """The paper prints rounded levels, its code inclusive indices of steps: snapping makes them the same weight."""
    schedule = schedules.SCHEDULES[name]()
    grid = edm_grid(schedule, 32)
    expected = np.zeros(32)
    expected[steps[0] : steps[1] + 1] = 3
    snapped = weights.interval_of_noise_levels(schedule, 3.0, *levels, grid)
    chex.assert_trees_all_equal(np.asarray(on_steps(snapped, grid)), expected.astype(np.float32))
    by_index = weights.interval_of_steps(grid, 3.0, *steps)
    chex.assert_trees_all_equal(np.asarray(on_steps(by_index, grid)), expected.astype(np.float32))


def test_without_snapping_a_rounded_bound_moves_the_interval():
    """2.90 lies below the level 2.902 of step 15, and .28 below the level .283 of step 22."""
    grid = edm_grid(EDM, 32)
    plain = on_steps(weights.interval_of_noise_levels(EDM, 1.0, 0.28, 2.90), grid)
    assert np.flatnonzero(np.asarray(plain)).tolist() == list(range(16, 23))


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_all_units_of_an_interval_agree(name, x64):
    schedule = schedules.SCHEDULES[name]()
    lo, hi = 0.3, 4.1  # no time of the grid below: the conversions differ by roundings
    t = jnp.linspace(0, 1, 201)
    by_level = at(weights.interval_of_noise_levels(schedule, 2.0, lo, hi), t)
    by_snr = at(weights.interval_of_log_snr(schedule, 2.0, -2 * np.log(hi), -2 * np.log(lo)), t)
    times = weights.times_of_noise_level(schedule, jnp.asarray([lo, hi]))
    chex.assert_trees_all_equal(by_level, by_snr, at(weights.interval(2.0, *times), t))
    level = schedules.noise_level(schedule, t)
    chex.assert_trees_all_equal(by_level, jnp.where((level > lo) & (level <= hi), 2.0, 0.0))


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_unbounded_noise_levels_guide_everywhere(name):
    """(0, inf] is every step, first and last included; gradients with respect to the bounds are zero, not NaN."""
    schedule, grid = schedules.SCHEDULES[name](), uniform_grid(20)
    everywhere = weights.interval_of_noise_levels(schedule, 2.0, 0.0, jnp.inf)
    chex.assert_trees_all_equal(on_steps(everywhere, grid), jnp.full(20, 2.0))
    total = lambda lo: jnp.sum(on_steps(weights.interval_of_noise_levels(schedule, 2.0, lo, 3.0), grid))  # noqa: E731
    assert float(jax.grad(total)(0.0)) == 0.0


def test_snap_returns_entries_of_the_grid():
    grid = log_snr_grid(schedules.cosine(), 7)
    nudged = grid + 1e-4 * jnp.asarray([-1.0, 1, -1, 1, -1, 1, -1, 1])
    chex.assert_trees_all_equal(weights.snap(grid, nudged), grid)


# ---- ramps


@pytest.mark.parametrize("of", ["scale", "omega"])
@pytest.mark.parametrize("shape", list(weights.RAMPS))
@pytest.mark.parametrize("omega", [-0.5, 0.0, 3.0])
def test_sch_1_ramps_keep_the_mean(shape, of, omega, x64):
    assert integral(weights.ramp(shape, omega, of=of)) == pytest.approx(omega, abs=1e-12)


# the scale of a unit ramp at tau = 0, 1/4, 1/2, 3/4, 1, from the formulas by hand
ROOT = np.sqrt(0.5)
VALUES = {
    "linear": (0, 0.5, 1, 1.5, 2),
    "cosine": (0, 1 - ROOT, 1, 1 + ROOT, 2),
    "inverse_linear": (2, 1.5, 1, 0.5, 0),
    "sine": (2, 1 + ROOT, 1, 1 - ROOT, 0),
    "v": (2, 1, 0, 1, 2),
    "lambda": (0, 1, 2, 1, 0),
}


@pytest.mark.parametrize("shape", list(weights.RAMPS))
def test_values_of_ramps(shape):
    """At omega = 3: the scale is 4 r, or 1 + 3 r; tau = 1 - t runs from noise to data."""
    t, profile = jnp.asarray([1, 0.75, 0.5, 0.25, 0]), np.asarray(VALUES[shape])
    chex.assert_trees_all_close(1 + at(weights.ramp(shape, 3.0), t), jnp.asarray(4 * profile), atol=1e-5)
    chex.assert_trees_all_close(at(weights.ramp(shape, 3.0, of="omega"), t), jnp.asarray(3 * profile), atol=1e-5)


@pytest.mark.parametrize("shape", list(weights.RAMPS))
def test_a_ramp_of_omega_leaves_the_unguided_alone(shape):
    t = jnp.linspace(0, 1, 11)
    chex.assert_trees_all_equal(at(weights.ramp(shape, 0.0, of="omega"), t), jnp.zeros(11))
    assert float(jnp.max(jnp.abs(at(weights.ramp(shape, 0.0), t)))) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("of", ["scale", "omega"])
@pytest.mark.parametrize("shape", list(weights.RAMPS))
def test_a_floor_is_a_least_scale_and_changes_nothing_above(shape, of):
    t = jnp.linspace(0, 1, 41)
    plain, clamped = at(weights.ramp(shape, 2.0, of=of), t), at(weights.ramp(shape, 2.0, 2.0, of), t)
    chex.assert_trees_all_equal(clamped, jnp.maximum(plain, 1.0))
    assert float(jnp.min(clamped)) == 1.0 and float(jnp.max(clamped)) > 1.0


def test_clamp_linear_is_the_linear_ramp():
    t = jnp.linspace(0, 1, 11)
    chex.assert_trees_all_equal(at(weights.clamp_linear(1.5, 2.0), t), at(weights.ramp("linear", 1.5, 2.0), t))


def test_powered_cosine(x64):
    """tau^power = 1/2 where tau = 2^(-1/power): half the strength; ends 0 and 1; a larger power comes later."""
    for power in (0.5, 1.0, 4.0):
        t = 1 - jnp.asarray([0.0, 0.5 ** (1 / power), 1.0])
        scale = 1 + at(weights.powered_cosine(3.0, power), t)
        chex.assert_trees_all_close(scale, jnp.asarray([0.0, 2.0, 4.0]), atol=1e-12)
        omega = at(weights.powered_cosine(3.0, power, of="omega"), t)
        chex.assert_trees_all_close(omega, jnp.asarray([0.0, 1.5, 3.0]), atol=1e-12)
    t = jnp.linspace(0.1, 0.9, 9)
    assert bool(jnp.all(at(weights.powered_cosine(3.0, 4.0), t) < at(weights.powered_cosine(3.0, 2.0), t)))
    # power 1 is half the cosine ramp
    scales = [1 + at(w, t) for w in (weights.powered_cosine(3.0, 1.0), weights.ramp("cosine", 3.0))]
    chex.assert_trees_all_close(2 * scales[0], scales[1], rtol=1e-12)
    assert float(jnp.min(at(weights.powered_cosine(3.0, 4.0, 2.0), t))) == 1.0


def test_unknown_names_raise():
    with pytest.raises(ValueError, match="shape = square: allowed: linear or cosine"):
        weights.ramp("square", 1.0)
    for make in (lambda of: weights.ramp("linear", 1.0, of=of), lambda of: weights.powered_cosine(1.0, 1.0, of=of)):
        with pytest.raises(ValueError, match="of = w: allowed: scale or omega"):
            make("w")


# ---- other published functions of time


@pytest.mark.parametrize("a, b", [(1.0, 1.0), (2.0, 2.0), (2.0, 3.0), (4.0, 1.0)])
def test_sch_2_beta_densities_have_area_one(a, b, x64):
    assert integral(weights.beta(3.0, a, b)) == pytest.approx(3.0, abs=1e-10)


def test_sch_2_beta_peaks(x64):
    """Beta(2, 2) = 6 tau (1 - tau): peak 1.5 at 1/2. Beta(2, 3) = 12 tau (1 - tau)^2: peak 16/9 at tau = 1/3."""
    t = jnp.linspace(0, 1, 3001)
    for b, peak, place in ((2.0, 1.5, 0.5), (3.0, 16 / 9, 1 / 3)):
        scale = 1 + at(weights.beta(0.0, 2.0, b), t)
        assert float(jnp.max(scale)) == pytest.approx(peak, abs=1e-6)
        assert float(1 - t[jnp.argmax(scale)]) == pytest.approx(place, abs=1e-3)
        # t is 1 - tau: a density that peaks early in sampling peaks at a large t
    chex.assert_trees_all_close(1 + at(weights.beta(4.0, 2.0, 3.0), [0.75]), jnp.asarray([5 * 12 * 0.25 * 0.5625]))


def test_beta_ends_are_unconditional_and_the_flat_one_is_constant():
    chex.assert_trees_all_equal(at(weights.beta(3.0, 2.0, 3.0), [0.0, 1.0]), jnp.asarray([-1.0, -1.0]))
    chex.assert_trees_all_close(at(weights.beta(3.0, 1.0, 1.0), [0.0, 0.3, 1.0]), jnp.full(3, 3.0), atol=1e-6)


def test_exponential(x64):
    """1 + omega at noise, e^rate (1 + omega) at data; mean scale (1 + omega)(e^rate - 1)/rate; rate 0 is constant."""
    weight = weights.exponential(1.5, 0.8)
    expected = 2.5 * jnp.exp(jnp.asarray([0.8, 0.4, 0.0])) - 1
    chex.assert_trees_all_close(at(weight, [0.0, 0.5, 1.0]), expected, rtol=1e-12)
    assert integral(weight) == pytest.approx(2.5 * np.expm1(0.8) / 0.8 - 1, abs=1e-12)
    chex.assert_trees_all_close(at(weights.exponential(1.5, 0.0), [0.1, 0.9]), jnp.full(2, 1.5), rtol=1e-12)


# ---- schedules over the steps of a grid

# TV-1 to TV-3: (scale, scales of the steps), uniform time
VECTORS = [
    (9, [1.098, 4.610, 8.122, 11.634, 15.146, 18.659, 14.268, 9.878, 5.488, 1.098]),
    (5, [1.087, 2.826, 4.565, 6.304, 8.043, 9.783, 7.609, 5.435, 3.261, 1.087]),
    (9, [1.110, 5.548, 9.986, 14.425, 18.863, 14.425, 9.986, 5.548, 1.110]),
]


@pytest.mark.parametrize("scale, expected", VECTORS)
def test_tv_reference_vectors(scale, expected):
    grid = uniform_grid(len(expected))
    got = 1 + on_steps(weights.triangle(grid, scale - 1.0), grid)
    chex.assert_trees_all_close(got, jnp.asarray(expected), atol=0.001)
    assert int(jnp.argmax(got)) == len(expected) // 2


def shifted_grid(steps, shift=3.0):
    """The time shift of text-to-image flow samplers."""
    u = uniform_grid(steps)
    return shift * u / (1 + (shift - 1) * u)


GRIDS = [
    uniform_grid,
    shifted_grid,
    lambda n: uniform_grid(n, 0.9, 0.1),
    lambda n: log_snr_grid(schedules.cosine(), n),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 9, 10])
def test_tv_4_triangles_keep_the_mean_on_any_grid(grid, steps, x64):
    grid = grid(steps).astype(float)
    run = jax.jit(jax.vmap(lambda omega, peak: on_steps(weights.triangle(grid, omega, peak), grid)))
    omega, peak = (a.reshape(-1) for a in jnp.meshgrid(jnp.asarray([0.0, 0.7, 8.0]), jnp.asarray([0, 0.3, 0.5, 1])))
    omegas = run(omega, peak)
    means = jnp.stack([weights.time_mean(grid, row) for row in omegas])
    chex.assert_trees_all_close(means, omega, atol=1e-12)
    chex.assert_trees_all_close(omegas[omega == 0], jnp.zeros((4, steps)), atol=1e-12)


@pytest.mark.parametrize("steps, peak, top", [(10, 0.4, 4), (10, 0.6, 6), (100, 0.29, 29), (9, 0.5, 4), (8, 0.0, 0)])
def test_the_peak_of_a_triangle(steps, peak, top):
    """Two lines meet at the peak: equal steps up, equal steps down, and the same scale at both ends."""
    grid = uniform_grid(steps)
    scale = np.asarray(1 + on_steps(weights.triangle(grid, 4.0, peak), grid), np.float64)
    assert int(np.argmax(scale)) == top
    up, down = np.diff(scale)[:top], np.diff(scale)[top:]
    np.testing.assert_allclose(up, scale[-1] * 8 / max(top, 1), rtol=1e-4)
    np.testing.assert_allclose(down, -scale[-1] * 8 / (steps - 1 - top), rtol=1e-4)
    assert scale.max() / scale.min() == pytest.approx(9, rel=1e-4)  # 1 + 2 omega, before and after the rescaling


def test_tv_5_the_triangle_of_the_paper_is_a_ramp_of_omega():
    """raw(n) = 1 + 2 omega n/M up to M = 5, then down to 1 at n = 10; its mean over n < 10 is 1 + omega = 9."""
    grid = uniform_grid(10)
    scale = 1 + at(weights.ramp("lambda", 8.0, of="omega"), grid)
    raw = jnp.asarray([1, 4.2, 7.4, 10.6, 13.8, 17, 13.8, 10.6, 7.4, 4.2, 1])
    chex.assert_trees_all_close(scale, raw, atol=1e-5)
    assert float(jnp.mean(scale[:-1])) == pytest.approx(9, abs=1e-5)


@pytest.mark.parametrize("steps, early", [(9, 2), (10, 3), (5, 1), (2, 1), (1, 1)])
def test_step_schedules_switch_at_a_quarter_of_the_index(steps, early):
    """w/3 where n/(N - 1) < 1/4: at N = 9 the step n = 2 sits on the quarter and belongs to the later part."""
    grid = shifted_grid(steps)
    low_first = np.where(np.arange(steps) < early, 2.0, 6.0) - 1  # omega = 5: scale 6, a third of it is 2
    low_last = np.where(np.arange(steps) < early, 6.0, 2.0) - 1
    chex.assert_trees_all_close(np.asarray(on_steps(weights.step_up(grid, 5.0), grid)), low_first, atol=1e-5)
    chex.assert_trees_all_close(np.asarray(on_steps(weights.step_down(grid, 5.0), grid)), low_last, atol=1e-5)


def test_time_mean_gives_an_interval_the_strength_of_a_constant():
    """The interval of TV-CFG's code: weight on (.15, .78) chosen so that the time average of the scale is w."""
    grid, omega = shifted_grid(10), 4.0
    inside = on_steps(weights.interval(1.0, 0.15, 0.78), grid)
    share = weights.time_mean(grid, inside)
    assert 0.2 < float(share) < 0.9
    stronger = on_steps(weights.interval(omega / share, 0.15, 0.78), grid)
    assert float(weights.time_mean(grid, stronger)) == pytest.approx(omega, rel=1e-5)
    assert float(weights.time_mean(grid, jnp.ones(10))) == pytest.approx(1, rel=1e-6)

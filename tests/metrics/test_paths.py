"""Measures along trajectories: closed forms on Gaussians, and the theorems of the stage-wise paper on its set-up."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tools import three_stages
from guidance import guides, metrics, sampling, schedules, weights
from guidance.metrics import paths
from guidance.shapes import row_dot
from guidance.truth import mixtures
from tests.conftest import REPOSITORY
from tests.oracles import standard_error

NAMES = sorted(schedules.SCHEDULES)
VARIANCE = 0.6
MEAN_C, MEAN_U = np.array([1.0, -0.5, 0.3]), np.array([-0.4, 0.2, 0.6])


def gaussians(variance_u=VARIANCE):
    """Conditional N(MEAN_C, v I) as label 0, unconditional N(MEAN_U, v_u I) as the null label."""
    return mixtures.from_classes([[MEAN_C], [MEAN_U]], [VARIANCE, variance_u], class_prior=(0, 1))


def path_of(law, schedule, grid, omega, x):
    guide = guides.cfg(weights.constant(omega), law.null, skip=False)
    cond = jnp.zeros(x.shape[0], int)
    denoise = mixtures.denoise(law, schedule)
    args = jax.random.key(0), denoise, guide, sampling.ddim(), schedule, grid, x, cond
    return sampling.sample(*args, trajectory=True).trajectory


# ---- norm growth and anomalous diffusion


@pytest.mark.parametrize("name", ["rectified_flow", "edm"])
def test_norm_growth_of_gaussians_is_exact(name, x64):
    """Guided minus unguided = omega alpha (mu_c - mu_u)(1 - sqrt((v + rho^2)/(v + rho_T^2))), to first order in h."""
    schedule, omega = schedules.SCHEDULES[name](), 3.0
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)))
    errors = []
    for steps in (200, 400):
        levels = jnp.geomspace(20.0, 0.01, steps + 1)
        grid = weights.times_of_noise_level(schedule, levels)
        start = x * schedule.sigma(grid[0])
        run = jax.jit(lambda omega, grid=grid, start=start: path_of(gaussians(), schedule, grid, omega, start))
        guided, unguided = run(omega), run(0.0)
        remaining = jnp.sqrt((VARIANCE + levels**2) / (VARIANCE + levels[0] ** 2))
        shift = omega * (schedule.alpha(grid) * (1 - remaining))[:, None, None] * (MEAN_C - MEAN_U)[None, None]
        errors.append(float(jnp.max(jnp.abs(guided - unguided - shift))))
        ratio = paths.norm_ratio(guided, unguided)
        norm = lambda p: jnp.mean(jnp.linalg.norm(p, axis=-1), axis=1)  # noqa: E731
        chex.assert_trees_all_close(ratio, norm(unguided + shift) / norm(unguided), atol=0.05)
    assert errors[1] < 0.02 and 1.8 < errors[0] / errors[1] < 2.2
    assert float(ratio[0]) == 1.0 and float(ratio[-1]) > 2


def test_gaus_2_norm_growth_of_modes(x64):
    """GAUS-2: zero means, variances (1, .4) against (2, .7): guidance scales axis i by h_i^(omega/2)."""
    law = mixtures.from_classes([[[0.0, 0.0]]] * 2, [[[1.0, 0.4]], [[2.0, 0.7]]], class_prior=(0, 1))
    schedule = schedules.edm()
    grid = weights.times_of_noise_level(schedule, jnp.geomspace(50.0, 0.1, 4001))
    run = jax.jit(lambda omega, x: path_of(law, schedule, grid, omega, x))
    for axis, factor in enumerate((0.42327602, 0.50346817)):
        x = 50 * jnp.eye(2)[axis : axis + 1]
        ratio = paths.norm_ratio(run(2.5, x), run(0.0, x))
        assert float(ratio[-1]) == pytest.approx(factor, rel=2e-3)  # Euler: an error of the order of log(500)/4000


def test_adg_5_outward_projection_and_norm_grow_with_omega():
    """SIMPLEX: E|x0| and E<x0, mu_1>/|mu_1| of plain CFG at omega = 0, 1, 3, 7; the truth is 5.222 and 3.464."""
    centres = 4 * np.eye(16)[:4]
    centres -= centres.mean(0)
    law, schedule = mixtures.from_classes(list(centres[:, None]), 1.0), schedules.edm()
    grid = weights.times_of_noise_level(schedule, jnp.geomspace(30.0, 0.01, 61))
    x = 30 * jax.random.normal(jax.random.key(0), (4000, 16))
    run = jax.jit(lambda omega: path_of(law, schedule, grid, omega, x)[-1:])
    normal = jnp.asarray(centres[0], jnp.float32)
    plain, before = run(0.0), None
    for omega, norm, outward in ((0, 5.055, 3.354), (1, 5.627, 4.269), (3, 6.347, 5.209), (7, 7.278, 6.324)):
        ends = run(float(omega))
        projected = paths.projection(ends, normal)[0]
        lengths = np.linalg.norm(np.asarray(ends[0]), axis=-1)
        assert abs(lengths.mean() - norm) < 0.002 + 4 * standard_error(lengths)
        assert abs(float(jnp.mean(projected)) - outward) < 0.002 + 4 * standard_error(projected)
        assert float(paths.norm_ratio(ends, plain)[0]) == pytest.approx(norm / 5.055, abs=0.03)
        if before is not None:  # theorem 3.2, sample by sample: the same noise ends farther out
            assert float(jnp.mean(projected > before)) > 0.99
        before = projected


@pytest.mark.parametrize("name", NAMES)
def test_anomalous_diffusion_happens_in_a_ball(name, x64):
    """Equal covariances: <s_guided, s_c> < 0 in the ball over the diameter alpha mu_c .. alpha (mu_c + omega d)."""
    law, schedule, omega = gaussians(), schedules.SCHEDULES[name](), 2.5
    n = 400
    rng = np.random.default_rng(0)
    t = jnp.asarray(rng.uniform(0.1, 0.9, n))
    alpha = schedule.alpha(t)[:, None]
    shift = jnp.asarray(MEAN_C - MEAN_U)[None]
    centre, radius = (
        alpha * (MEAN_C[None] + omega * shift / 2),
        alpha[:, 0] * omega * float(jnp.linalg.norm(shift)) / 2,
    )
    offset = rng.normal(size=(n, 3))
    length = rng.uniform(0.5, 1.5, n) * np.asarray(radius) / np.linalg.norm(offset, axis=-1)
    x = centre + length[:, None] * offset
    denoise = mixtures.denoise(law, schedule)
    positive, reference = (denoise(x, t, jnp.full(n, c)) for c in (0, law.null))
    cosine = paths.score_cosine(schedule, x, t, positive + omega * (positive - reference), positive)
    inside = jnp.linalg.norm(x - centre, axis=-1) < radius
    assert 0.3 < float(jnp.mean(inside)) < 0.7
    chex.assert_trees_all_equal(cosine < 0, inside)
    unguided = paths.score_cosine(schedule, x, t, positive, positive)
    chex.assert_trees_all_close(unguided, jnp.ones(n), atol=1e-12)


def test_projection_is_scale_free_in_the_normal():
    path = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2, 2)), jnp.float32)
    normal = jnp.asarray([[0.0, 3.0], [0.0, 4.0]])
    expected = (3 * path[:, :, 0, 1] + 4 * path[:, :, 1, 1]) / 5
    chex.assert_trees_all_close(paths.projection(path, normal), expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(paths.projection(path, 7 * normal), expected, rtol=1e-5, atol=1e-6)


# ---- the three stages, on STAGE

N, STEPS = 4000, 400
OMEGAS = (0.0, 2.0, 4.0, 8.0)
STAGES_PAGE = (REPOSITORY / "docs/stages.md").read_text(encoding="utf-8")
WEAK_CONSTANT, WEAK_TRIANGLE = (0.298, 0.150, 0.084, 0.029), (0.181, 0.131, 0.081)  # STG-2, STG-3


@functools.cache
def ensemble():
    """Returns the paths [7, times, n, 2] of docs/stages.md: the constants OMEGAS, then triangles of the same means."""
    grid = sampling.uniform_grid(STEPS)
    x = jax.random.normal(jax.random.key(0), (N, 2))
    rows = jnp.concatenate([three_stages.constants(OMEGAS, STEPS), three_stages.triangles(OMEGAS[1:], grid)])
    return grid, jax.jit(three_stages.trajectories)(rows, grid, x)


def at_time(t):
    return round((1 - t) * STEPS)


@pytest.mark.parametrize("run, expected", list(enumerate(WEAK_CONSTANT + WEAK_TRIANGLE)))
def test_stg_2_and_3_share_of_the_weak_mode(run, expected):
    """It is the published value within 4 standard errors, and the one that docs/stages.md quotes."""
    _, path = ensemble()
    centres = jnp.asarray(three_stages.MEANS, jnp.float32)
    share = float(metrics.mode_shares(metrics.nearest_mode(path[run, -1], centres))[three_stages.WEAK])
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / N) + 0.002
    rows = re.findall(r"^\| (?:omega|triangle).*? \| (0\.\d{3}) \|", STAGES_PAGE, re.MULTILINE)
    assert abs(share - float(rows[run])) < 0.0005 + 2 / N  # the page rounds a mean of posteriors
    if run == 0:
        assert abs(share - 0.3) < 4 * math.sqrt(0.21 / N) + 0.005  # and the first-order error of 400 steps


# STG-1: E|x - w mu|^2 at t = .9, guided and unguided
DISTANCES = {1: (22.9, 26.1), 2: (60.6, 71.3), 3: (193.0, 231.5)}


@pytest.mark.parametrize("run", DISTANCES)
def test_stg_1_theorem_3_2_guidance_is_nearer_to_the_scaled_mean(run):
    _, path = ensemble()
    point = (1 + OMEGAS[run]) * jnp.asarray(three_stages.MEAN, jnp.float32)
    for t in (0.95, 0.9, 0.8):
        here = slice(at_time(t), at_time(t) + 1)
        gain = paths.shift_gain(path[run, here], path[0, here], point)[0]
        assert float(jnp.mean(gain)) > 6 * standard_error(gain)
    i = at_time(0.9)
    for ends, expected in zip((path[run, i], path[0, i]), DISTANCES[run], strict=True):
        squares = np.sum((np.asarray(ends) - np.asarray(point)) ** 2, axis=-1)
        assert abs(squares.mean() - expected) < 4 * standard_error(squares) + 0.005 * expected
    # paired, so that it is a difference of the same samples and not of two means with errors of their own
    both = [np.sum((np.asarray(p) - np.asarray(point)) ** 2, -1) for p in (path[0, i], path[run, i])]
    gain = paths.shift_gain(path[run, i : i + 1], path[0, i : i + 1], point)[0]
    np.testing.assert_allclose(np.asarray(gain), both[0] - both[1], rtol=1e-3, atol=1e-3)


def test_direction_shift_outruns_the_mean_and_grows_the_norm():
    """Stage 1 at t = .9: k and the norm grow with omega; unguided, E x_t = (1 - t) mu, so that k = .1."""
    _, path = ensemble()
    i, mean = at_time(0.9), jnp.asarray(three_stages.MEAN, jnp.float32)
    multiples = [float(paths.mean_multiple(p[i : i + 1], mean)[0]) for p in path[:4]]
    error = 1 / math.sqrt(N) / np.linalg.norm(three_stages.MEAN)
    assert abs(multiples[0] - 0.1) < 4 * error
    assert np.all(np.diff(multiples) > 8 * error)
    assert multiples[3] > 5 * multiples[0]
    ratios = [float(paths.norm_ratio(p[i : i + 1], path[0, i : i + 1])[0]) for p in path[:4]]
    assert ratios[0] == 1.0 and np.all(np.diff(ratios) > 0.05)


def test_coherence_falls_while_the_modes_separate():
    """At t = 1 all samples have one gap, mu - 0; it is |E d|^2/E|d|^2 of any cloud of gaps."""
    grid, path = ensemble()
    law = three_stages.mixture()
    denoise = mixtures.denoise(law, three_stages.SCHEDULE)
    gap = lambda x, t: denoise(x, t, jnp.zeros(N, int)) - denoise(x, t, jnp.full(N, law.null))  # noqa: E731
    some = jnp.asarray([0, at_time(0.9), at_time(0.7), at_time(0.5)])
    values = jax.jit(lambda: paths.coherence(paths.along(gap, path[0, some], grid[some])))()
    assert float(values[0]) == pytest.approx(1, abs=1e-5)
    assert bool(jnp.all(jnp.diff(values) < -0.005)) and float(values[-1]) > 0
    opposite = jnp.asarray([[[1.0, 2.0], [-1.0, -2.0]], [[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    chex.assert_trees_all_close(paths.coherence(opposite), jnp.asarray([0.0, 0.5, 0.0]), atol=1e-6)


def test_theorem_3_3_a_region_that_guidance_does_not_empty():
    """At t = .5 everything around the image of the weak mode, up to 3/4 of the way to the neutral line, ends there."""
    time, reach = 0.5, 0.75
    centre = (1 - time) * three_stages.MEANS[three_stages.WEAK]
    angle = 2 * np.pi * np.arange(24) / 24
    ring = centre + reach * abs(centre @ three_stages.ACROSS) * np.stack([np.cos(angle), np.sin(angle)], -1)
    grid = sampling.uniform_grid(200, time)
    omegas = (0.0, 1.0, 4.0, 16.0, 50.0)
    ends = jax.jit(three_stages.trajectories)(
        three_stages.constants(omegas, 200), grid, jnp.asarray(ring, jnp.float32)
    )[:, -1]
    nearest = np.argmin(np.linalg.norm(np.asarray(ends)[:, :, None] - three_stages.MEANS, axis=-1), axis=-1)
    assert np.all(nearest == three_stages.WEAK)
    # not everything ends there: the mirrored ring, across the line between the modes, does not
    mirrored = ring - 2 * (ring @ three_stages.ACROSS)[:, None] * three_stages.ACROSS
    ends = jax.jit(three_stages.trajectories)(
        three_stages.constants(omegas, 200), grid, jnp.asarray(mirrored, jnp.float32)
    )[:, -1]
    nearest = np.argmin(np.linalg.norm(np.asarray(ends)[:, :, None] - three_stages.MEANS, axis=-1), axis=-1)
    assert np.all(nearest == three_stages.STRONG)


def test_mode_separation_is_locally_neutral_and_the_cloud_is_not():
    """From t = .6 on omega = 8 moves the edge of the basins by little; before, it has moved the cloud by much more."""
    _, path = ensemble()
    edges = np.asarray(jax.jit(lambda: three_stages.boundary(0.6, OMEGAS))())
    clouds = np.asarray(jnp.mean(path[:4, at_time(0.6)], axis=1)) @ three_stages.ACROSS
    assert np.all(np.diff(edges) <= 0)  # the weak mode's region shrinks, and only a little
    assert clouds[3] - clouds[0] > 5 * (edges[0] - edges[3])
    # the edge decides the fate: the share of the cloud beyond it is the share that ends in the weak mode
    for run in range(4):
        beyond = np.asarray(path[run, at_time(0.6)]) @ three_stages.ACROSS < edges[run]
        nearest = np.argmin(np.linalg.norm(np.asarray(path[run, -1])[:, None] - three_stages.MEANS, axis=-1), axis=-1)
        assert np.mean(beyond == (nearest == three_stages.WEAK)) > 0.985  # edges are known to .01, fates to a step


@pytest.mark.parametrize("time", [0.8, 0.6])
def test_proposition_3_4_the_strong_mode_dominates_from_a_radius_that_grows_with_k(time):
    """From k mu + r (worst direction) the strong posterior stays above 1/2 for r < r(k).

    The modes have equal norm: only the component across them counts, so r(k + 1) - r(k) = <mu, across>, exactly.
    """
    radii, multiples = jnp.linspace(0, 4, 401), (0.0, 0.5, 1.0, 2.0)
    across, mean = jnp.asarray(three_stages.ACROSS, jnp.float32), jnp.asarray(three_stages.MEAN, jnp.float32)
    starts = jnp.concatenate([k * mean[None] - radii[:, None] * across[None] for k in multiples])
    grid = sampling.uniform_grid(200, time)

    def safe(omega):
        path = three_stages.trajectories(three_stages.constants((omega,), 200), grid, starts)[0]
        return jnp.min(three_stages.posteriors(path, grid)[..., three_stages.STRONG], axis=0) > 0.5

    run = jax.jit(lambda: jnp.stack([safe(omega) for omega in (0.0, 4.0)]))
    for row in np.asarray(run()).reshape(2, len(multiples), -1):
        assert np.all(np.diff(row.astype(int), axis=-1) <= 0)  # a ball, not scattered points
        found = row.sum(-1) * 0.01
        np.testing.assert_allclose(
            np.diff(found), np.diff(multiples) * (three_stages.MEAN @ three_stages.ACROSS), atol=0.0201
        )
        assert np.all(found[1:] > 0.1)


def test_stg_4_theorem_3_5_pairs_contract_as_derived():
    """STG-4: pairs from .7 mu_2 + .1 z, t = .3 to 0, 300 Euler steps; against the reference and the closed form."""
    grid = sampling.uniform_grid(300, 0.3)
    z = jax.random.normal(jax.random.key(3), (2, 500, 2))
    start = 0.7 * jnp.asarray(three_stages.MEANS[three_stages.STRONG :], jnp.float32) + 0.1 * z.reshape(-1, 2)
    path = jax.jit(three_stages.trajectories)(three_stages.constants(OMEGAS, 300), grid, start).reshape(
        4, 301, 2, 500, 2
    )
    means = []
    for pair, omega, expected in zip(path, OMEGAS, (0.6594, 0.1655, 0.0412, 0.0025), strict=True):
        contraction = paths.pair_contraction(pair[:, 0], pair[:, 1])
        assert float(jnp.max(jnp.abs(contraction[0] - 1))) < 1e-6
        means.append(np.asarray(jnp.mean(contraction, axis=1)))
        assert means[-1][-1] == pytest.approx(expected, abs=0.002)
        # the closed form, at every time; Euler is off by h r/2 (r t exp(-r t)) <= .005 for rates r <= 25, h = .001
        rho, alpha = np.asarray(grid / (1 - grid), np.float64), np.asarray(1 - grid, np.float64)
        v = (three_stages.VARIANCE + rho**2) / (three_stages.VARIANCE + rho[0] ** 2)
        u = (1 + rho[0] ** 2) / (1 + rho**2)
        exact = alpha / alpha[0] * v ** ((1 + omega) / 2) * u ** (omega / 2)
        np.testing.assert_allclose(means[-1], exact, atol=0.006)
    assert np.all(np.diff(np.stack(means), axis=0)[:, 1:] < 0)  # at all times: stronger guidance, closer pairs


def test_spread_within_the_strong_mode():
    """At t = 0 the mode's own if unguided, far below it if guided; at t = 1 that of the noise it came from."""
    _, path = ensemble()
    centres = jnp.asarray(three_stages.MEANS, jnp.float32)
    spreads = [
        np.asarray(paths.mode_spread(p[:: STEPS // 4], metrics.nearest_mode(p[-1], centres)))[:, three_stages.STRONG]
        for p in path[:3]
    ]
    own, count = math.sqrt(three_stages.VARIANCE), 0.7 * N
    assert abs(spreads[0][-1] - own) < own * (4 / math.sqrt(4 * count) + 0.015)  # 1.5 %: Euler with 400 steps
    assert spreads[1][-1] < 0.1 * own and spreads[2][-1] < 0.01 * own
    assert all(0.8 < spread[0] < 1 for spread in spreads)
    empty = jnp.zeros((3, 2)).at[:, 0].set(1.0)
    chex.assert_trees_all_equal(paths.mode_spread(path[0, :2, :3], empty)[:, 1], jnp.zeros(2))


# ---- the clock of the stages


def test_decidedness():
    """0 at the prior, 1 where certain, ln 2 of entropy as the unit of two equal modes, below 0 when less certain."""
    prior = jnp.asarray([0.25, 0.75])
    states = jnp.asarray([[0.25, 0.75], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    expected = jnp.asarray([0.0, 1.0, 1.0, 1 - math.log(2) / entropy])
    chex.assert_trees_all_close(paths.decidedness(states, prior), expected, atol=1e-6)


def test_stage_times_interpolate_and_survive_what_never_happens():
    grid = jnp.asarray([1.0, 0.75, 0.5, 0.25, 0.0])
    decided = jnp.asarray([0.0, 0.1, 0.6, 0.5, 1.0])
    start, end = paths.stage_times(decided, grid, 0.05, 0.75)
    assert float(start) == pytest.approx(0.875) and float(end) == pytest.approx(0.125)
    # a fifth of the way from .1 at .75 to .6 at .5, and three quarters of that from .5 at .25 to 1 at 0
    parts = paths.stage_times(decided, grid, 0.2, 0.875)
    assert [float(t) for t in parts] == pytest.approx([0.7, 0.0625])
    never, late = paths.stage_times(jnp.zeros(5), grid)
    assert float(never) == 0.0 and float(late) == 0.0
    assert float(paths.stage_times(decided + 0.2, grid)[0]) == 1.0


def test_the_stages_follow_each_other_and_guidance_hurries_them():
    """1 > t_12 > t_23 > 0, both earlier (at more noise) for a stronger omega; the triangle delays the first."""
    grid, path = ensemble()
    grid, path = grid[::4], path[:, ::4]
    prior = jnp.asarray(three_stages.SHARES, jnp.float32)

    def of_run(p):
        decided = jnp.mean(paths.decidedness(three_stages.posteriors(p, grid), prior), axis=1)
        return jnp.stack(paths.stage_times(decided, grid))

    times = np.asarray(jax.jit(lambda: jax.lax.map(of_run, path))())
    assert np.all((times[:, 0] < 1) & (times[:, 0] > times[:, 1]) & (times[:, 1] > 0.2))
    assert np.all(np.diff(times[:4], axis=0) > 0)
    assert np.all(times[4:, 0] < times[1:4, 0])


# ---- transformations


def test_measures_are_differentiable_where_paths_meet():
    """Values and gradients are finite for zero norms, equal pairs, no gap and certain modes."""
    zero, other = jnp.zeros((3, 4, 2)), jnp.ones((3, 4, 2))
    rf, t = three_stages.SCHEDULE, jnp.full(4, 0.5)
    certain = jnp.asarray([[1.0, 0.0], [0.5, 0.5]])
    cases = [
        lambda x: paths.norm_ratio(x, other), lambda x: paths.pair_contraction(x, x), paths.coherence,
        lambda x: paths.score_cosine(rf, x[0], t, x[1], x[2]), lambda x: paths.projection(x, jnp.ones(2)),
        lambda x: paths.decidedness(certain + 0 * x[0, :2], jnp.asarray([0.5, 0.5])),
        lambda x: paths.mode_spread(x, jnp.full((4, 2), 0.5)), lambda x: paths.mean_multiple(x, jnp.ones(2)),
        lambda x: paths.shift_gain(x, x, jnp.ones(2)),
    ]  # fmt: skip
    for function in cases:
        value, pull_back = jax.vjp(jax.jit(function), zero)
        chex.assert_tree_all_finite((value, pull_back(jnp.ones_like(value))))


def test_along_visits_every_time():
    path, grid = jnp.arange(12.0).reshape(3, 2, 2), jnp.asarray([1.0, 0.5, 0.0])
    got = paths.along(lambda x, t: row_dot(x, x) * t, path, grid)
    chex.assert_trees_all_close(got, jnp.sum(path**2, -1) * grid[:, None], rtol=1e-6)

"""Each rule against its closed form, an identity of its paper, or reference values worked out elsewhere."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import predictions, rules, schedules
from guidance.rules.frequency import assemble, bands
from guidance.rules.stacking import start
from guidance.sampling import ddim
from guidance.shapes import like, row_dot, row_norm
from guidance.types import At, Guided

RF = schedules.rectified_flow()


def _pairs(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(n, d))), jnp.asarray(rng.normal(size=(n, d)))


def _run(rule, positive, reference, omega, x=None, t=0.5, s=0.4, schedule=RF):
    n = positive.shape[0]
    x = jnp.ones_like(positive) if x is None else x
    full = lambda a: jnp.full(n, a, positive.dtype)  # noqa: E731
    return rules.once(rule, positive, reference, jnp.broadcast_to(omega, (n,)), At(x, full(t), full(s), schedule))


# ---- angle domain ---------------------------------------------------------------------------------------------------


def test_adg_1_reference_value(x64):
    """F = (1, 0), B = (1/2, sqrt(3)/2), omega = 0.78: worked out by hand in arXiv 2506.11039's notation."""
    got = rules.angle_domain()(jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.5, math.sqrt(0.75)]]), jnp.asarray([0.78]))
    np.testing.assert_allclose(got[0], [1.31585246, -0.36448431], atol=1e-8)
    np.testing.assert_allclose(jnp.linalg.norm(got), 1.3653997585, atol=1e-10)


def test_adg_2_norm_identity(x64):
    """|A|^2/|F|^2 = 1 + sin(2a) sin(gamma), in [1, 2]."""
    positive, reference = _pairs(20_000, 5)
    omega = jnp.asarray(np.random.default_rng(1).exponential(3.0, 20_000))
    got = rules.angle_domain()(positive, reference, omega)
    cosine = row_dot(positive, reference) / (row_norm(positive) * row_norm(reference))
    gamma = jnp.arccos(jnp.clip(cosine, -1, 1))
    a = jnp.minimum(omega * gamma, math.pi / 3)
    ratio = row_dot(got, got) / row_dot(positive, positive)
    np.testing.assert_allclose(ratio, 1 + jnp.sin(2 * a) * jnp.sin(gamma), atol=1e-10)
    assert float(ratio.min()) >= 1 - 1e-12 and float(ratio.max()) <= 2 + 1e-12


def test_adg_3_small_angles_join_the_linear_rule(x64):
    """On both sides of the switch the rule differs from CFG by terms of second order in the angle."""
    positive = jnp.asarray([[1.0, 0.0, 0.0]])
    for angle in (1e-4, 0.9e-3, 1.1e-3):
        reference = jnp.asarray([[math.cos(angle), math.sin(angle), 0.0]])
        gap = rules.angle_domain()(positive, reference, jnp.asarray([2.0])) - rules.cfg(
            positive, reference, jnp.asarray([2.0])
        )
        assert float(jnp.max(jnp.abs(gap))) < 10 * angle**2


def test_adg_turns_by_the_capped_angle(x64):
    """For |F| = |B| the direction of A - (A along B's plane) is at the angle a from F, on the side away from B."""
    positive, reference = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[0.0, 1.0]])
    got = rules.angle_domain()(positive, reference, jnp.asarray([100.0]))[0]
    np.testing.assert_allclose(got, [math.cos(math.pi / 3) + math.sin(math.pi / 3), 0.0], atol=1e-12)


# ---- projections ----------------------------------------------------------------------------------------------------


def test_apg_1_identities(x64):
    """eta = 0 without memory: <out - c, c> = 0 and |out|^2 = |c|^2 + omega^2 |g_perp|^2; the cap holds |g| to r."""
    positive, reference = _pairs(100, 5)
    out = _run(rules.apg(0.0, jnp.inf, 0.0), positive, reference, 2.5).x0
    gap = positive - reference
    perpendicular = gap - like(row_dot(gap, positive) / row_dot(positive, positive), gap) * positive
    np.testing.assert_allclose(row_dot(out - positive, positive), 0, atol=1e-10)
    expected = row_dot(positive, positive) + 2.5**2 * row_dot(perpendicular, perpendicular)
    np.testing.assert_allclose(row_dot(out, out), expected, rtol=1e-12)
    capped = _run(rules.stack(rules.norm_cap(0.7), rules.cfg), positive, reference, 1.0).x0 - positive
    np.testing.assert_allclose(row_norm(capped), jnp.minimum(row_norm(gap), 0.7), rtol=1e-12)


@pytest.mark.parametrize("eta, expected", [(0.0, [(1, 4), (1, 4), (1, 4)]), (0.5, [(2.5, 4), (2.5, 4), (2.5, 4)])])
def test_apg_by_hand(eta, expected, x64):
    """Memory first, then the cap, then the projection; the memory is of what was not capped.

    D_c = (1, 0), gap (3, 4) at every step, cap 2.5, beta = -1/2, omega = 2. With memory the gap is (3, 4), then
    (3, 4)/2, then 3/4 (3, 4), of lengths 5, 2.5 and 3.75: capped, it is (1.5, 2) each time.
    """
    stage = rules.as_stage(rules.apg(eta, 2.5, -0.5))
    positive, reference = jnp.asarray([[1.0, 0.0]]), jnp.asarray([[-2.0, -4.0]])
    at = At(jnp.ones((1, 2)), jnp.full(1, 0.5), jnp.full(1, 0.4), RF)
    state = stage.init(at.x)
    for memory, answer in zip((1.0, 0.5, 0.75), expected, strict=True):
        state, branches = stage.apply(state, start(positive, reference, jnp.full(1, 2.0)), at)
        np.testing.assert_allclose(branches.x0[0], answer, rtol=1e-12)
        np.testing.assert_allclose(jax.tree.leaves(state)[0][0], memory * np.array([3.0, 4.0]), rtol=1e-12)


def test_tcf_1_the_gram_route_is_the_singular_value_decomposition(x64):
    """u' = <u, v1> v1 with v1 from a full SVD of [u; c] in eps space; |u'| <= |u|."""
    positive, reference = _pairs(50, 6)
    x = _pairs(50, 6, seed=3)[0]
    t = jnp.full(50, 0.6)
    got = _run(rules.tangential(), positive, reference, 1.0, x, 0.6).reference
    c, u = (predictions.eps_from_x0(RF, x, p, t) for p in (positive, reference))
    v1 = jnp.linalg.svd(jnp.stack([u, c], axis=1), full_matrices=False)[2][:, 0]
    expected = like(row_dot(u, v1), u) * v1
    got_eps = predictions.eps_from_x0(RF, x, got, t)
    np.testing.assert_allclose(got_eps, expected, atol=1e-10)
    assert bool(jnp.all(row_norm(got_eps) <= row_norm(u) + 1e-12))


def test_tcfg_leaves_parallel_noise_predictions_alone(x64):
    c, _ = _pairs(4, 5)
    x, t = jnp.ones((4, 5)), jnp.full(4, 0.5)
    positive, reference = (predictions.x0_from("eps", RF, x, e, t) for e in (c, c / 2.5))
    got = _run(rules.tcfg(), positive, reference, 3.0, x).x0
    np.testing.assert_allclose(got, rules.cfg(positive, reference, jnp.full(4, 3.0)), atol=1e-10)


def test_tcfg_is_finite_and_continuous_at_pure_noise(x64):
    """At t = 1 eps_c = eps_u = x/sigma; the limit of the damped gap exists."""
    positive, reference = _pairs(10, 4)
    x = _pairs(10, 4, seed=7)[0]
    at_end = _run(rules.tcfg(), positive, reference, 2.0, x, t=1.0, s=0.9).x0
    near = _run(rules.tcfg(), positive, reference, 2.0, x, t=1 - 1e-7, s=0.9).x0
    np.testing.assert_allclose(at_end, near, atol=1e-5)


def test_png_1_perpendicular_negatives(x64):
    """A negative parallel to the positive gap does nothing, strength 0 is CFG, and the change is orthogonal to it."""
    positive, reference = _pairs(20, 5)
    omega, gap = jnp.full(20, 2.0), positive - reference
    plain = rules.cfg(positive, reference, omega)
    parallel = (reference - 0.7 * gap)[None]
    np.testing.assert_allclose(rules.perp_neg(positive, reference, omega, parallel, jnp.ones(1)), plain, atol=1e-10)
    other = _pairs(20, 5, seed=5)[0][None]
    np.testing.assert_allclose(rules.perp_neg(positive, reference, omega, other, jnp.zeros(1)), plain, atol=1e-12)
    change = rules.perp_neg(positive, reference, omega, other, jnp.ones(1)) - plain
    np.testing.assert_allclose(row_dot(change, gap), 0, atol=1e-10)
    away = row_dot(change, other[0] - reference)  # a negative pushes away from itself
    assert bool(jnp.all(away < 0))
    # several add up, each with its own strength; the scale is 1 + omega = 3
    pair = jnp.stack([other[0], _pairs(20, 5, seed=6)[0]])
    moved = rules.perp_neg(positive, reference, omega, pair, jnp.asarray([0.5, 2.0])) - plain
    alone = [rules.perp_neg(positive, reference, omega, one[None], jnp.ones(1)) - plain for one in pair]
    np.testing.assert_allclose(moved, 0.5 * alone[0] + 2 * alone[1], atol=1e-10)


# ---- sizes ----------------------------------------------------------------------------------------------------------


def test_res_1_rescale_gives_the_standard_deviation_of_the_conditional(x64):
    positive, reference = _pairs(20, 6)
    out = _run(rules.cfg_rescale(1.0), positive, reference, 4.0).x0
    np.testing.assert_allclose(jnp.std(out, axis=-1), jnp.std(positive, axis=-1), rtol=1e-12)
    half = _run(rules.cfg_rescale(0.5), positive, reference, 4.0).x0
    plain = rules.cfg(positive, reference, jnp.full(20, 4.0))
    np.testing.assert_allclose(half, (out + plain) / 2, rtol=1e-12)


def test_ep_cfg_keeps_the_energy_and_the_direction(x64):
    positive, reference = _pairs(20, 6)
    out, plain = _run(rules.ep_cfg(), positive, reference, 4.0).x0, rules.cfg(positive, reference, jnp.full(20, 4.0))
    np.testing.assert_allclose(row_norm(out), row_norm(positive), rtol=1e-12)
    np.testing.assert_allclose(row_dot(out, plain), row_norm(out) * row_norm(plain), rtol=1e-12)


def test_mah_1_the_two_ends(x64):
    """D_u along M: sim = 1 gives CFG; D_u against it: sim = -1 gives w D_c."""
    c, omega = jnp.asarray([[1.0, 1.0]]), jnp.asarray([0.5])
    same, opposite = 0.5 * c, -0.5 * c
    np.testing.assert_allclose(rules.mahiro(c, same, omega), rules.cfg(c, same, omega), atol=1e-12)
    np.testing.assert_allclose(rules.mahiro(c, opposite, omega), 1.5 * c, atol=1e-12)


# ---- gains ----------------------------------------------------------------------------------------------------------


def test_power_law_in_score_space(x64):
    """S = s_c + omega (s_c - s_u) |s_c - s_u|^a, through the conversions to scores and back."""
    positive, reference = _pairs(20, 3)
    x, t = _pairs(20, 3, seed=4)[0], jnp.full(20, 0.6)
    got = _run(rules.power_law(0.9), positive, reference, 3.0, x, 0.6).x0
    c, u = (predictions.x0_to("score", RF, x, p, t) for p in (positive, reference))
    score = c + 3.0 * (c - u) * like(row_norm(c - u) ** 0.9, c)
    np.testing.assert_allclose(got, predictions.x0_from("score", RF, x, score, t), rtol=1e-9)


def test_gap_normalised_in_eps_space(x64):
    """u + w (c - u)/|c - u|^gamma in eps space."""
    positive, reference = _pairs(20, 3)
    x, t = _pairs(20, 3, seed=4)[0], jnp.full(20, 0.6)
    got = _run(rules.gap_normalised(0.7), positive, reference, 3.0, x, 0.6).x0
    c, u = (predictions.x0_to("eps", RF, x, p, t) for p in (positive, reference))
    eps = u + 4.0 * (c - u) / like(row_norm(c - u) ** 0.7, c)
    np.testing.assert_allclose(got, predictions.x0_from("eps", RF, x, eps, t), rtol=1e-9)


def test_magnitude_aware_is_a_damped_omega(x64):
    positive, reference = _pairs(20, 3)
    got = _run(rules.magnitude_aware(8.0), positive, reference, 3.0).x0
    damped = 3.0 * jnp.exp(-8 * row_norm(positive - reference) / row_norm(reference))
    np.testing.assert_allclose(got, rules.cfg(positive, reference, damped), rtol=1e-12)


def test_eff_1_the_effective_scale_of_cfg_is_its_scale(x64):
    positive, reference = _pairs(20, 3)
    branches = _run(rules.cfg, positive, reference, 2.3)
    np.testing.assert_allclose(rules.effective_scale(branches), 3.3, rtol=1e-12)
    projected = _run(rules.apg(0.0, jnp.inf, 0.0), positive, reference, 2.3)
    gap = projected.positive - projected.reference  # the projected gap is all that is left in these branches
    np.testing.assert_allclose(rules.effective_scale(projected), 3.3, rtol=1e-9)
    assert gap.shape == (20, 3)


CFG_IN_DISGUISE = {
    "apg": lambda: rules.apg(1.0, jnp.inf, 0.0),
    "cfg_rescale": lambda: rules.cfg_rescale(0.0),
    "power_law": lambda: rules.power_law(0.0),
    "gap_normalised": lambda: rules.gap_normalised(0.0),
    "magnitude_aware": lambda: rules.magnitude_aware(0.0),
    "frequency_decoupled": lambda: rules.frequency_decoupled((1.0, 1.0)),
    "zero_init(0)": lambda: rules.stack(rules.cfg, rules.zero_init(0)),
}


@pytest.mark.parametrize("name", sorted(CFG_IN_DISGUISE))
def test_neutral_knobs_give_cfg(name, x64):
    positive, reference = _pairs(20, 4)
    got = _run(CFG_IN_DISGUISE[name](), positive, reference, 2.0).x0
    np.testing.assert_allclose(got, rules.cfg(positive, reference, jnp.full(20, 2.0)), rtol=1e-10, atol=1e-12)


# ---- velocity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", sorted(schedules.SCHEDULES))
def test_zer_1_the_optimised_scale_projects_in_velocity_space(schedule, x64):
    """out = P_u c + w (1 - P_u) c, with P_u the projection on the reference velocity; <c - s u, u> = 0."""
    schedule = schedules.SCHEDULES[schedule]()
    positive, reference = _pairs(20, 4)
    x, t = _pairs(20, 4, seed=4)[0], jnp.full(20, 0.6)
    got = _run(rules.stack(rules.optimized_scale(), rules.cfg), positive, reference, 3.0, x, 0.6, 0.5, schedule).x0
    c, u = (predictions.x0_to("velocity", schedule, x, p, t) for p in (positive, reference))
    along = like(row_dot(c, u) / row_dot(u, u), u) * u
    velocity = along + 4.0 * (c - along)
    np.testing.assert_allclose(predictions.x0_to("velocity", schedule, x, got, t), velocity, rtol=1e-8, atol=1e-9)


def test_zero_init_stands_still_for_its_steps_only():
    positive, reference = _pairs(3, 4)
    x = _pairs(3, 4, seed=4)[0]
    stage, t, s = rules.stack(rules.cfg, rules.zero_init(2)), jnp.full(3, 0.9), jnp.full(3, 0.8)
    state = stage.init(x)
    for i in range(4):
        state, branches = stage.apply(state, start(positive, reference, jnp.ones(3)), At(x, t, s, RF))
        eps = predictions.eps_from_x0(RF, x, branches.x0, t)
        keys = jax.random.split(jax.random.key(0), 3)
        moved = ddim()(keys, x, Guided(branches.x0, eps, {}), t=t, s=s, schedule=RF) - x
        assert (float(jnp.max(jnp.abs(moved))) < 1e-6) == (i < 2)


# ---- frequency ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, levels", [((3, 8, 8, 2), 3), ((3, 7, 9, 1), 2), ((3, 5), 2)])
def test_bands_add_up(shape, levels):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    parts = bands(x, levels)
    assert len(parts) == levels
    chex.assert_trees_all_close(assemble(parts), x, atol=1e-5)


def test_the_lowest_band_alone_moves_the_mean_only():
    """Factors (1, 0) on vectors: the guided prediction is D_c with CFG's mean."""
    positive, reference = _pairs(5, 6)
    got = _run(rules.frequency_decoupled((1.0, 0.0)), positive, reference, 2.0).x0
    mean = lambda a: jnp.mean(a, axis=-1, keepdims=True)  # noqa: E731
    chex.assert_trees_all_close(got, positive + 2 * (mean(positive) - mean(reference)), rtol=1e-5, atol=1e-6)


def test_vectors_have_two_bands():
    with pytest.raises(ValueError, match="two bands"):
        bands(jnp.ones((2, 4)), 3)


# ---- CFG++ ----------------------------------------------------------------------------------------------------------

CPP = [
    (schedules.rectified_flow(), 0.7, 0.55, 1.26),
    ("vp", 0.3, 0.5, 1.73738635),
    ("ve", 2.0, 1.3, 1.71428571),
]


@pytest.mark.parametrize("schedule, t, s, scale", CPP, ids=["rectified flow", "vp", "ve"])
def test_cpp_1_is_ddim_with_an_effective_scale(schedule, t, s, scale, x64):
    """lambda = 0.6; VP from abar 0.3 to 0.5, VE from sigma 2 to 1.3, rectified flow from 0.7 to 0.55."""
    if schedule == "vp":
        schedule = schedules.cosine()
        t, s = (float(schedule.time(jnp.log(jnp.asarray(abar / (1 - abar))))) for abar in (t, s))
    elif schedule == "ve":
        schedule = schedules.SCHEDULES["edm"]()
        t, s = (float(schedule.time(-2 * jnp.log(jnp.asarray(level)))) for level in (t, s))
    positive, reference = _pairs(6, 3)
    x = _pairs(6, 3, seed=2)[0]
    at = At(x, jnp.full(6, t), jnp.full(6, s), schedule)
    keys = jax.random.split(jax.random.key(0), 6)
    plus = rules.once(rules.cfg_plus_plus(), positive, reference, jnp.full(6, 0.6), at)
    stepped = ddim()(keys, x, Guided(plus.x0, plus.eps, {}), t=at.t, s=at.s, schedule=schedule)
    x0 = rules.cfg(positive, reference, jnp.full(6, scale - 1))
    eps = predictions.eps_from_x0(schedule, x, x0, at.t)
    expected = ddim()(keys, x, Guided(x0, eps, {}), t=at.t, s=at.s, schedule=schedule)
    np.testing.assert_allclose(stepped, expected, atol=1e-7)

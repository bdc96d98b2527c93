"""One battery over all rules: what must hold for every one of them, whatever its formula."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import registry
from guidance import guides, rules, sampling, schedules, weights
from guidance.rules.stacking import as_stage, start
from guidance.shapes import like
from guidance.truth import mixtures
from guidance.types import At
from tests import oracles
from tests.knobs import floating
from tests.named import needed
from tests.samplers import paired


def _maker(member):
    rule = getattr(rules, member.maker)
    return (lambda: rule) if member.plain else functools.partial(rule, **needed(member))


# every rule that a config can name, at the library's knobs, and what needs a person to build it
RULES = {name: _maker(member) for name, member in registry.named("rule").items()} | {
    "unguided": lambda: rules.unguided,
    "annealed": lambda: rules.annealed(lambda t, size, lam: lam / (1 + size)),
    "apg without memory": lambda: rules.apg(0.3, 2.0, 0.0),
    "mahiro_batch": lambda: rules.mahiro_batch,
    "optimized_scale": lambda: rules.stack(rules.optimized_scale(), rules.cfg),
    "channels": lambda: rules.stack(rules.cfg, rules.channels([True, False])),
    "a long stack": lambda: rules.stack(
        rules.momentum(-0.5), rules.norm_cap(1.0), rules.project(0.0), rules.angle_domain(), rules.rescale(0.5)
    ),
}
# rules for which omega = 0 is not the conditional branch, and why
NOT_NEUTRAL = {
    "annealed": "as cfg_plus_plus",
    "gap_normalised": "the scale 1 + omega itself is divided by the gap",
    "cfg_plus_plus": "its weight is lambda, and 0 is the reference",
    "cfg_zero_star": "its first step stands still",
}
COUPLED = {"mahiro_batch"}
BATCH = 4
OMEGA = jnp.asarray([0.5, 1.0, 3.0, 7.0])
T, S = jnp.asarray([0.3, 0.5, 0.7, 1.0]), jnp.asarray([0.2, 0.1, 0.6, 0.9])
NULL = 4


def _branches(shape, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(BATCH, *shape)), jnp.float32) for _ in range(3))


def _apply(rule, positive, reference, omega, x, schedule=None, t=T, s=S):
    at = At(x, t, s, schedule or schedules.rectified_flow())
    out = rules.once(rule, positive, reference, omega, at)
    return out.x0, out.eps


def test_the_battery_is_complete():
    """Every exported rule is in it, those that no config can name too; the others are parts and helpers."""
    helpers = {"as_stage", "stack"}
    assert {member.name for member in registry.members("rule")} <= RULES.keys()
    assert {m.name for m in registry.members("stage") if m.withheld} == helpers


@pytest.mark.parametrize("shape", [(2,), (8, 8, 2)], ids=["vectors", "images"])
@pytest.mark.parametrize("name", sorted(set(RULES) - set(NOT_NEUTRAL)))
def test_omega_zero_is_the_conditional_branch(name, shape):
    positive, reference, x = _branches(shape)
    x0, _ = _apply(RULES[name](), positive, reference, jnp.zeros(BATCH), x)
    chex.assert_trees_all_equal(x0, positive)  # to the last bit


# every rule on vectors and on images, under two schedules; every schedule under eight rules
PLACES = [(*place, (2,)) for place in paired(sorted(RULES))] + [(name, "cosine", (8, 8, 2)) for name in sorted(RULES)]


@pytest.mark.parametrize("name, schedule, shape", PLACES)
def test_jit_changes_nothing_and_all_is_finite(name, schedule, shape):
    positive, reference, x = _branches(shape)
    run = functools.partial(_apply, RULES[name](), schedule=schedules.SCHEDULES[schedule]())
    eager, jitted = run(positive, reference, OMEGA, x), jax.jit(run)(positive, reference, OMEGA, x)
    chex.assert_tree_all_finite(eager)
    chex.assert_trees_all_close(eager, jitted, rtol=2e-5, atol=2e-5)
    assert eager[0].shape == positive.shape and eager[0].dtype == jnp.float32


@pytest.mark.parametrize("name", sorted(set(RULES) - COUPLED))
def test_a_batch_equals_its_singles(name):
    positive, reference, x = _branches((2,))
    rule = RULES[name]()
    whole, _ = _apply(rule, positive, reference, OMEGA, x)
    for i in range(BATCH):
        one = slice(i, i + 1)
        single, _ = _apply(rule, positive[one], reference[one], OMEGA[one], x[one], t=T[one], s=S[one])
        chex.assert_trees_all_close(single[0], whole[i], rtol=1e-5, atol=1e-6)


def test_the_published_mahiro_couples_its_batch():
    positive, reference, x = _branches((2,))
    whole, _ = _apply(rules.mahiro_batch, positive, reference, OMEGA, x)
    single, _ = _apply(rules.mahiro_batch, positive[:1], reference[:1], OMEGA[:1], x[:1], t=T[:1], s=S[:1])
    assert float(jnp.max(jnp.abs(single[0] - whole[0]))) > 1e-3


DEGENERATE = {
    "equal": ([1.0, 2.0], [1.0, 2.0]),
    "reference zero": ([1.0, 2.0], [0.0, 0.0]),
    "positive zero": ([0.0, 0.0], [1.0, 2.0]),
    "both zero": ([0.0, 0.0], [0.0, 0.0]),
    "orthogonal": ([1.0, 1.0], [1.0, -1.0]),
    "parallel": ([1.0, 2.0], [2.0, 4.0]),
    "anti-parallel": ([1.0, 2.0], [-1.0, -2.0]),
}


@pytest.mark.parametrize("where", sorted(DEGENERATE))
@pytest.mark.parametrize("name", sorted(RULES))
def test_values_and_gradients_are_finite_at_degenerate_branches(name, where):
    positive, reference = (jnp.broadcast_to(jnp.asarray(a), (BATCH, 2)) for a in DEGENERATE[where])
    x = _branches((2,))[2]

    knobs, _ = floating(as_stage(RULES[name]()))
    chex.assert_tree_all_finite(_value_and_gradient(name)(positive, reference, OMEGA, knobs, x))
    nothing = jax.tree.map(jnp.zeros_like, (OMEGA, knobs))
    chex.assert_tree_all_finite(_value_and_gradient(name)(positive, reference, *nothing, x))


@functools.cache
def _value_and_gradient(name):
    _, rule = floating(as_stage(RULES[name]()))

    def total(positive, reference, omega, knobs, x):
        x0, eps = _apply(rule(knobs), positive, reference, omega, x)
        return jnp.sum(x0) if eps is None else jnp.sum(x0) + jnp.sum(eps)

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3)))


@given(
    sizes=st.tuples(st.floats(-12, 6), st.floats(-12, 6)),
    likeness=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
    sign=st.sampled_from([-1.0, 1.0]),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("name", sorted(RULES))
def test_values_and_gradients_are_finite_at_any_size_and_angle(name, sizes, likeness, sign, seed):
    """Branches of length 1e-12 to 1e6, from parallel and anti-parallel to unrelated, float32."""
    positive, other, x = _branches((2,), seed)
    reference = sign * positive + likeness * other
    knobs, _ = floating(as_stage(RULES[name]()))
    arguments = positive * 10 ** sizes[0], reference * 10 ** sizes[1], OMEGA, knobs, x
    chex.assert_tree_all_finite(_value_and_gradient(name)(*arguments))


@pytest.mark.parametrize("name", sorted(RULES))
def test_works_inside_a_guide_and_counts_its_evaluations(name):
    """Sampling with an interval: the reference is evaluated on every step, or only where omega is not zero."""
    toy, grid = oracles.toy2(), sampling.uniform_grid(8)
    rule, labels = RULES[name](), jnp.arange(4)
    guide = guides.guided(rule, weights.interval(0.6, 0.3, 0.7), NULL)

    @jax.jit
    def run(guide, x):
        denoise = mixtures.denoise(toy, schedules.rectified_flow())
        key = jax.random.key(1)
        return sampling.sample(key, denoise, guide, sampling.ddim(), schedules.rectified_flow(), grid, x, labels)

    out = run(guide, jax.random.normal(jax.random.key(0), (4, 2)))
    chex.assert_tree_all_finite(out.x0)
    guided_steps = int(np.sum((np.asarray(grid[:-1]) > 0.3) & (np.asarray(grid[:-1]) <= 0.7)))
    expected = guided_steps if as_stage(rule).idle is not None else 8
    assert {k: int(v) for k, v in out.nfe.items()} == {"positive": 8, "reference": expected}


@pytest.mark.parametrize("name", sorted(set(RULES) - set(NOT_NEUTRAL) - {"apg", "a long stack"}))
def test_skipping_the_reference_changes_no_number(name):
    toy, labels = oracles.toy2(), jnp.arange(4)
    schedule, x = schedules.rectified_flow(), jax.random.normal(jax.random.key(0), (4, 2))
    denoise, grid = mixtures.denoise(toy, schedule), sampling.uniform_grid(6)

    @functools.partial(jax.jit, static_argnums=0)
    def run(skip, x):
        guide = guides.guided(RULES[name](), weights.interval(1.5, 0.3, 0.7), NULL, skip)
        return sampling.sample(jax.random.key(1), denoise, guide, sampling.ddim(), schedule, grid, x, labels).x0

    chex.assert_trees_all_close(run(True, x), run(False, x), rtol=1e-5, atol=1e-5)


def test_knobs_are_leaves_and_a_sweep_compiles_once():
    positive, reference, x = _branches((2,))
    traces = []

    @jax.jit
    def run(rule, positive):
        traces.append(1)
        return _apply(rule, positive, reference, OMEGA, x)[0]

    first, second = (run(rules.apg(eta, cap, 0.0), positive) for eta, cap in ((0.0, 1.0), (0.5, 2.0)))
    assert len(traces) == 1
    assert float(jnp.max(jnp.abs(first - second))) > 1e-3


def test_a_stack_runs_from_left_to_right():
    """Capping and then projecting is not projecting and then capping, and each is what it says."""
    positive, reference, x = _branches((2,))
    omega = jnp.ones(BATCH)
    gap = positive - reference
    capped = gap * jnp.minimum(1, 0.5 / jnp.linalg.norm(gap, axis=-1, keepdims=True))

    def off_axis(g):
        along = jnp.sum(g * positive, -1, keepdims=True) / jnp.sum(positive**2, -1, keepdims=True)
        return g - along * positive

    projected = off_axis(gap)
    then_capped = projected * jnp.minimum(1, 0.5 / jnp.linalg.norm(projected, axis=-1, keepdims=True))
    one = rules.stack(rules.norm_cap(0.5), rules.project(0.0), rules.cfg)
    other = rules.stack(rules.project(0.0), rules.norm_cap(0.5), rules.cfg)
    chex.assert_trees_all_close(_apply(one, positive, reference, omega, x)[0], positive + off_axis(capped), rtol=1e-5)
    chex.assert_trees_all_close(_apply(other, positive, reference, omega, x)[0], positive + then_capped, rtol=1e-5)
    assert float(jnp.max(jnp.abs(off_axis(capped) - then_capped))) > 1e-2


def test_an_outcome_stage_left_of_the_combination_is_lost():
    """Documented: a combination starts again from the two predictions."""
    positive, reference, x = _branches((2,))
    early = rules.stack(rules.rescale(1.0), rules.cfg)
    chex.assert_trees_all_close(
        _apply(early, positive, reference, OMEGA, x)[0], rules.cfg(positive, reference, OMEGA), rtol=1e-6
    )


def test_an_empty_stack_is_refused():
    with pytest.raises(ValueError, match="at least one rule"):
        rules.stack()


def test_channels_guides_the_chosen_channels_only():
    positive, reference, x = _branches((8, 8, 4))
    rule = rules.stack(rules.cfg, rules.channels(jnp.arange(4) < 3))
    x0, _ = _apply(rule, positive, reference, OMEGA, x)
    guided = rules.cfg(positive, reference, OMEGA)
    chex.assert_trees_all_equal((x0[..., :3], x0[..., 3:]), (guided[..., :3], positive[..., 3:]))


def test_the_memory_of_momentum_runs_through_a_sampling_run_and_starts_anew():
    """m_k = g_k + beta m_{k-1}, m_{-1} = 0, on constant branches: g (1 + beta + ... + beta^k)."""
    stage = as_stage(rules.stack(rules.momentum(-0.5), rules.cfg))
    positive, reference, x = _branches((2,))
    at, state = At(x, T, S, schedules.rectified_flow()), stage.init(x)
    for factor in (1.0, 0.5, 0.75, 0.625):
        state, branches = stage.apply(state, start(positive, reference, OMEGA), at)
        expected = positive + like(OMEGA, x) * factor * (positive - reference)
        chex.assert_trees_all_close(branches.x0, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(stage.init(x), as_stage(rules.stack(rules.momentum(-0.5), rules.cfg)).init(x))

"""Linear rules: identities of classifier-free guidance, exact to rounding; which rules are skipped at omega = 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from guidance import guides, rules, schedules, weights
from guidance.sampling import ddim, sample, uniform_grid
from guidance.types import At
from tests.members import every_rule

EVERY_RULE = [rules.cfg, rules.unguided]


def _pair(seed=0, shape=(4, 5)):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=shape)), jnp.asarray(rng.normal(size=shape))


@settings(deadline=None, max_examples=25)
@given(omega=st.floats(-3, 20), seed=st.integers(0, 100))
def test_conv_1_three_ways_to_write_cfg(omega, seed):
    """CONV-1: u + w d = c + omega d = (1 + omega) c - omega u, w = 1 + omega."""
    with jax.enable_x64(True):
        c, u = _pair(seed)
        guided = rules.cfg(c, u, jnp.full(4, omega))
        w = rules.scale_from_omega(omega)
        chex.assert_trees_all_close(guided, u + w * (c - u), rtol=1e-12, atol=1e-12)
        chex.assert_trees_all_close(guided, (1 + omega) * c - omega * u, rtol=1e-12, atol=1e-12)


def test_conv_3_composition_in_scale_form(x64):
    """CONV-3: guiding a guided prediction multiplies the scales, C_b(C_a(v)) = C_ab(v) at fixed u."""
    c, u = _pair(1)
    by_scale = lambda v, scale: rules.cfg(v, u, rules.omega_from_scale(jnp.full(4, scale)))  # noqa: E731
    chex.assert_trees_all_close(by_scale(by_scale(c, 1.7), 2.2), by_scale(c, 1.7 * 2.2), atol=1e-12)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_conv_4_the_neutral_weight_returns_the_positive_branch(rule):
    """CONV-4, to the last bit."""
    c, u = _pair(2)
    chex.assert_trees_all_equal(rule(c, u, jnp.zeros(4)), c)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_equal_branches_are_a_fixed_point(rule):
    c, _ = _pair(3)
    chex.assert_trees_all_equal(rule(c, c, jnp.arange(4.0)), c)


def test_minus_one_returns_the_reference(x64):
    c, u = _pair(4)
    chex.assert_trees_all_close(rules.cfg(c, u, -jnp.ones(4)), u, atol=1e-15)


def test_unguided_ignores_the_weight():
    c, u = _pair(5)
    chex.assert_trees_all_equal(rules.unguided(c, u, jnp.full(4, 7.0)), c)


def test_orthogonal_directions_are_untouched(x64):
    """ID-3: components orthogonal to the gap are those of the positive branch."""
    c, u = _pair(6)
    gap = c - u
    other, _ = _pair(7)
    normal = other - jnp.sum(other * gap, -1, keepdims=True) / jnp.sum(gap**2, -1, keepdims=True) * gap
    moved = rules.cfg(c, u, jnp.full(4, 3.0)) - c
    chex.assert_trees_all_close(jnp.sum(moved * normal, -1), jnp.zeros(4), atol=1e-12)


def test_effective_scale(x64):
    """EFF-1: <guided - u, d>/|d|^2 = scale."""
    c, u = _pair(8)
    guided = rules.cfg(c, u, rules.omega_from_scale(jnp.full(4, 3.3)))
    scale = jnp.sum((guided - u) * (c - u), -1) / jnp.sum((c - u) ** 2, -1)
    chex.assert_trees_all_close(scale, jnp.full(4, 3.3), atol=1e-12)


@pytest.mark.parametrize("rule", EVERY_RULE)
def test_each_sample_has_its_own_weight(rule):
    """Batch independence: a batch of images equals its singles, each with its own omega."""
    c, u = _pair(9, (4, 3, 3, 2))
    omega = jnp.asarray([0.0, 1.0, 2.5, -1.0])
    batch = rule(c, u, omega)
    for i in range(4):
        chex.assert_trees_all_equal(rule(c[i : i + 1], u[i : i + 1], omega[i : i + 1])[0], batch[i])


def test_scale_and_omega_are_inverses():
    assert rules.scale_from_omega(0) == 1
    assert rules.omega_from_scale(7.5) == 6.5
    assert rules.omega_from_scale(rules.scale_from_omega(2.25)) == 2.25


def test_keeps_the_dtype():
    c, u = (a.astype(jnp.bfloat16) for a in _pair(10))
    assert rules.cfg(c, u, jnp.ones(4, jnp.bfloat16)).dtype == jnp.bfloat16


# ---- rules that are skipped at omega = 0


@pytest.mark.parametrize("name", every_rule())
def test_what_says_that_it_is_neutral_is(name):
    """D_c at omega = 0, at any place of a step: else the reference must be asked there too."""
    stage = rules.as_stage(every_rule()[name])
    if stage.idle is None:
        pytest.skip("asks for the reference on every step")
    c, u = (jnp.asarray(a, jnp.float32) for a in np.random.default_rng(5).normal(size=(2, 4, 2)))
    t = jnp.asarray([0.9, 0.6, 0.4, 0.1])
    out = rules.once(stage, c, u, jnp.zeros(4), At(c + 1, t, t / 2, schedules.cosine()))
    chex.assert_trees_all_close(out.x0, c, rtol=1e-5, atol=1e-6)


def _reference(c, u, w):
    return u


@rules.neutral
def _declared(c, u, w):
    return c + w[:, None] ** 2 * (c - u)


@pytest.mark.parametrize("rule, references", [(_reference, 4), (_declared, 0), (Partial(_declared), 0)])
def test_own_rules_are_skipped_only_if_they_say_so(rule, references):
    """`guided(lambda c, u, w: u, ...)` is no identity at omega = 0: it goes where the null branch goes."""
    x, labels, grid = jnp.ones((3, 2)), jnp.arange(3), uniform_grid(4)
    denoise = Partial(lambda x, t, cond: x * 0 + cond[:, None])
    guide = guides.guided(rule, weights.constant(0.0), 7)
    out = jax.jit(sample)(jax.random.key(0), denoise, guide, ddim(), schedules.rectified_flow(), grid, x, labels)
    assert int(out.nfe["reference"]) == references
    np.testing.assert_allclose(out.x0[:, 0], jnp.full(3, 7) if references else labels, rtol=1e-6)

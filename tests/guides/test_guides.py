"""Guides: rule, weight and branches put together; branch skipping and its bookkeeping."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, rules, schedules, weights
from guidance.shapes import null_like
from guidance.truth import mixtures
from tests import oracles

SCHEDULE = schedules.rectified_flow()
LABELS = jnp.asarray([0, 1, 2, 3, 0])
T, S = jnp.asarray([0.9, 0.7, 0.5, 0.3, 0.1]), jnp.asarray([0.8, 0.6, 0.4, 0.2, 0.0])


def _setting():
    toy = oracles.toy2()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)
    return mixtures.denoise(toy, SCHEDULE), toy.null, x


@jax.jit
def _jitted(guide, denoise, schedule, x):
    state, out = guide.apply(guide.init(x), denoise, schedule, x, t=T, s=S, cond=LABELS)
    assert state == ()
    return out


def _apply(guide, denoise, x, schedule=SCHEDULE):
    return _jitted(guide, denoise, schedule, x)


def test_cfg_is_the_rule_on_the_two_branches():
    denoise, null, x = _setting()
    positive, reference = denoise(x, T, LABELS), denoise(x, T, jnp.full(5, null))
    got = _apply(guides.cfg(weights.constant(1.5), null), denoise, x).x0
    chex.assert_trees_all_close(got, positive + 1.5 * (positive - reference), rtol=1e-5, atol=1e-6)


def test_omega_minus_one_is_the_reference_branch():
    denoise, null, x = _setting()
    got = _apply(guides.cfg(weights.constant(-1.0), null), denoise, x).x0
    chex.assert_trees_all_close(got, denoise(x, T, jnp.full(5, null)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip", [True, False])
def test_omega_zero_is_unguided(skip):
    denoise, null, x = _setting()
    got = _apply(guides.cfg(weights.constant(0.0), null, skip), denoise, x)
    expected = _apply(guides.unguided(), denoise, x)
    chex.assert_trees_all_close((got.x0, got.eps), (expected.x0, expected.eps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_both_members_describe_the_same_point(name):
    """x = alpha x0 + sigma eps."""
    denoise, null, x = _setting()
    schedule = schedules.SCHEDULES[name]()
    for guide in (guides.cfg(weights.constant(2.0), null), guides.unguided()):
        out = _apply(guide, denoise, x, schedule=schedule)
        chex.assert_trees_all_close(schedules.diffuse(schedule, out.x0, out.eps, T), x, rtol=1e-5, atol=1e-5)


def test_any_rule_and_any_weight():
    """`guided` composes: an own rule, here the other branch plus omega, and a weight that differs in the batch."""
    denoise, null, x = _setting()

    def reference_plus_omega(positive, reference, omega):
        return reference + omega[:, None]

    out = _apply(guides.guided(reference_plus_omega, weights.interval(1.0, 0.2, 0.8), null, skip=False), denoise, x)
    expected = denoise(x, T, jnp.full(5, null)) + jnp.asarray([0.0, 1.0, 1.0, 1.0, 0.0])[:, None]
    chex.assert_trees_all_close(out.x0, expected, rtol=1e-5, atol=1e-6)


def test_the_two_branches_are_one_network_call():
    rows = []

    def denoise(x, t, cond):
        rows.append((x.shape[0], np.asarray(cond).tolist()))
        return x

    x = jnp.ones((2, 3))
    positive, reference = guides.both_branches(denoise, x, jnp.ones(2), jnp.asarray([4, 5]), 9)
    assert rows == [(4, [4, 5, 9, 9])]
    assert positive.shape == reference.shape == (2, 3)


def test_null_of_a_structured_condition():
    cond = {"mu": jnp.arange(6.0).reshape(2, 3), "label": jnp.asarray([1, 2])}
    null = null_like(cond, {"mu": jnp.asarray([7.0, 8.0, 9.0]), "label": 5})
    chex.assert_trees_all_equal(null, {"mu": jnp.asarray([[7.0, 8.0, 9.0]] * 2), "label": jnp.asarray([5, 5])})
    assert null["label"].dtype == jnp.int32


def test_branches_of_a_structured_condition_are_exact():
    """HG has a continuous condition; its two branches are known in closed form."""
    x, cond = oracles.hg_sample(jax.random.key(0), 5)
    positive, reference = guides.both_branches(oracles.hg_denoise(SCHEDULE), x, T, cond, oracles.HG_NULL)
    alpha, sigma = 1 - T[:, None], T[:, None]
    k_u = alpha * 1.49 / (alpha**2 * 1.49 + sigma**2)
    k_c = alpha * 0.49 / (alpha**2 * 0.49 + sigma**2)
    chex.assert_trees_all_close(reference, k_u * x, rtol=1e-5)
    chex.assert_trees_all_close(positive, cond["mu"] + k_c * (x - alpha * cond["mu"]), rtol=1e-4, atol=1e-5)


def test_evaluations_are_counted_by_branch():
    denoise, null, x = _setting()
    count = lambda guide: {k: int(v) for k, v in _apply(guide, denoise, x).nfe.items()}  # noqa: E731
    assert count(guides.unguided()) == {"positive": 1}
    assert count(guides.cfg(weights.constant(2.0), null)) == {"positive": 1, "reference": 1}
    assert count(guides.cfg(weights.constant(0.0), null)) == {"positive": 1, "reference": 0}
    assert count(guides.cfg(weights.constant(0.0), null, skip=False)) == {"positive": 1, "reference": 1}
    # the branch is needed as soon as one sample of the batch needs it
    assert count(guides.cfg(weights.interval(1.0, 0.85, 1.0), null)) == {"positive": 1, "reference": 1}


def test_the_skipped_branch_is_not_evaluated():
    """A denoiser that reports its batch through a callback: n rows where omega is zero, 2 n where it is not."""
    rows = []

    def denoise(x, t, cond):
        jax.debug.callback(lambda n: rows.append(int(n)), x.shape[0])
        return x

    for omega, expected in ((0.0, 5), (1.0, 10)):
        rows.clear()
        _apply(guides.cfg(weights.constant(omega), 4), Partial(denoise), jnp.ones((5, 2))).x0.block_until_ready()
        jax.effects_barrier()
        assert rows == [expected]


def test_gradient_at_a_zero_weight_needs_both_branches():
    """d guided/d omega = D_c - D_u; with `skip` the branch that was not taken has no gradient, as documented."""
    denoise, null, x = _setting()

    def total(omega, skip):
        return jnp.sum(_apply(guides.cfg(weights.constant(omega), null, skip), denoise, x).x0)

    gap = jnp.sum(denoise(x, T, LABELS) - denoise(x, T, jnp.full(5, null)))
    assert float(jax.grad(total)(0.0, False)) == pytest.approx(float(gap), rel=1e-4)
    assert float(jax.grad(total)(0.0, True)) == 0.0
    assert float(jax.grad(total)(1.0, True)) == pytest.approx(float(gap), rel=1e-4)


def test_guides_are_pytrees_whose_leaves_are_knobs():
    guide = guides.guided(rules.cfg, weights.constant(1.5), 4)
    assert 1.5 in jax.tree.leaves(guide)
    assert jax.tree.structure(guide) == jax.tree.structure(guides.cfg(weights.constant(2.5), 4))
    assert jax.tree.structure(guides.unguided()) == jax.tree.structure(guides.unguided())

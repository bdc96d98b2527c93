"""Conditions that are trees. Where the tree is a function of the label, every number is that of the label."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import conditions, guides, learning, rules, sampling, schedules, weights
from guidance.learning import rollout
from guidance.learning.matched import guidance_matched_loss
from guidance.shapes import null_like
from guidance.truth import mixtures
from tests import oracles

SCHEDULE, TOY = schedules.rectified_flow(), oracles.toy2()
GRID, LABELS, NULL = sampling.uniform_grid(4), jnp.arange(4), TOY.null
OMEGAS = jnp.linspace(0.2, 1.7, 16).reshape(4, 4)
DENOISE = mixtures.denoise(TOY, SCHEDULE)


ANGLES = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])  # the last one: null's


def tree(labels):
    """The label beside the direction of its class."""
    return {"class": jnp.asarray(labels), "angle": ANGLES[jnp.asarray(labels)]}


def denoise(x, t, cond):
    """D of the label, NaN for a row whose leaves are not of one label."""
    whole = jnp.all(cond["angle"] == ANGLES[cond["class"]], axis=1)
    return jnp.where(whole[:, None], DENOISE(x, t, cond["class"]), jnp.nan)


BY_LABEL = learning.Model(DENOISE, SCHEDULE, NULL), LABELS, None
BY_TREE = learning.Model(denoise, SCHEDULE, tree(NULL)), tree(LABELS), tree(LABELS)


def weight_of(columns, omegas=OMEGAS):
    return weights.table(GRID, omegas, columns)


GUIDES = {
    "cfg": lambda weight, model, at: guides.cfg(weight, model.null),
    "apg": lambda weight, model, at: guides.guided(rules.apg(), weight, model.null),
    "early stopping": lambda weight, model, at: guides.early_stopping(rules.cfg, weight, model.null),
    "delayed": lambda weight, model, at: guides.delayed(weight, model.null),
    "composed": lambda weight, model, at: guides.composed(weight, model.null, [(weights.constant(-0.3), at(2))]),
    "perpendicular": lambda weight, model, at: guides.perpendicular(weight, model.null, [(0.4, at(1))]),
    "summed": lambda weight, model, at: guides.summed(weight, model.null, [(weight, lambda x, t, cond: 0.9 * x)]),
    "dynamic": lambda weight, model, at: guides.dynamic([0.0, 0.5], lambda x0, t, cond: -x0[:, 0], model.null),
    "rectified": lambda weight, model, at: guides.rectified(weight, model.null),
    "autoguided": lambda weight, model, at: guides.autoguided(rules.cfg, weight, model.denoise),
}


@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.key_reuse  # the same noise under both
def test_guides_and_samplers(name):
    x = jax.random.normal(jax.random.key(0), (8, 2))

    def sample(model, among, columns):
        guide = GUIDES[name](weight_of(columns), model, lambda c: conditions.taken(among, c))
        cond = conditions.repeated(among, 2)
        return sampling.sample(jax.random.key(1), model.denoise, guide, sampling.ddim(), SCHEDULE, GRID, x, cond)

    by_label, by_tree = jax.jit(lambda: (sample(*BY_LABEL), sample(*BY_TREE)))()
    np.testing.assert_allclose(by_tree.x0, by_label.x0, atol=1e-5)
    assert by_tree.nfe == by_label.nfe and np.isfinite(by_label.x0).all()


def test_a_table_finds_the_column_of_a_condition():
    """Permuted columns under permuted conditions are the same weight; a condition that is not listed has none."""
    t, s, cond = jnp.asarray([0.75, 0.25, 1.0]), jnp.asarray([0.5, 0.0, 0.75]), tree([3, 1, NULL])
    order = jnp.asarray([2, 0, 3, 1])
    found = jax.jit(weight_of(conditions.taken(BY_TREE[1], order), OMEGAS[:, order]))(t=t, s=s, cond=cond)
    np.testing.assert_array_equal(found, [OMEGAS[1, 3], OMEGAS[3, 1], np.nan])
    table = weights.tabulated(weight_of(BY_TREE[2]), GRID, conditions.taken(BY_TREE[1], order))
    np.testing.assert_array_equal(table, OMEGAS[:, order])
    half = cond | {"angle": ANGLES[:3]}  # equal in one leaf is not equal
    with pytest.raises(ValueError, match="the condition of row 0 has no weight"):
        weight_of(BY_TREE[2])(t=t, s=s, cond=half)
    with pytest.raises(ValueError, match="the list of conditions must have the structure of cond"):
        weight_of(BY_TREE[2])(t=t, s=s, cond=cond["class"])


def _rewarded(among):
    """A reward that reads the condition: x_1 (1 + label)."""
    return lambda x0, cond: x0[:, 0] * (1 + (cond if among is LABELS else cond["class"]))


OBJECTIVES = {
    "self_consistency": lambda key, model, weight, x0, real, among, settings: learning.self_consistency(
        key, model, weight, x0, conditions.repeated(among, 3), settings, 0.7, _rewarded(among)
    ),
    "score_matching": lambda key, model, weight, x0, real, among, settings: learning.score_matching(
        key, model, weight, x0, conditions.repeated(among, 3), settings
    ),
    "marginal": lambda key, model, weight, x0, real, among, settings: learning.marginal_consistency(
        key, model, weight, x0, conditions.repeated(among, 3), settings
    ),
    "per_condition": lambda key, model, weight, x0, real, among, settings: learning.per_condition_consistency(
        key, model, weight, real, among, settings
    ),
    "rollout": lambda key, model, weight, x0, real, among, settings: rollout.rollout_loss(
        key, model, weight, sampling.ddim(), GRID, real, among, rollout.Rollout(3, segments=2, path_weight=0.5)
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.key_reuse  # the same noise under both
def test_learning_objectives(name):
    """The loss and its gradient in every number of the table."""
    x0, _ = mixtures.sample_joint(jax.random.key(0), TOY, 12)
    real = mixtures.sample(jax.random.key(1), TOY, jnp.repeat(LABELS, 4)).reshape(4, 4, 2)

    def loss(omegas, model, among, columns):
        settings = learning.OneStep(particles=2)
        return OBJECTIVES[name](jax.random.key(2), model, weight_of(columns, omegas), x0, real, among, settings)

    both = [
        jax.value_and_grad(functools.partial(loss, model=m, among=a, columns=c)) for m, a, c in (BY_LABEL, BY_TREE)
    ]
    (label_loss, label_grad), (tree_loss, tree_grad) = jax.jit(lambda omegas: [one(omegas) for one in both])(OMEGAS)
    np.testing.assert_allclose(tree_loss, label_loss, rtol=1e-5)
    np.testing.assert_allclose(tree_grad, label_grad, rtol=1e-4, atol=1e-6)
    assert np.abs(label_grad).max() > 1e-3


def test_dropout_and_the_matched_loss():
    """A dropped row is null in every leaf, the others are as they were; the loss tells the two apart."""
    drop = jnp.asarray([True, False, False, True, False])
    labels = jnp.asarray([1, 2, 3, 0, 0])
    by_label, by_tree = conditions.dropped(labels, NULL, drop), conditions.dropped(tree(labels), tree(NULL), drop)
    np.testing.assert_array_equal(by_label, [NULL, 2, 3, NULL, 0])
    jax.tree.map(np.testing.assert_array_equal, by_tree, tree(by_label))
    np.testing.assert_array_equal(conditions.is_null(by_tree, tree(NULL)), drop)
    np.testing.assert_array_equal(conditions.is_null(by_tree | {"class": labels}, tree(NULL)), [False] * 5)
    x, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.2, 0.8, 5)
    settings = jnp.ones((5, 2)), 1.5
    label_loss = jax.jit(lambda x: guidance_matched_loss(DENOISE, x, t, by_label, NULL, *settings))(x)
    tree_loss = jax.jit(lambda x: guidance_matched_loss(denoise, x, t, by_tree, tree(NULL), *settings))(x)
    assert float(tree_loss) == pytest.approx(float(label_loss), rel=1e-6)


def test_a_learned_weight_sees_the_numbers_of_every_leaf():
    """As it sees the same numbers in one array; a label among them is a number."""
    net = weights.GuidanceNet(condition="features", width=8, depth=2, time_width=4, cond_width=4)
    cond, zero = tree([2, 0, 1]), jnp.zeros(3)
    flat = jnp.concatenate([cond["angle"], cond["class"][:, None].astype(jnp.float32)], axis=1)
    params = net.init(jax.random.key(0), log_snr_t=zero, log_snr_s=zero, cond=cond)
    params = jax.tree.map(lambda a: a + 0.1, params)  # the head starts at zero and would see nothing
    weight = weights.learned(net, params, SCHEDULE)
    t, s = jnp.full(3, 0.6), jnp.full(3, 0.4)
    found = weight(t=t, s=s, cond=cond)
    np.testing.assert_array_equal(found, weight(t=t, s=s, cond=flat))
    assert len(np.unique(found)) == 3


def test_rows_by_hand():
    cond = {"a": jnp.asarray([3, 1]), "b": jnp.asarray([[[0.5], [1.5]], [[2.5], [3.5]]])}
    twice = conditions.repeated(cond, 2)
    np.testing.assert_array_equal(twice["a"], [3, 3, 1, 1])
    np.testing.assert_array_equal(conditions.flat_features(twice)[1:3], [[3, 0.5, 1.5], [1, 2.5, 3.5]])
    assert conditions.size(twice) == 4
    np.testing.assert_array_equal(conditions.taken(twice, jnp.asarray([2, 0]))["a"], [1, 3])


def test_which_conditions_are_labels():
    assert conditions.are_labels(jnp.arange(3)) and conditions.are_labels(np.arange(1))
    for other in (jnp.arange(3.0), jnp.asarray([0, 2, 1]), jnp.zeros((2, 2), int), {"class": jnp.arange(3)}):
        assert not conditions.are_labels(other)


def test_a_null_of_another_structure_is_refused():
    with pytest.raises(ValueError, match="null must have the structure of cond"):
        null_like(tree(LABELS), NULL)
    with pytest.raises(ValueError, match="null must have the structure of cond"):
        guides.both_branches(denoise, jnp.zeros((4, 2)), jnp.ones(4), tree(LABELS), {"class": NULL})


def test_a_guide_for_labels_refuses_trees():
    guide = guides.classifier_chosen(lambda x0: x0)
    with pytest.raises(ValueError, match="the condition must be one class label"):
        guide.apply((), denoise, SCHEDULE, jnp.zeros((4, 2)), t=jnp.ones(4), s=jnp.zeros(4), cond=tree(LABELS))

"""Guides with more than two branches, early stopping, and guidance by a weaker denoiser."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import guides, predictions, rules, sampling, schedules, weights
from guidance.truth import mixtures
from guidance.types import Denoise
from tests import oracles
from tests.knobs import floating
from tests.samplers import paired

RF = schedules.rectified_flow()
LABELS = jnp.asarray([0, 1, 2, 3, 0])
T, S = jnp.asarray([0.9, 0.7, 0.5, 0.3, 0.1]), jnp.asarray([0.8, 0.6, 0.4, 0.2, 0.0])
TWO = weights.constant(2.0)


def _setting():
    toy = oracles.toy2()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)
    return mixtures.denoise(toy, RF), toy.null, x


def _apply(guide, denoise, x, labels=LABELS):
    apply = jax.jit(lambda guide, x: guide.apply(guide.init(x), denoise, RF, x, t=T, s=S, cond=labels)[1])
    return apply(guide, x)


def _at(denoise: Denoise, x, label):
    return denoise(x, T, jnp.full(5, label))


def _counts(out):
    return {name: int(n) for name, n in out.nfe.items()}


def _everything(null):
    weak = Partial(lambda x, t, cond: 0.9 * x)
    logits = Partial(lambda x0: -jnp.sum((x0[:, None, :] - oracles.toy2().means[None]) ** 2, axis=-1))
    return {
        "autoguided": guides.autoguided(rules.cfg, TWO, weak),
        "composed": guides.composed(TWO, null, [(TWO, 1), (weights.constant(-0.5), 2)]),
        "perpendicular": guides.perpendicular(TWO, null, [(1.0, 1), (0.5, 2)]),
        "summed": guides.summed(TWO, null, [(TWO, weak)]),
        "early_stopping": guides.early_stopping(rules.cfg, TWO, null, 0.5),
        "classifier_chosen": guides.classifier_chosen(logits),
        "dynamic": guides.dynamic(jnp.arange(3.0), Partial(lambda x0, t, cond: x0[:, 0]), null),
        "rectified": guides.rectified(TWO, null),
    }


NAMES = sorted(_everything(4))


@pytest.mark.parametrize("name, schedule", paired(NAMES))
def test_sampling_is_finite_counted_and_differentiable(name, schedule):
    toy, schedule = oracles.toy2(), schedules.SCHEDULES[schedule]()
    grid, labels = sampling.uniform_grid(4), jnp.arange(4)
    knobs, guide = floating(_everything(toy.null)[name])

    def total(knobs, x):
        denoise = mixtures.denoise(toy, schedule)
        out = sampling.sample(jax.random.key(1), denoise, guide(knobs), sampling.ddim(), schedule, grid, x, labels)
        return jnp.sum(out.x0), out.nfe

    x = sampling.initial_noise(jax.random.key(0), schedule, grid, (2,), jnp.arange(4))
    (value, nfe), gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(knobs, x)
    chex.assert_tree_all_finite((value, gradient))
    expected = {"positive": 8 if name == "rectified" else 4, "reference": 4}
    expected |= {"others": 4 * {"composed": 2, "perpendicular": 2, "summed": 1}[name]} if "others" in nfe else {}
    counts = {branch: int(n) for branch, n in nfe.items()}
    if name == "early_stopping":
        assert counts["positive"] == 4 and 1 <= counts["reference"] <= 4
    else:
        assert counts == expected


def test_a_weak_network_equal_to_the_strong_one_is_the_identity():
    denoise, _, x = _setting()
    out = _apply(guides.autoguided(rules.cfg, TWO, denoise), denoise, x)
    chex.assert_trees_all_close(out.x0, denoise(x, T, LABELS), rtol=1e-5, atol=1e-6)


def test_autoguidance_moves_away_from_the_weak_network():
    denoise, _, x = _setting()
    weak = Partial(lambda x, t, cond: 0.5 * x)
    out = _apply(guides.autoguided(rules.cfg, TWO, weak), denoise, x)
    chex.assert_trees_all_close(out.x0, 3 * denoise(x, T, LABELS) - 2 * 0.5 * x, rtol=1e-5, atol=1e-5)


def test_composed_is_the_sum_of_the_gaps():
    denoise, null, x = _setting()
    own, base = denoise(x, T, LABELS), _at(denoise, x, null)
    expected = own + 2 * (own - base) + 0.7 * (_at(denoise, x, 1) - base) - 0.5 * (_at(denoise, x, 2) - base)
    guide = guides.composed(TWO, null, [(weights.constant(0.7), 1), (weights.constant(-0.5), 2)])
    out = _apply(guide, denoise, x)
    chex.assert_trees_all_close(out.x0, expected, rtol=1e-5, atol=1e-5)
    assert _counts(out) == {"positive": 1, "reference": 1, "others": 2}


def test_composing_two_classes_multiplies_their_densities():
    """Gaussian classes of one covariance: score_u + (score_1 - score_u) + (score_2 - score_u) is the composed one."""
    denoise, null, x = _setting()
    guide = guides.composed(weights.constant(0.0), null, [(weights.constant(1.0), 2)])
    got = predictions.x0_to("score", RF, x, _apply(guide, denoise, x).x0, T)
    score = lambda label: predictions.x0_to("score", RF, x, _at(denoise, x, label), T)  # noqa: E731
    own = predictions.x0_to("score", RF, x, denoise(x, T, LABELS), T)
    chex.assert_trees_all_close(got, own + score(2) - score(null), rtol=1e-3, atol=1e-4)


def test_a_negative_condition_is_another_null():
    denoise, _, x = _setting()
    out = _apply(guides.guided(rules.cfg, TWO, 3), denoise, x)
    own = denoise(x, T, LABELS)
    chex.assert_trees_all_close(out.x0, own + 2 * (own - _at(denoise, x, 3)), rtol=1e-5, atol=1e-5)


def test_summed_adds_guidance_away_from_other_denoisers():
    denoise, null, x = _setting()
    weak = Partial(lambda x, t, cond: 0.5 * x)
    out = _apply(guides.summed(TWO, null, [(weights.constant(0.3), weak)]), denoise, x)
    own = denoise(x, T, LABELS)
    expected = own + 2 * (own - _at(denoise, x, null)) + 0.3 * (own - 0.5 * x)
    chex.assert_trees_all_close(out.x0, expected, rtol=1e-5, atol=1e-5)


def test_perpendicular_is_the_rule_on_its_branches():
    denoise, null, x = _setting()
    out = _apply(guides.perpendicular(TWO, null, [(0.8, 1)]), denoise, x)
    branches = denoise(x, T, LABELS), _at(denoise, x, null)
    expected = rules.perp_neg(*branches, jnp.full(5, 2.0), _at(denoise, x, 1)[None], jnp.asarray([0.8]))
    chex.assert_trees_all_close(out.x0, expected, rtol=1e-4, atol=1e-5)


# ---- early stopping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold, evaluations", [(1.1, 6), (-1.1, 1)])
def test_early_stopping_saves_the_reference_branch(threshold, evaluations):
    """cos > 1.1 never happens; cos > -1.1 happens after the first step, and from then on sampling is unguided."""
    denoise, null, _ = _setting()
    grid, labels = sampling.uniform_grid(6), jnp.arange(4)
    x = jax.random.normal(jax.random.key(0), (4, 2))

    def run(guide, x, grid):
        return sampling.sample(jax.random.key(1), denoise, guide, sampling.ddim(), RF, grid, x, labels)

    out = run(guides.early_stopping(rules.cfg, TWO, null, threshold), x, grid)
    assert _counts(out) == {"positive": 6, "reference": evaluations}
    if evaluations == 6:
        expected = run(guides.cfg(TWO, null), x, grid).x0
    else:
        first = run(guides.cfg(TWO, null), x, grid[:2]).x0
        expected = run(guides.unguided(), first, grid[1:]).x0
    chex.assert_trees_all_close(out.x0, expected, rtol=1e-5, atol=1e-5)


def test_each_sample_stops_for_itself():
    """A denoiser whose branches agree for the first sample only."""

    def agreeing(x, t, cond):
        away = jnp.asarray([[5.0, -5.0]])
        return jnp.where((cond == 1)[:, None], away, jnp.zeros_like(x))

    x, labels = jnp.ones((2, 2)), jnp.asarray([0, 1])
    guide = guides.early_stopping(rules.cfg, TWO, 4, 0.99)
    t, s = jnp.full(2, 0.9), jnp.full(2, 0.8)
    state, _ = guide.apply(guide.init(x), agreeing, RF, x, t=t, s=s, cond=labels)
    assert state[1].tolist() == [True, False]
    _, out = guide.apply(state, agreeing, RF, x, t=t, s=s, cond=labels)
    positive = agreeing(x, t, labels)
    chex.assert_trees_all_close(out.x0[0], positive[0])
    chex.assert_trees_all_close(out.x0[1], 3 * positive[1], rtol=1e-6)


# ---- a classifier's choice ------------------------------------------------------------------------------------------


def test_a_certain_classifier_is_unguided():
    denoise, _, x = _setting()
    certain = Partial(lambda x0: 1e4 * jax.nn.one_hot(LABELS, 4))
    out = _apply(guides.classifier_chosen(certain), denoise, x)
    chex.assert_trees_all_close(out.x0, denoise(x, T, LABELS), rtol=1e-6)


def test_the_reference_is_the_most_confused_class():
    denoise, _, x = _setting()
    fixed = jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.1]))
    out = _apply(guides.classifier_chosen(Partial(lambda x0: jnp.tile(fixed, (5, 1))), 2.0), denoise, x)
    own = denoise(x, T, LABELS)
    rival = denoise(x, T, jnp.asarray([1, 0, 0, 0, 1]))
    omega = 2 * (1 - jnp.asarray([0.4, 0.3, 0.2, 0.1, 0.4]))
    chex.assert_trees_all_close(out.x0, own + omega[:, None] * (own - rival), rtol=1e-5, atol=1e-5)


def test_gfc_1_the_gap_of_equal_gaussians_does_not_depend_on_x(x64):
    """D(x, c) - D(x, c') = rho^2/(rho^2 + s^2) (m_c - m_c') with rho = sigma/alpha."""
    means, s2 = jnp.asarray([[0.0, 1.0, 0.5], [2.0, -1.0, 0.0]]), 0.6
    mixture = mixtures.from_classes(np.asarray(means)[:, None], s2)
    t = jnp.full(7, float(RF.time(-jnp.log(jnp.asarray(2.0)))))  # rho^2 = 2
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3)))
    denoise = mixtures.denoise(mixture, RF)
    gap = denoise(x, t, jnp.zeros(7, int)) - denoise(x, t, jnp.ones(7, int))
    np.testing.assert_allclose(gap, jnp.broadcast_to(2 / 2.6 * (means[0] - means[1]), (7, 3)), atol=1e-10)


def test_classifier_guidance_raises_the_class_accuracy():
    """With exact branches and the exact Bayes classifier of the clean data on overlapping classes."""
    toy = oracles.toy2()
    toy = toy._replace(means=toy.means * 0.35)
    denoise, labels = mixtures.denoise(toy, RF), jnp.repeat(jnp.arange(4), 500)
    centres = toy.means[None]
    classify = Partial(lambda x0: -2 * jnp.sum((x0[:, None, :] - centres) ** 2, axis=-1))
    x = jax.random.normal(jax.random.key(0), (2000, 2))

    @jax.jit
    def accuracy(sharpness):
        guide = guides.classifier_chosen(classify, sharpness)
        grid = sampling.uniform_grid(20)
        out = sampling.sample(jax.random.key(1), denoise, guide, sampling.ddim(), RF, grid, x, labels)
        return jnp.mean(jnp.argmax(classify(out.x0), axis=-1) == labels)

    values = [float(accuracy(sharpness)) for sharpness in (0.0, 1.0, 3.0)]
    assert values[0] + 0.03 < values[1] < values[2]  # one standard error is at most 0.011, and the noise is shared


# ---- dynamic and rectified ------------------------------------------------------------------------------------------


def test_dynamic_takes_the_candidate_the_evaluator_prefers():
    denoise, null, x = _setting()
    evaluator = Partial(lambda x0, t, cond: jnp.where(cond == 0, -x0[:, 0], x0[:, 0]))
    omegas = jnp.asarray([0.0, 1.0, 4.0])
    out = _apply(guides.dynamic(omegas, evaluator, null), denoise, x)
    own, base = denoise(x, T, LABELS), _at(denoise, x, null)
    candidates = jnp.stack([own + omega * (own - base) for omega in omegas])
    sign = jnp.where(LABELS == 0, -1, 1)
    best = jnp.argmax(sign[None] * candidates[..., 0], axis=0)
    chex.assert_trees_all_close(out.x0, candidates[best, jnp.arange(5)], rtol=1e-5, atol=1e-5)
    single = _apply(guides.dynamic(jnp.asarray([2.0]), evaluator, null), denoise, x)
    chex.assert_trees_all_close(single.x0, _apply(guides.cfg(TWO, null), denoise, x).x0, rtol=1e-5, atol=1e-6)


def test_rectified_takes_the_velocity_gap_half_a_step_ahead():
    denoise, null, x = _setting()
    out = _apply(guides.rectified(weights.constant(0.7), null), denoise, x)
    velocity = lambda x, t, labels: (x - denoise(x, t, labels)) / t[:, None]  # noqa: E731
    m = (T + S) / 2
    x_m = x + (m - T)[:, None] * velocity(x, T, LABELS)
    gap = velocity(x_m, m, LABELS) - velocity(x_m, m, jnp.full(5, null))
    expected = velocity(x, T, LABELS) + 0.7 * gap
    chex.assert_trees_all_close((x - out.x0) / T[:, None], expected, rtol=1e-4, atol=1e-4)
    assert _counts(out) == {"positive": 2, "reference": 1}

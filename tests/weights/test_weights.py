"""Weights: fixed shapes against their formulas; the learned network's clamps, sign and gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from guidance import schedules, weights
from guidance.sampling import uniform_grid
from guidance.weights.learned import nonnegative
from tests.tracing import counted

LABELS = jnp.asarray([0, 1, 2, 1])
T = jnp.asarray([0.9, 0.6, 0.35, 0.2])
S = T - 0.1


# ---- fixed shapes


def test_constant():
    chex.assert_trees_all_equal(weights.constant(2.0)(t=T, s=S, cond=LABELS), jnp.full(4, 2.0))


def test_interval_is_half_open():
    """omega on lo < t <= hi, where t is the time at which the step starts."""
    t = jnp.asarray([0.2, 0.2001, 0.5, 0.8, 0.8001])
    omega = weights.interval(3.0, 0.2, 0.8)(t=t, s=t - 0.1, cond=None)
    chex.assert_trees_all_equal(omega, jnp.asarray([0.0, 3.0, 3.0, 3.0, 0.0]))


def test_intervals_that_share_a_bound_do_not_overlap():
    t = jnp.linspace(0, 1, 101)
    low, high = weights.interval(1.0, 0.25, 0.5), weights.interval(1.0, 0.5, 1.0)
    both = low(t=t, s=t, cond=None) + high(t=t, s=t, cond=None)
    chex.assert_trees_all_equal(both, weights.interval(1.0, 0.25, 1.0)(t=t, s=t, cond=None))
    assert float(jnp.max(both)) == 1.0


def test_lig_2_bounds_given_as_noise_levels():
    """LIG-2: rectified-flow time t = rho/(1 + rho)."""
    levels = jnp.asarray([0.19, 0.28, 0.60, 1.61, 2.90, 5.00, 5.42])
    expected = jnp.asarray([0.160, 0.219, 0.375, 0.617, 0.744, 0.833, 0.844])
    times = weights.times_of_noise_level(schedules.rectified_flow(), levels)
    chex.assert_trees_all_close(times, expected, atol=0.0005)
    chex.assert_trees_all_close(times, levels / (1 + levels), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_bounds_are_found_in_every_schedule(name, x64):
    schedule = schedules.SCHEDULES[name]()
    levels = jnp.asarray([0.19, 0.6, 5.42])
    t = weights.times_of_noise_level(schedule, levels)
    chex.assert_trees_all_close(schedule.sigma(t) / schedule.alpha(t), levels, rtol=1e-10)
    chex.assert_trees_all_close(weights.times_of_log_snr(schedule, -2 * jnp.log(levels)), t, rtol=1e-12)
    assert bool(jnp.all(jnp.diff(t) > 0))


def test_clamp_linear_formula():
    """scale = max(floor, 2 (1 + omega) (1 - t)): at omega = 1, 4 (1 - t)."""
    omega = weights.clamp_linear(1.0, 1.0)(t=T, s=S, cond=LABELS)
    chex.assert_trees_all_close(1 + omega, jnp.asarray([1.0, 1.6, 2.6, 3.2]), atol=1e-6)


@pytest.mark.parametrize("omega", [0.0, 0.5, 3.0])
def test_unclamped_ramp_has_the_mean_scale_of_a_constant(omega, x64):
    """The midpoint rule integrates a line exactly."""
    t = (jnp.arange(50) + 0.5) / 50
    scale = 1 + weights.clamp_linear(omega, 0.0)(t=t, s=t, cond=None)
    assert float(jnp.mean(scale)) == pytest.approx(1 + omega, abs=1e-12)


def test_table_returns_the_entry_of_its_step():
    grid = uniform_grid(4, 0.999)
    by_step, by_class = jnp.arange(4.0), jnp.arange(12.0).reshape(4, 3)
    for i in range(4):
        t, s = jnp.full(3, grid[i]), jnp.full(3, grid[i + 1])
        labels = jnp.arange(3)
        chex.assert_trees_all_equal(weights.table(grid, by_step)(t=t, s=s, cond=labels), jnp.full(3, by_step[i]))
        chex.assert_trees_all_equal(weights.table(grid, by_class)(t=t, s=s, cond=labels), by_class[i])


def test_tabulated_asks_at_both_ends_of_every_step():
    """omega = t + 10 s + 100 c on the steps from 1, 0.6 and 0.2."""
    weight = lambda *, t, s, cond: t + 10 * s + 100 * cond  # noqa: E731
    table = weights.tabulated(weight, jnp.asarray([1.0, 0.6, 0.2, 0.0]), jnp.asarray([2, 0]))
    np.testing.assert_allclose(table, [[207.0, 7.0], [202.6, 2.6], [200.2, 0.2]], rtol=1e-6)


def test_table_forgives_rounding():
    grid = uniform_grid(7)
    t = grid[:-1] * (1 + 1e-6)
    chex.assert_trees_all_equal(weights.table(grid, jnp.arange(7.0))(t=t, s=t, cond=None), jnp.arange(7.0))


def test_knobs_are_leaves():
    """A sweep over the knobs compiles once, and gradients reach them."""
    call, traces = counted(lambda weight: weight(t=T, s=S, cond=LABELS))
    for omega in (0.0, 1.0, 2.0):
        call(weights.interval(jnp.asarray(omega), jnp.asarray(0.3), jnp.asarray(0.7)))
    assert len(traces) == 1
    gradient = jax.grad(lambda weight: jnp.sum(weight(t=T, s=S, cond=LABELS)))(weights.interval(2.0, 0.3, 0.7))
    assert float(jax.tree.leaves(gradient)[0]) == 2.0  # two of the four steps lie inside


# ---- the learned network


def _net(**knobs):
    knobs = {"condition": "label", "num_classes": 3, "width": 16, "depth": 3, "time_width": 8, "cond_width": 8} | knobs
    return weights.GuidanceNet(**knobs)


@functools.cache
def _init(net, condition):
    times = {"log_snr_t": jnp.zeros(4), "log_snr_s": jnp.zeros(4)}
    return jax.jit(net.init)(jax.random.key(0), **times, cond=CONDITIONS[condition])


_call = jax.jit(lambda weight, s, t, cond: weight(t=t, s=s, cond=cond))


def _random_params(net, seed=0):
    """Parameters with a random head too, so that the output varies and changes sign before the head."""
    params = jax.tree.map(np.asarray, _init(net, net.condition))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: a + (0.7 * rng.normal(size=a.shape)).astype(a.dtype), params)


CONDITIONS = {"label": LABELS, "features": jnp.linspace(-1, 1, 8).reshape(4, 2), "none": LABELS}


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
@pytest.mark.parametrize("initial_omega", [0.5, 1.0])
def test_the_untrained_network_is_a_constant(condition, initial_omega):
    net = _net(condition=condition, initial_omega=initial_omega)
    params = _init(net, condition)
    omega = _call(weights.learned(net, params, schedules.rectified_flow()), S, T, CONDITIONS[condition])
    chex.assert_trees_all_close(omega, jnp.full(4, initial_omega), rtol=1e-6)


def test_the_network_by_hand():
    """0.2 (log_snr_s, log_snr_t, their difference) through two layers, beside the label's row, through the others.

    What is stored in files answers as it was learned only while the inputs stay in this order.
    """
    net = weights.GuidanceNet(num_classes=3, width=5, depth=3, time_width=4, cond_width=2, head="signed")
    zero = jnp.zeros(1)
    params = net.init(jax.random.key(0), log_snr_t=zero, log_snr_s=zero, cond=jnp.zeros(1, jnp.int32))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])
    t, s, label = np.array([-3.0, 1.0, 2.0, 0.5]), np.array([4.0, 2.5, 6.0, 1.0]), np.array([2, 0, 1, 2])
    found = net.apply(params, log_snr_t=jnp.asarray(t, jnp.float32), log_snr_s=jnp.asarray(s, jnp.float32), cond=label)

    own = jax.tree.map(np.asarray, params["params"])
    silu = lambda a: a / (1 + np.exp(-a))  # noqa: E731
    layer = lambda name, h: h @ own[name]["kernel"] + own[name]["bias"]  # noqa: E731
    first, second = sorted(("Dense_0", "Dense_1"), key=lambda name: len(own[name]["kernel"]))  # from 3, then from 4
    h = layer(second, silu(layer(first, 0.2 * np.stack([s, t, s - t], axis=-1))))
    h = np.concatenate([h, own["Embed_0"]["embedding"][label]], axis=-1)
    h = silu(layer("Dense_3", silu(layer("Dense_2", h))))
    np.testing.assert_allclose(found, layer("Dense_4", h)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("condition", sorted(CONDITIONS))
def test_learned_weights_are_never_negative(condition):
    net, cond = _net(condition=condition), CONDITIONS[condition]
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *[_random_params(net, seed) for seed in range(40)])
    values = jax.jit(jax.vmap(lambda p: weights.learned(net, p, schedules.cosine())(t=T, s=S, cond=cond)))(stack)
    assert float(jnp.min(values)) == 0.0  # the head's clip is reached, and reached exactly
    assert float(jnp.max(values)) > 0.0


@pytest.mark.parametrize("start", [0.0, -0.3, 0.5])
def test_a_signed_head_starts_anywhere_and_is_the_output_before_the_clip(start):
    """The same params give max(signed, 0) under the other head; the gradient at omega = 0 is not stopped."""
    net = _net(head="signed", initial_omega=start)
    chex.assert_trees_all_close(
        _call(_weight_of(net, _init(net, "label")), S, T, LABELS), jnp.full(4, start), atol=1e-7
    )
    params = _random_params(net)
    signed, clipped = (_call(_weight_of(each, params), S, T, LABELS) for each in (net, net.clone(head="nonnegative")))
    chex.assert_trees_all_equal(jnp.maximum(signed, 0), clipped)
    assert any(float(jnp.min(_call(_weight_of(net, _random_params(net, k)), S, T, LABELS))) < 0 for k in range(5))
    slope = jax.grad(lambda p: jnp.sum(_weight_of(net, p)(t=T, s=S, cond=LABELS)))(_init(net, "label"))
    assert float(slope["params"][f"Dense_{net.depth + 1}"]["bias"][0]) == 4.0


def _weight_of(net, params):
    return weights.learned(net, params, schedules.cosine())


def test_there_is_no_other_head():
    with pytest.raises(ValueError, match="head must be 'nonnegative' or 'signed', got 'softplus'"):
        _init(_net(head="softplus"), "label")


def test_nonnegative_clips_and_lets_descent_raise_it_again():
    """max(a, 0); a loss that wants a larger output (negative gradient) reaches a < 0, where a ReLU is dead."""
    a = jnp.asarray([-50.0, -1.0, 0.0, 1.0, 50.0])
    value, pull_back = jax.vjp(nonnegative, a)
    chex.assert_trees_all_equal(value, jnp.asarray([0.0, 0.0, 0.0, 1.0, 50.0]))
    chex.assert_trees_all_equal(pull_back(-jnp.ones(5))[0], -jnp.ones(5))
    # a loss that wants less cannot push a further below zero
    chex.assert_trees_all_equal(pull_back(jnp.ones(5))[0], jnp.asarray([0.0, 0.0, 0.0, 1.0, 1.0]))


def test_descent_recovers_an_overshot_weight():
    """The pre-activation starts at -0.5, the wanted weight is 0.3: plain descent must reach it from there."""
    net = _net()
    params = _init(net, "label")
    head = sorted(name for name in params["params"] if name.startswith("Dense"))[-1]
    params = jax.tree.map(jnp.asarray, params)  # a copy: the parameters are shared by the tests
    params["params"][head]["bias"] -= 1.0
    omega = lambda p: weights.learned(net, p, schedules.cosine())(t=T, s=S, cond=LABELS)  # noqa: E731
    loss = lambda p: jnp.mean((omega(p) - 0.3) ** 2)  # noqa: E731
    chex.assert_trees_all_equal(jax.jit(omega)(params), jnp.zeros(4))
    step = jax.jit(lambda p: jax.tree.map(lambda a, g: a - 0.05 * g, p, jax.grad(loss)(p)))
    for _ in range(200):
        params = step(params)
    chex.assert_trees_all_close(omega(params), jnp.full(4, 0.3), atol=0.1)  # a dead unit would stay at 0


def test_inputs_are_clamped_to_where_the_network_was_trained():
    net = _net()
    weight = Partial(_call, weights.learned(net, _random_params(net), schedules.cosine(), s_min=0.05, t_max=0.9))
    zero, mid, one = jnp.zeros(4), jnp.full(4, 0.5), jnp.ones(4)
    chex.assert_trees_all_equal(weight(t=mid, s=zero, cond=LABELS), weight(t=mid, s=jnp.full(4, 0.05), cond=LABELS))
    chex.assert_trees_all_equal(weight(t=one, s=mid, cond=LABELS), weight(t=jnp.full(4, 0.9), s=mid, cond=LABELS))
    chex.assert_tree_all_finite(weight(t=one, s=zero, cond=LABELS))
    inside, outside = weight(t=mid, s=jnp.full(4, 0.05), cond=LABELS), weight(t=mid, s=jnp.full(4, 0.2), cond=LABELS)
    assert float(jnp.max(jnp.abs(inside - outside))) > 1e-4  # not clamped to a constant


def test_small_steps_are_answered_by_the_nearest_trained_gap():
    """omega(t - 0.01, t) = omega(max(t - delta, s_min), t); gaps from delta on are the network's own."""
    net, schedule = _net(initial_omega=5.0), schedules.rectified_flow()
    params = _random_params(net)
    weight = Partial(_call, weights.learned(net, params, schedule, s_min=0.01, gap_min=0.1))
    t = jnp.asarray([0.9, 0.5, 0.3, 0.06])
    answered = weight(t=t, s=t - 0.01, cond=LABELS)
    ends = {"log_snr_t": schedule.log_snr(t), "log_snr_s": schedule.log_snr(jnp.maximum(t - 0.1, 0.01))}
    own = jax.jit(net.apply)(params, **ends, cond=LABELS)
    chex.assert_trees_all_close(answered, own, rtol=1e-5)
    untrained = _call(weights.learned(net, params, schedule), t - 0.01, t, LABELS)
    assert float(jnp.min(jnp.abs(untrained - answered))) > 1e-3  # not answered where it was asked
    plain = _call(weights.learned(net, params, schedule), t * 0.5, t, LABELS)
    chex.assert_trees_all_close(weight(t=t, s=t * 0.5, cond=LABELS)[:3], plain[:3], rtol=1e-5)


@pytest.mark.parametrize("t_max", [0.99, 0.7])
def test_an_interval_is_that_of_the_time_asked_not_of_the_time_clamped(t_max):
    net, schedule = _net(initial_omega=5.0), schedules.rectified_flow()
    params, t = _random_params(net), jnp.asarray([0.3, 0.31, 0.8, 0.81])
    whole = _call(weights.learned(net, params, schedule, t_max=t_max), t / 2, t, LABELS)
    within = _call(weights.learned(net, params, schedule, t_max=t_max, interval=(0.3, 0.8)), t / 2, t, LABELS)
    assert float(jnp.min(whole)) > 0
    chex.assert_trees_all_equal(within, whole * weights.interval(1.0, 0.3, 0.8)(t=t, s=t / 2, cond=LABELS))


def test_condition_agnostic_variant_ignores_the_condition():
    net = _net(condition="none")
    weight = Partial(_call, weights.learned(net, _random_params(net), schedules.cosine()))
    chex.assert_trees_all_equal(weight(t=T, s=S, cond=LABELS), weight(t=T, s=S, cond=LABELS[::-1]))
    assert float(jnp.max(weight(t=T, s=S, cond=LABELS))) > 0
    assert "Embed_0" not in _random_params(net)["params"]


@pytest.mark.parametrize("condition", ["label", "features"])
def test_conditional_variants_use_the_condition(condition):
    net, cond = _net(condition=condition, initial_omega=5.0), CONDITIONS[condition]
    weight = Partial(_call, weights.learned(net, _random_params(net), schedules.cosine()))
    same = jnp.full(4, 0.5)
    values = weight(t=same, s=same - 0.2, cond=cond)
    assert float(values[0]) != float(values[1])
    if condition == "label":
        assert float(values[1]) == pytest.approx(float(values[3]), rel=1e-5)  # the same label


def test_unknown_condition():
    net = _net(condition="text")
    with pytest.raises(ValueError, match="'label', 'features' or 'none', got 'text'"):
        net.init(jax.random.key(0), log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=jnp.zeros(1, int))


def test_parameters_are_leaves_and_training_compiles_once():
    net = _net()
    call, traces = counted(lambda weight: weight(t=T, s=S, cond=LABELS))
    for seed in range(3):
        call(weights.learned(net, _random_params(net, seed), schedules.cosine()))
    assert len(traces) == 1

"""The annealing guidance scale: as a rule, as a network, and what its loss wants."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from guidance import guides, learning, predictions, rules, sampling, schedules, weights
from guidance.learning import Model
from guidance.learning.annealing import annealing_loss
from guidance.truth import mixtures
from guidance.types import At
from tests import oracles

RF = schedules.rectified_flow()
GRID = sampling.uniform_grid(10)
NET = weights.AnnealingNet(width=16, depth=2, gap_unit=1.0)


@functools.cache
def _params(net=NET):
    return jax.jit(net.init)(jax.random.key(0), *jnp.ones((3, 2)))


def _constant(value):
    return Partial(lambda value, t, size, lam: jnp.broadcast_to(value, t.shape), value)


def _sampled(rule, weight):
    toy, labels = oracles.toy2(), jnp.arange(4)
    x = sampling.initial_noise(jax.random.key(0), RF, GRID, (2,), labels)
    guide = guides.guided(rule, weight, toy.null)
    run = lambda guide: sampling.sample(  # noqa: E731
        jax.random.key(1), mixtures.denoise(toy, RF), guide, sampling.ddim(), RF, GRID, x, labels
    )
    return jax.jit(run)(guide).x0


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_a_constant_network_is_cfg_plus_plus(lam):
    expected = _sampled(rules.cfg_plus_plus(), weights.constant(lam))
    chex.assert_trees_all_close(_sampled(rules.annealed(_constant(lam)), weights.constant(0.7)), expected, rtol=1e-6)


def test_the_untrained_network_is_its_initial_scale():
    expected = _sampled(rules.cfg_plus_plus(), weights.constant(0.6))
    rule = rules.annealed(weights.annealing(NET, _params()))
    chex.assert_trees_all_close(_sampled(rule, weights.constant(0.2)), expected, rtol=1e-5)


def test_gaps_are_measured_in_units():
    """A gap of 10 in units of 5 is one of 2 in units of 1; neither time nor lambda has a unit."""
    params = jax.tree.map(lambda leaf: leaf + 0.1, _params())  # a head of zeros answers the same to all
    coarse, t, lam = NET.clone(gap_unit=5.0), jnp.asarray([0.3, 0.8]), jnp.asarray([0.2, 0.9])
    gaps = jnp.asarray([10.0, 3.0])
    chex.assert_trees_all_close(coarse.apply(params, t, gaps, lam), NET.apply(params, t, gaps / 5, lam), rtol=1e-6)
    assert float(jnp.max(jnp.abs(NET.apply(params, t, gaps, lam) - NET.apply(params, t, gaps / 5, lam)))) > 1e-3


def test_the_network_sees_time_the_gap_in_eps_and_lambda():
    seen = {}

    def network(t, size, lam):
        seen.update(t=t, size=size, lam=lam)
        return lam

    rng = np.random.default_rng(0)
    x, positive, reference = (jnp.asarray(rng.normal(size=(3, 2, 2)), jnp.float32) for _ in range(3))
    t, s, lam = jnp.asarray([0.2, 0.5, 1.0]), jnp.asarray([0.1, 0.4, 0.9]), jnp.asarray([0.1, 0.4, 0.9])
    out = rules.once(rules.annealed(network), positive, reference, lam, At(x, t, s, RF))
    eps = lambda x0: predictions.eps_from_x0(RF, x, x0, t)  # noqa: E731
    gap = np.linalg.norm(np.asarray(eps(positive) - eps(reference)).reshape(3, -1), axis=-1)
    np.testing.assert_allclose(seen["size"], gap, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(seen["t"], t)
    np.testing.assert_array_equal(seen["lam"], lam)
    chex.assert_trees_all_close(out.eps, eps(reference), rtol=1e-6)


def test_the_default_network_has_about_the_published_size():
    sizes = jax.tree.leaves(jax.tree.map(jnp.size, _params(weights.AnnealingNet())))
    assert sum(int(n) for n in sizes) == pytest.approx(52_000, rel=0.05)


# ---- the loss -------------------------------------------------------------------------------------------------------


def _model():
    toy = oracles.toy2()
    return Model(mixtures.denoise(toy, RF), RF, toy.null)


def _loss(key, network, grid=GRID, n=256):
    data_key, key = jax.random.split(key)
    x0, cond = mixtures.sample_joint(data_key, oracles.toy2(), n)
    return annealing_loss(key, _model(), network, x0, cond, grid)


def test_the_loss_is_its_formula():
    """One step t -> s, constant w: both terms from the scores of the mixture; lambda is 1/2 in the mean."""
    t, s, w, n, toy = 0.6, 0.3, 0.8, 4000, oracles.toy2()
    grid = jnp.asarray([t, s, 0.0])
    values = jax.jit(jax.vmap(lambda key: _loss(key, _constant(w), grid, 50)))(jax.random.split(jax.random.key(0), 80))

    @jax.jit
    def formula():
        x0, cond = mixtures.sample_joint(jax.random.key(1), toy, n)
        eps = jax.random.normal(jax.random.key(2), x0.shape)
        x = (1 - t) * x0 + t * eps
        noise = lambda x, time, label: -time * mixtures.score(toy, RF, x, jnp.full(n, time), label)  # noqa: E731
        null = jnp.full(n, toy.null)
        eps_c, eps_u = noise(x, t, cond), noise(x, t, null)
        eps_w = eps_u + w * (eps_c - eps_u)
        x_s = (1 - s) * (x - t * eps_w) / (1 - t) + s * eps_u
        after = noise(x_s, s, cond) - noise(x_s, s, null)
        return 0.5 * jnp.sum(after**2, -1) + 0.5 * jnp.sum((eps_w - eps) ** 2, -1)

    each = formula()
    error = np.hypot(oracles.standard_error(values), oracles.standard_error(each))
    assert abs(float(jnp.mean(values)) - float(jnp.mean(each))) < 5 * error


@pytest.mark.parametrize("name", sorted(schedules.SCHEDULES))
def test_gradients_are_finite_on_every_schedule_and_reach_the_network_only(name):
    schedule, toy = schedules.by_name(name), oracles.toy2()
    x0, cond = mixtures.sample_joint(jax.random.key(0), toy, 32)

    def loss(params):
        model = Model(mixtures.denoise(toy, schedule), schedule, toy.null)
        return annealing_loss(jax.random.key(1), model, weights.annealing(NET, params), x0, cond, GRID)

    value, gradient = jax.jit(jax.value_and_grad(loss))(_params())
    chex.assert_tree_all_finite((value, gradient))
    assert float(optax.tree.norm(gradient)) > 0


def test_a_few_updates_lower_the_loss_and_find_that_lambda_matters():
    optimizer = optax.adam(1e-2)

    def loss(params, key):
        return _loss(key, weights.annealing(NET, params))

    @jax.jit
    def train(params):
        def body(carry, key):
            params, state, _ = learning.update(key, optimizer, loss, *carry)
            return (params, state), None

        (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), 60))
        return params

    measure = jax.jit(lambda params: _loss(jax.random.key(99), weights.annealing(NET, params), n=4000))
    start = _params()
    end = train(start)
    assert float(measure(end)) < 0.98 * float(measure(start))
    ask = jax.jit(lambda lam: NET.apply(end, jnp.asarray([0.5]), jnp.asarray([1.0]), jnp.asarray([lam]))[0])
    assert float(ask(1.0)) > float(ask(0.0)) + 0.05, "agreeing branches need more guidance than a faithful prediction"


def test_a_grid_of_one_step_is_refused():
    with pytest.raises(ValueError, match="at least 2 steps"):
        x0, cond, grid = jnp.zeros((2, 2)), jnp.zeros(2, int), sampling.uniform_grid(1)
        annealing_loss(jax.random.key(0), _model(), _constant(1.0), x0, cond, grid)

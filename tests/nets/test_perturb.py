"""Perturbed references: skipped layers of the MLP, identity attention and the mean query."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance import guides, predictions, rules, schedules, weights
from guidance.nets.dit import DiT
from guidance.nets.mlp import DenoiserMLP
from guidance.nets.perturb import blurred_query_attention, identity_attention, mean_query_attention

RF = schedules.rectified_flow()
NET = DenoiserMLP(3, width=16, depth=3)


@functools.cache
def _setting():
    x, t, cond = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.1, 0.9, 5), jnp.arange(5) % 4
    params = NET.init(jax.random.key(1), x, t, cond)
    # the last layer starts at zero, which would hide every difference
    return jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), params), x, t, cond


def _guided(skip):
    params, x, t, cond = _setting()
    strong = predictions.as_denoise(NET.apply, params, "velocity", RF)
    weak = predictions.as_denoise(functools.partial(NET.apply, skip=skip), params, "velocity", RF)
    guide = guides.autoguided(rules.cfg, weights.constant(2.0), weak)
    return guide.apply((), strong, RF, x, t=t, s=t - 0.05, cond=cond)[1].x0, strong(x, t, cond), weak(x, t, cond)


def test_skipping_nothing_is_the_identity():
    out, own, _ = _guided(())
    chex.assert_trees_all_close(out, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("skip", [(0,), (1,), (0, 2)])
def test_a_skipped_layer_guides_away_from_what_it_leaves(skip):
    out, own, weak = _guided(skip)
    assert float(jnp.abs(own - weak).max()) > 1e-3
    chex.assert_trees_all_close(out, 3 * own - 2 * weak, rtol=1e-4, atol=1e-5)


def test_skipping_the_last_layers_is_the_shallower_network():
    """The names of the layers that are left do not move."""
    params, x, t, cond = _setting()
    leaves = params["params"]
    # context, input, then (outer, inner) for each layer, and the output
    kept = {name: leaves[name] for name in ("Embed_0", "Dense_0", "Dense_1", "Dense_2", "Dense_3")}
    shallow = {"params": kept | {"Dense_4": leaves["Dense_8"]}}
    expected = DenoiserMLP(3, width=16, depth=1).apply(shallow, x, t, cond)
    chex.assert_trees_all_close(NET.apply(params, x, t, cond, skip=(1, 2)), expected, rtol=1e-6)


def test_a_layer_that_is_not_there_is_refused():
    params, x, t, cond = _setting()
    with pytest.raises(ValueError, match="from 0 to 2"):
        NET.apply(params, x, t, cond, skip=(3,))


def _logits(shape=(2, 7, 5), seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 2)


def test_identity_attention_returns_the_values():
    logits = _logits((2, 3, 6, 6))
    np.testing.assert_array_equal(jax.nn.softmax(identity_attention(logits)), np.broadcast_to(np.eye(6), logits.shape))
    with pytest.raises(ValueError, match="as many queries as keys"):
        identity_attention(_logits())


def test_the_mean_query_has_the_mean_logits(x64):
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(3, 7, 4)), rng.normal(size=(3, 5, 4))
    expected = np.einsum("hd,hkd->hk", queries.mean(1), keys)
    got = mean_query_attention(jnp.einsum("hqd,hkd->hqk", queries, keys))
    np.testing.assert_allclose(got, np.broadcast_to(expected[:, None], (3, 7, 5)), atol=1e-12)


def test_seg_1_the_mean_query_minimises_the_mean_divergence(x64):
    """Its row is softmax(mean logits), and no v has a smaller mean_i KL(v || p_i): 7 x 5 logits."""
    logits = _logits((7, 5))
    rows = np.asarray(jax.nn.softmax(mean_query_attention(logits)))
    mean = np.exp(np.asarray(logits).mean(0))
    np.testing.assert_allclose(rows, np.broadcast_to(mean / mean.sum(), (7, 5)), atol=1e-12)

    log_p = jax.nn.log_softmax(logits)

    def divergence(free):
        log_v = jax.nn.log_softmax(free)[None]
        return jnp.mean(jnp.sum(jnp.exp(log_v) * (log_v - log_p), -1))

    best = jnp.log(rows[0])
    np.testing.assert_allclose(jax.grad(divergence)(best), np.zeros(5), atol=1e-12)
    others = best[None] + jnp.asarray(np.random.default_rng(1).normal(size=(200, 5)))
    assert np.all(np.asarray(jax.vmap(divergence)(others)) > float(divergence(best)))


def test_blurred_logits_are_those_of_blurred_queries(x64):
    """A point source spreads as scipy's Gaussian would on an unbounded image, away from the border."""
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, 35, 4)), rng.normal(size=(2, 6, 4))
    blur = blurred_query_attention((5, 7), 0.8)
    weights = np.asarray(blur(jnp.eye(35)))  # keys that pick one query each: the kernel itself
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    spread = np.exp(-(np.add.outer((np.arange(5) - 2) ** 2, (np.arange(7) - 3) ** 2)) / (2 * 0.8**2))
    np.testing.assert_allclose(weights[17].reshape(5, 7), spread / spread.sum(), atol=1e-12)
    expected = np.einsum("hqd,hkd->hqk", np.einsum("pq,hqd->hpd", weights, queries), keys)
    np.testing.assert_allclose(blur(jnp.einsum("hqd,hkd->hqk", queries, keys)), expected, atol=1e-12)


def test_blur_goes_from_nothing_to_the_mean_query(x64):
    logits = _logits((2, 12, 5))
    np.testing.assert_array_equal(blurred_query_attention((3, 4), 0.0)(logits), logits)
    np.testing.assert_allclose(blurred_query_attention((3, 4), 1e9)(logits), mean_query_attention(logits), atol=1e-12)
    slopes = jax.vmap(jax.grad(lambda s: jnp.sum(blurred_query_attention((3, 4), s)(logits) ** 2)))(
        jnp.asarray([0.0, 1e-12, 0.5, 1e12])
    )
    assert np.all(np.isfinite(slopes)) and abs(float(slopes[2])) > 1e-3
    with pytest.raises(ValueError, match="3 x 3 queries got 12"):
        blurred_query_attention((3, 3), 1.0)(logits)


@pytest.mark.parametrize("remat", [False, True])
def test_blur_in_a_transformer_is_traced(remat):
    """One compiled network for every sigma, which differs from the plain one, and a gradient with respect to it."""
    net = DiT(8, 2, 1, 2, 3, learn_sigma=False, remat=remat)
    inputs = jax.random.normal(jax.random.key(0), (2, 4, 6, 1)), jnp.full(2, 0.5), jnp.zeros(2, int)
    params = jax.tree.map(lambda p: p + 0.3, net.init(jax.random.key(1), *inputs))

    @jax.jit
    def spread(sigma):
        blur = blurred_query_attention((2, 3), sigma)
        return jnp.sum(net.apply(params, *inputs, perturb=blur, perturb_blocks=(0,)) ** 2)

    plain = jnp.sum(net.apply(params, *inputs) ** 2)
    chex.assert_trees_all_close(spread(0.0), plain, rtol=1e-5)
    assert np.isfinite(jax.grad(spread)(1.0))

"""Attention against its definition in loops, and the fixed embeddings against theirs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from guidance.nets.attention import attend
from guidance.nets.embeddings import positions, sinusoids
from guidance.nets.perturb import identity_attention, mean_query_attention


def _qkv(queries=5, keys=5, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, n, 3, 8)) for n in (queries, keys, keys)]


def _by_definition(q, k, v):
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(*q.shape[:3]):
        weights = softmax([q[b, i, h] @ key / np.sqrt(8) for key in k[b, :, h]])
        out[b, i, h] = weights @ v[b, :, h]
    return out


@pytest.mark.parametrize("keys", [5, 9])
def test_attention_is_its_definition(x64, keys):
    q, k, v = _qkv(keys=keys)
    np.testing.assert_allclose(jax.jit(attend)(q, k, v), _by_definition(q, k, v), atol=1e-14)


def test_the_fused_implementation_agrees(monkeypatch):
    """What an accelerator runs, here compiled for the CPU."""
    q, k, v = (jnp.asarray(a, jnp.float32) for a in _qkv())
    here = attend(q, k, v)
    fused, calls = jax.nn.dot_product_attention, []
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *args, **how: calls.append(how) or fused(*args, **how))
    np.testing.assert_allclose(attend(q, k, v), here, atol=1e-6)
    assert calls == [{"implementation": None}]


@pytest.mark.parametrize("dtype, width, expected", [("bfloat16", 72, "cudnn"), ("float32", 72, None)])
def test_cudnn_is_asked_for_where_it_can(monkeypatch, dtype, width, expected):
    asked = {}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, k, v, implementation: asked.update(it=implementation)
    )
    attend(*[jnp.zeros((1, 4, 2, width), dtype)] * 3)
    assert asked["it"] == expected
    attend(*[jnp.zeros((1, 4, 1, 512), dtype)] * 3)  # the VAE's single head is too wide for the kernel
    assert asked["it"] is None


def test_bfloat16_rounds_once_or_twice():
    q, k, v = _qkv()
    low = [jnp.asarray(a, jnp.bfloat16) for a in (q, k, v)]
    out = attend(*low)
    assert out.dtype == jnp.bfloat16
    expected = _by_definition(*(np.asarray(a, np.float64) for a in low))
    # the weights and the result are rounded to bfloat16, everything before is not
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=3 * 2.0**-8)


def test_perturbed_logits():
    q, k, v = (jnp.asarray(a, jnp.float32) for a in _qkv())
    np.testing.assert_allclose(attend(q, k, v, identity_attention), v, atol=1e-6)
    mean = jnp.broadcast_to(q.mean(1, keepdims=True), q.shape)
    np.testing.assert_allclose(attend(q, k, v, mean_query_attention), attend(mean, k, v), atol=1e-6)


@pytest.mark.parametrize("freq_shift, last", [(0, 10000 ** (-7 / 8)), (1, 10000**-1.0)])
def test_frequencies_fall_from_one_to_the_last(x64, freq_shift, last):
    """With the shift the slowest of the 8 waves has period 2 pi 10000 exactly, without it the ninth would."""
    t = jnp.asarray([0.0, 0.25, 999.0])
    features = np.asarray(sinusoids(t, 16, freq_shift))
    frequencies = last ** (np.arange(8) / 7)
    np.testing.assert_allclose(
        features, np.hstack([f(np.outer(t, frequencies)) for f in (np.cos, np.sin)]), atol=1e-11
    )


def test_integer_timesteps_are_numbers_too():
    np.testing.assert_array_equal(sinusoids(jnp.arange(5), 8), sinusoids(jnp.arange(5.0), 8))
    with pytest.raises(ValueError, match="even"):
        sinusoids(jnp.arange(5.0), 7)


def test_places_are_columns_then_rows():
    table = positions(2, 3, 8).reshape(2, 3, 2, 2, 2)  # [row, column, (column's, row's), (sin, cos), frequency]
    for row, column, k in np.ndindex(2, 3, 2):
        angles = np.asarray([column, row]) * 0.01**k
        np.testing.assert_allclose(
            table[row, column, :, :, k], np.stack([np.sin(angles), np.cos(angles)], 1), atol=1e-15
        )
    with pytest.raises(ValueError, match="multiple of 4"):
        positions(2, 2, 6)


def test_a_gradient_through_perturbed_attention_is_finite():
    q, k, v = (jnp.asarray(a, jnp.float32) for a in _qkv())
    grads = jax.grad(lambda *qkv: jnp.sum(attend(*qkv, identity_attention) ** 2), argnums=(0, 1, 2))(q, k, v)
    np.testing.assert_allclose(grads[2], 2 * v, atol=1e-5)
    assert all(bool(jnp.all(g == 0)) for g in grads[:2])

"""A held residual stream changes no number, only where fusions end."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from guidance.nets.residual import held


def _deep(hold, h):
    for i in range(3):
        h = hold(h)
        h = h + jnp.sin((i + 1) * h) * jnp.mean(h, axis=-1, keepdims=True)
    return h


def test_derivatives_are_those_of_the_plain_stream(x64):
    h, tangent = np.random.default_rng(0).normal(size=(2, 4, 3))
    ours, plain = (lambda h, hold=hold: _deep(hold, h) for hold in (held, lambda h: h))
    chex.assert_trees_all_close(jax.jvp(ours, (h,), (tangent,)), jax.jvp(plain, (h,), (tangent,)), rtol=1e-14)
    for transformed in (
        lambda f: jax.grad(lambda h: jnp.sum(f(h) ** 2)),
        lambda f: jax.vmap(jax.grad(lambda row: jnp.sum(f(row) ** 2))),
        lambda f: jax.hessian(lambda h: jnp.sum(f(h)[0])),
        lambda f: jax.grad(lambda h: jnp.sum(jax.checkpoint(f)(h))),
    ):
        chex.assert_trees_all_close(transformed(ours)(h), transformed(plain)(h), rtol=1e-12)


def test_the_gradient_ends_a_fusion_on_a_cpu():
    text = jax.jit(jax.grad(lambda h: jnp.sum(_deep(held, h)))).lower(jnp.ones((4, 3))).compile().as_text()
    if jax.default_backend() == "cpu":
        assert text.count(" conditional(") == 3

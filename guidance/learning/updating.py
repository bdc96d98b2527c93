"""Steps of an optimiser on a loss, as pure functions."""

import jax
import jax.numpy as jnp
import optax

from guidance.types import Array


def update(key: Array, optimizer: optax.GradientTransformation, loss, params, opt_state):
    """Takes one gradient step on `loss(params, key)` -> scalar; returns (params, opt_state, metrics).

    The metrics are "loss", before the step, and "gradient_norm".
    """
    return _applied(optimizer, params, opt_state, *jax.value_and_grad(loss)(params, key))


def updates(keys: Array, optimizer: optax.GradientTransformation, loss, params, opt_state):
    """Takes an `update` for each of keys [n], all in one scan; returns (params, opt_state).

    A small network is trained by one compiled program so, of which no one sees the loss.
    """
    step = lambda state, key: (update(key, optimizer, loss, *state)[:2], None)  # noqa: E731
    return jax.lax.scan(step, (params, opt_state), keys)[0]


def update_in_parts(optimizer: optax.GradientTransformation, loss, params, opt_state, parts):
    """Takes one gradient step on the mean of `loss(params, part)` over the parts; returns what `update` does.

    The leaves of `parts` are [number of parts, ...]. The parts are evaluated one after the other, so that a large
    batch needs the memory of one part.
    """
    one, count = jax.value_and_grad(loss), jax.tree.leaves(parts)[0].shape[0]
    if count == 1:
        return _applied(optimizer, params, opt_state, *one(params, jax.tree.map(lambda x: x[0], parts)))

    def add(total, part):
        return jax.tree.map(jnp.add, total, one(params, part)), None

    shapes = jax.eval_shape(lambda parts: one(params, jax.tree.map(lambda x: x[0], parts)), parts)
    total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)
    return _applied(optimizer, params, opt_state, *jax.tree.map(lambda x: x / count, total))


def _applied(optimizer, params, opt_state, value, gradient):
    change, opt_state = optimizer.update(gradient, opt_state, params)
    metrics = {"loss": value, "gradient_norm": optax.tree.norm(gradient)}
    return optax.apply_updates(params, change), opt_state, metrics

"""Rewards: functions (x0 [batch, ...], cond) -> [batch]. They are pytrees whose leaves are their knobs."""

from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import Partial

from guidance.ranges import Each, Finite, Number
from guidance.schedules import rectified_flow
from guidance.truth.mixtures import Mixture, class_log_posterior
from guidance.types import Array, Cond, Reward


class LinearQuadratic(NamedTuple):
    """The reward r(x) = constant + a . x - x^T B x / 2; it tilts a Gaussian mixture into a Gaussian mixture.

    r is linear in the leaves: dividing all of them by a temperature divides r by it. cond is ignored.
    """

    linear: Array  # a [d]
    quadratic: Array  # B: [1] or [d] (diagonal) or [d, d] (symmetric)
    constant: Array  # []

    def __call__(self, x0: Array, cond: Cond = None) -> Array:
        """Returns r(x0) [...] for x0 [..., d]."""
        along = self.linear.reshape((1,) * (x0.ndim - 1) + (-1,))
        return self.constant + jnp.sum(x0 * (along - 0.5 * self.curve(x0)), axis=-1)

    def curve(self, x0: Array) -> Array:
        """Returns B x0 for x0 [..., d]."""
        if self.quadratic.ndim == 2:
            return jnp.einsum("de,...e->...d", self.quadratic, x0, precision="highest")
        return self.quadratic.reshape((1,) * (x0.ndim - 1) + (-1,)) * x0


def linear_quadratic(
    linear: Annotated[Any, Each(Number())], quadratic: Finite = 0.0, constant: Finite = 0.0
) -> LinearQuadratic:
    """Builds the reward r(x) = constant + a . x - x^T B x / 2.

    linear: a [d]. quadratic: B as a number, [d] (diagonal) or [d, d], which is symmetrised. Raises ValueError if the
    shapes do not fit.
    """
    a, b, c = (jnp.asarray(v, jnp.result_type(float)) for v in (linear, quadratic, constant))
    if a.ndim != 1:
        raise ValueError(f"linear: expected [d], got shape {a.shape}")
    if b.shape not in ((), (1,), a.shape, a.shape * 2):
        raise ValueError(f"quadratic: expected a number, {a.shape} or {a.shape * 2}, got shape {b.shape}")
    if c.ndim != 0:
        raise ValueError(f"constant: expected a number, got shape {c.shape}")
    return LinearQuadratic(a, 0.5 * (b + b.T) if b.ndim == 2 else jnp.atleast_1d(b), c)


def _class_log_probability(mixture: Mixture, x0: Array, cond: Array) -> Array:
    log_posterior = class_log_posterior(mixture, rectified_flow(), x0, jnp.zeros(x0.shape[:1]))
    return jnp.take_along_axis(log_posterior, cond[:, None], axis=1)[:, 0]


def class_log_probability(mixture: Mixture) -> Reward:
    """Returns the reward r(x0, c) = log p(c | x0) of a mixture's exact classifier; it tilts p(x0) into p(x0 | c)."""
    return Partial(_class_log_probability, mixture)

"""The residual stream of deep networks on a CPU: its gradient computed once, not again for every use."""

import jax
import jax.numpy as jnp

from guidance.types import Array


def held(h: Array) -> Array:
    """h itself, with a tangent that XLA keeps in memory; a no-op except on a CPU.

    The gradient of a residual stream is a long sum with several uses in every block. XLA's CPU compiler puts the whole
    sum into the fusion of each use, so that the cost of a backward pass grows with the square of the depth. A
    conditional is where fusions end: the one here returns the tangent, or NaN where h is NaN. The gradient of DiT-S/2
    with respect to its params took 1.04 s instead of 1.87 s (batch 2, one core). An optimization_barrier does not
    help: the CPU compiler drops it before it fuses.
    """
    return _held(h) if jax.default_backend() == "cpu" else h


@jax.custom_jvp
def _held(h):
    return h


@_held.defjvp
def _(primals, tangents):
    (h,), (tangent,) = primals, tangents
    broken = jnp.isnan(h.reshape(-1)[0])
    return h, jax.lax.cond(broken, lambda a: jnp.nan * a, lambda a: a, tangent)

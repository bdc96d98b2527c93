"""GELU with a derivative that is computed once, beside the value: what a backward pass keeps of it is one array."""

import math

import jax
import jax.numpy as jnp

from guidance.nets.residual import held
from guidance.types import Array


def tanh_gelu(x: Array) -> Array:
    """Returns x (1 + tanh u)/2 with u = sqrt(2/pi) (x + 0.044715 x^3), elementwise, in the dtype of x.

    JAX's own derivative keeps five arrays of the size of x for the backward pass, this one keeps one.
    Source: Gaussian Error Linear Units, arXiv 1606.08415, section 2.
    """
    return _tanh_gelu(held(x))


@jax.custom_jvp
def _tanh_gelu(x):
    return _with_slope(x)[0]


@_tanh_gelu.defjvp
def _(primals, tangents):
    value, slope = _with_slope(*primals)
    return value, slope * tangents[0]


def _with_slope(x):
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = x * x
    tanh = jnp.tanh(scale * x * (1 + cubic * square))
    half = 0.5 + 0.5 * tanh
    return x * half, half + 0.5 * x * (1 - tanh * tanh) * (scale * (1 + 3 * cubic * square))

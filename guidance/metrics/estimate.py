"""`Estimate`, a number with its standard error, and means that stay accurate over many samples."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from guidance.shapes import safe_sqrt
from guidance.types import Array


class Estimate(NamedTuple):
    """A statistic and its standard error, both scalars in the same units."""

    value: Array
    standard_error: Array


def accumulator_dtype(dtype):
    """Returns the dtype for sums: float64 if x64 is enabled, otherwise the wider of `dtype` and float32."""
    return jnp.promote_types(dtype, jnp.result_type(float))


def block_mean(values: Array) -> Array:
    """Returns the mean of `values` [n], summed in about sqrt(n) blocks of about sqrt(n) values.

    The rounding error of a float32 sum then grows like sqrt(n) eps in the worst case instead of n eps. Our choice.
    """
    n = values.shape[0]
    side = max(1, math.isqrt(n))
    padded = jnp.pad(values.astype(accumulator_dtype(values.dtype)), (0, -n % side))
    return jnp.sum(jnp.sum(padded.reshape(-1, side), axis=0)) / n


def variance_of_mean(values: Array) -> Array:
    """Returns sum_i (v_i - mean)^2 / (n (n - 1)), the squared standard error of the mean of independent v [n]."""
    n = values.shape[0]
    return block_mean(jnp.square(values - block_mean(values))) / (n - 1)


def mean_estimate(values: Array) -> Estimate:
    """Returns the mean of independent `values` [n] with its standard error. Raises ValueError for n < 2."""
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(f"values must have shape [n] with n >= 2, got {values.shape}")
    return Estimate(block_mean(values), safe_sqrt(variance_of_mean(values)))

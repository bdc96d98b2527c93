"""Precision, recall, density and coverage from nearest-neighbour balls in a feature space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from guidance.metrics.distances import padded_blocks, squared_distances
from guidance.metrics.estimate import accumulator_dtype, block_mean
from guidance.types import Array

# Rows that are compared at once with the whole other sample; memory is chunk x max(n, m) values.
CHUNK = 256


class Manifold(NamedTuple):
    """Four scalars, near 1 if fake and real have one distribution. Only density may exceed 1."""

    precision: Array
    recall: Array
    density: Array
    coverage: Array


def precision_recall_density_coverage(real: Array, fake: Array, k: int = 5, chunk: int = CHUNK) -> Manifold:
    """Computes how far the samples real [n, d], fake [m, d] lie within each other's k-nearest-neighbour balls.

    Let B_k(z) be the ball around z up to the k-th nearest other row of z's sample. Then

        precision = share of fake rows in at least one B_k(real)
        recall    = share of real rows in at least one B_k(fake)
        density   = 1/(k m) sum over fake rows of the number of B_k(real) that contain the row
        coverage  = share of B_k(real) that contain at least one fake row

    Balls are open, as in the code of the second source; evaluation suites with closed balls differ only in ties.
    Raises ValueError unless both samples have more than k >= 1 rows and the same number of features.
    Source: Improved Precision and Recall Metric, arXiv 1904.06991, eq. 1-3; Reliable Fidelity and Diversity Metrics,
    arXiv 2002.09797, eq. 2-4 (k = 5 is its default).
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"samples must be [n, d] and [m, d], got {real.shape} and {fake.shape}")
    if not 1 <= k < min(real.shape[0], fake.shape[0]):
        raise ValueError(f"k must satisfy 1 <= k < min(n, m), got k={k} for {real.shape} and {fake.shape}")
    real_radii = squared_neighbour_radii(real, k, chunk)
    fake_radii = squared_neighbour_radii(fake, k, chunk)
    m = fake.shape[0]
    size = min(chunk, m)

    def visit(hits, block):
        recalled, covered = hits
        rows, radii, index = block
        squared = squared_distances(rows, real)
        valid = (index < m)[:, None]
        in_real_ball = (squared < real_radii[None, :]) & valid
        in_fake_ball = (squared < radii[:, None]) & valid
        hits = recalled | jnp.any(in_fake_ball, axis=0), covered | jnp.any(in_real_ball, axis=0)
        return hits, jnp.sum(in_real_ball, axis=1, dtype=jnp.int32)

    nothing = jnp.zeros(real.shape[0], bool)
    blocks = (
        padded_blocks(fake, size),
        padded_blocks(fake_radii[:, None], size)[:, :, 0],
        jnp.arange(m + -m % size, dtype=jnp.int32).reshape(-1, size),
    )
    (recalled, covered), balls = jax.lax.scan(visit, (nothing, nothing), blocks)
    balls = balls.reshape(-1)[:m]
    density = block_mean(balls.astype(accumulator_dtype(real.dtype))) / k
    return Manifold(_share(balls > 0), _share(recalled), density, _share(covered))


def squared_neighbour_radii(x: Array, k: int, chunk: int = CHUNK) -> Array:
    """Returns the squared distance [n] from each row of x [n, d] to its k-th nearest other row."""
    n = x.shape[0]
    size = min(chunk, n)
    every = jnp.arange(n, dtype=jnp.int32)

    def radii(block):
        rows, index = block
        others = index[:, None] != every[None, :]
        squared = jnp.where(others, squared_distances(rows, x), jnp.inf)
        return -jax.lax.top_k(-squared, k)[0][:, -1]

    index = jnp.arange(n + -n % size, dtype=jnp.int32).reshape(-1, size)
    return jax.lax.map(radii, (padded_blocks(x, size), index)).reshape(-1)[:n]


def _share(hits: Array) -> Array:
    """Returns the share of true entries. It is counted in integers and rounded once."""
    return jnp.sum(hits, dtype=jnp.int32).astype(accumulator_dtype(jnp.float32)) / hits.shape[0]

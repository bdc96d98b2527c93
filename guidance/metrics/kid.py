"""The kernel inception distance in blocks: unbiased, with a standard error that holds for equal distributions too."""

import jax

from guidance.metrics.energy import mmd_squared, polynomial_kernel
from guidance.metrics.estimate import Estimate, mean_estimate
from guidance.types import Array

BLOCK = 1000  # rows; the size that published numbers use


def kernel_inception_distance(key: Array, x: Array, y: Array, block: int = BLOCK) -> Estimate:
    """Estimates the KID, an MMD^2, without bias from feature rows x [n, d], y [m, d], as a mean over random blocks.

        MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x.y / d + 1)^3

    The rows are cut at random into B = min(n, m) // block disjoint pairs of blocks. The value is the mean of their
    `mmd_squared`, and the standard error is sd / sqrt(B). `mmd_squared` of all rows has the same expectation and a
    smaller spread, but a standard error that is too large by sqrt(2) for equal distributions. Evaluation suites
    average over 100 overlapping blocks and print the standard deviation of a block, not of the mean. Disjoint blocks
    are our choice, because they are independent. Costs 4 B block^2 kernel values, with one block x block matrix in
    memory. Raises ValueError unless block >= 2, B >= 2 and both have the same number of features.
    Source: Demystifying MMD GANs, arXiv 1801.01401, section 4.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"samples must be [n, d] and [m, d], got {x.shape} and {y.shape}")
    blocks = min(x.shape[0], y.shape[0]) // max(block, 1)
    if block < 2 or blocks < 2:
        raise ValueError(f"two blocks of at least 2 rows are needed, got block={block} for {x.shape} and {y.shape}")
    key_x, key_y = jax.random.split(key)

    def random_blocks(key, rows):
        order = jax.random.permutation(key, rows.shape[0])[: blocks * block]
        return order.reshape(blocks, block)

    def distance(pair):
        index_x, index_y = pair
        return mmd_squared(polynomial_kernel(3), x[index_x], y[index_y], chunk=block).value

    return mean_estimate(jax.lax.map(distance, (random_blocks(key_x, x), random_blocks(key_y, y))))

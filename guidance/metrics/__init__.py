"""Metrics: how far a sample is from the true distribution. Each docstring names the quantity and its units."""

from guidance.metrics.energy import distance_kernel, energy_distance, mmd_squared, polynomial_kernel, rbf_kernel
from guidance.metrics.estimate import Estimate, mean_estimate
from guidance.metrics.frechet import (
    Gaussian,
    GaussianStats,
    empty_stats,
    frechet_distance,
    gaussian_frechet_distance,
    gaussian_stats,
    merge_stats,
)
from guidance.metrics.inception import inception_score
from guidance.metrics.kid import kernel_inception_distance
from guidance.metrics.manifold import Manifold, precision_recall_density_coverage
from guidance.metrics.modes import (
    ModeMoments,
    mode_moments,
    mode_shares,
    nearest_mode,
    negative_log_likelihood,
    share_error,
    variance_ratio,
)
from guidance.metrics.wasserstein import sliced_wasserstein, sliced_wasserstein_along, wasserstein_1d

__all__ = [
    "Estimate",
    "Gaussian",
    "GaussianStats",
    "Manifold",
    "ModeMoments",
    "distance_kernel",
    "empty_stats",
    "energy_distance",
    "frechet_distance",
    "gaussian_frechet_distance",
    "gaussian_stats",
    "inception_score",
    "kernel_inception_distance",
    "mean_estimate",
    "merge_stats",
    "mmd_squared",
    "mode_moments",
    "mode_shares",
    "nearest_mode",
    "negative_log_likelihood",
    "polynomial_kernel",
    "precision_recall_density_coverage",
    "rbf_kernel",
    "share_error",
    "sliced_wasserstein",
    "sliced_wasserstein_along",
    "variance_ratio",
    "wasserstein_1d",
]

"""Sampling: grids of times, steps between them, and `sample`, which knows no rule."""

from guidance.sampling.grids import edm_grid, log_snr_grid, uniform_grid
from guidance.sampling.sample import Sampled, initial_noise, sample
from guidance.sampling.steps import churned_ddim, ddim, transition

__all__ = [
    "Sampled",
    "churned_ddim",
    "ddim",
    "edm_grid",
    "initial_noise",
    "log_snr_grid",
    "sample",
    "transition",
    "uniform_grid",
]

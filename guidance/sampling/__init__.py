"""Sampling: grids of times, steps and solvers, and `sample`, which runs them with a guide.

Evaluations of the guide over N steps of a grid that ends at sigma = 0 (each costs 1 or 2 branches of the network):

    order 1, N        euler, ddim, churned_ddim, ddpm
    order 2, N        dpmpp_2m, dpmpp_2m_sde, unipc (3 between finite lambdas)
    order 2, 2N - 1   heun, edm, edm_stochastic, dpmpp_2s, dpmpp_2s_sde (2N - 2 from alpha = 0 but for heun)
    reference         adaptive (as many as its tolerance needs), exact_reverse (none; for mixtures only)
"""

from guidance.sampling.adaptive import adaptive
from guidance.sampling.dpm import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_2s_sde
from guidance.sampling.grids import (
    as_grid,
    cosine_grid,
    edm_grid,
    log_snr_grid,
    noise_level_grid,
    resolution_shift,
    shifted,
    uniform_grid,
)
from guidance.sampling.grids import edm_grid as karras_grid
from guidance.sampling.sample import Sampled, from_noise, initial_noise, sample
from guidance.sampling.solvers import as_solver, edm, edm_stochastic, exact_reverse, heun
from guidance.sampling.steps import churned_ddim, ddim, ddpm, euler, transition
from guidance.sampling.unipc import unipc

__all__ = [
    "Sampled",
    "adaptive",
    "as_grid",
    "as_solver",
    "churned_ddim",
    "cosine_grid",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_2s_sde",
    "edm",
    "edm_grid",
    "edm_stochastic",
    "euler",
    "exact_reverse",
    "from_noise",
    "heun",
    "initial_noise",
    "karras_grid",
    "log_snr_grid",
    "noise_level_grid",
    "resolution_shift",
    "sample",
    "shifted",
    "transition",
    "uniform_grid",
    "unipc",
]

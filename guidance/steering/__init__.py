"""Steering: samplers of tilted distributions, by weighted particles, Gibbs-like rounds or Langevin correctors."""

from guidance.steering.feynman_kac import cfg_log_weight, feynman_kac
from guidance.steering.gibbs import gaussian_renyi, gibbs
from guidance.steering.particles import (
    Population,
    ess,
    evolve,
    log_mean_weight,
    resample,
    resample_below,
    systematic,
)
from guidance.steering.predictor_corrector import correct, langevin, predict, predictor_corrector

__all__ = [
    "Population",
    "cfg_log_weight",
    "correct",
    "ess",
    "evolve",
    "feynman_kac",
    "gaussian_renyi",
    "gibbs",
    "langevin",
    "log_mean_weight",
    "predict",
    "predictor_corrector",
    "resample",
    "resample_below",
    "systematic",
]

"""Weights: functions (s, t, cond) -> omega [batch], fixed shapes and the learned network."""

from guidance.weights.annealing import AnnealingNet, annealing
from guidance.weights.fixed import clamp_linear, constant, interval, table, times_of_log_snr, times_of_noise_level
from guidance.weights.learned import GuidanceNet, learned

__all__ = [
    "AnnealingNet",
    "GuidanceNet",
    "annealing",
    "clamp_linear",
    "constant",
    "interval",
    "learned",
    "table",
    "times_of_log_snr",
    "times_of_noise_level",
]

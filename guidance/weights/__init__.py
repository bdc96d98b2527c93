"""Weights: functions (s, t, cond) -> omega [batch], fixed shapes and the learned network."""

from guidance.weights.fixed import clamp_linear, constant, interval, table, times_of_log_snr, times_of_noise_level
from guidance.weights.learned import GuidanceNet, learned

__all__ = [
    "GuidanceNet",
    "clamp_linear",
    "constant",
    "interval",
    "learned",
    "table",
    "times_of_log_snr",
    "times_of_noise_level",
]

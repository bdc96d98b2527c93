"""Weights: functions (*, t, s, cond) -> omega [batch], with a fixed shape or learned."""

from guidance.schedules import times_of_log_snr, times_of_noise_level
from guidance.weights.annealing import AnnealingNet, annealing
from guidance.weights.fixed import (
    constant,
    interval,
    interval_of_log_snr,
    interval_of_noise_levels,
    interval_of_steps,
    snap,
    table,
    tabulated,
)
from guidance.weights.learned import GuidanceNet, learned
from guidance.weights.ramps import RAMPS, beta, clamp_linear, exponential, powered_cosine, ramp
from guidance.weights.stepwise import step_down, step_up, time_mean, triangle

__all__ = [
    "RAMPS",
    "AnnealingNet",
    "GuidanceNet",
    "annealing",
    "beta",
    "clamp_linear",
    "constant",
    "exponential",
    "interval",
    "interval_of_log_snr",
    "interval_of_noise_levels",
    "interval_of_steps",
    "learned",
    "powered_cosine",
    "ramp",
    "snap",
    "step_down",
    "step_up",
    "table",
    "tabulated",
    "time_mean",
    "times_of_log_snr",
    "times_of_noise_level",
    "triangle",
]

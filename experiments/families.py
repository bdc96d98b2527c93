"""The rules and schedules that compete with a constant weight of CFG, by name, with their other knobs as published."""

from collections.abc import Callable

from guidance import rules, weights
from guidance.types import Array, Rule, Weight

RULES: dict[str, Rule] = {
    "cfg": rules.cfg,
    "angle_domain": rules.angle_domain(),
    "apg": rules.apg(0.0, 2.5, -0.5),
    "tcfg": rules.tcfg(),
    "cfg_rescale": rules.cfg_rescale(),
    "ep_cfg": rules.ep_cfg(),
    "mahiro": rules.mahiro,
    "power_law": rules.power_law(),
    "magnitude_aware": rules.magnitude_aware(2.0),
    "cfg_zero_star": rules.cfg_zero_star(),
    "frequency_decoupled": rules.frequency_decoupled(),
    "gap_normalised": rules.gap_normalised(0.5),
    "cfg_plus_plus": rules.cfg_plus_plus(),
}

AUTOGUIDED = "autoguided"  # the rule of CFG, away from the denoiser as it was after fewer updates


def rule_of(name: str) -> Rule:
    """The rule of that name; autoguidance differs from CFG in its reference only."""
    return RULES["cfg" if name == AUTOGUIDED else name]


# (grid, omega) -> weight
WEIGHTS: dict[str, Callable[[Array, float], Weight]] = {
    "interval (0.3, 0.8]": lambda grid, omega: weights.interval(omega, 0.3, 0.8),
    "interval (0, 0.6]": lambda grid, omega: weights.interval(omega, 0.0, 0.6),
    "clamp_linear": lambda grid, omega: weights.clamp_linear(omega, 1.0),
    "triangle": weights.triangle,
    "cosine": lambda grid, omega: weights.ramp("cosine", omega),
    "inverse_linear": lambda grid, omega: weights.ramp("inverse_linear", omega),
    "step_up": weights.step_up,
    "exponential": lambda grid, omega: weights.exponential(omega, -2.0),
}

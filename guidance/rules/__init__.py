"""Rules: how the two predictions are combined. A rule is a function (positive, reference, omega) -> x0, or a stage."""

from guidance.rules.angle import angle_domain
from guidance.rules.annealed import annealed
from guidance.rules.flow import cfg_zero_star, optimized_scale, zero_init
from guidance.rules.frequency import frequency_decoupled
from guidance.rules.gains import effective_scale, gap_normalised, magnitude_aware, power_law
from guidance.rules.linear import cfg, omega_from_scale, scale_from_omega, unguided
from guidance.rules.norms import cfg_rescale, energy, ep_cfg, mahiro, mahiro_batch, rescale
from guidance.rules.plus import cfg_plus_plus
from guidance.rules.projected import apg, momentum, norm_cap, perp_neg, project, tangential, tcfg
from guidance.rules.stacking import as_stage, channels, neutral, once, stack

__all__ = [
    "angle_domain",
    "annealed",
    "apg",
    "as_stage",
    "cfg",
    "cfg_plus_plus",
    "cfg_rescale",
    "cfg_zero_star",
    "channels",
    "effective_scale",
    "energy",
    "ep_cfg",
    "frequency_decoupled",
    "gap_normalised",
    "magnitude_aware",
    "mahiro",
    "mahiro_batch",
    "momentum",
    "neutral",
    "norm_cap",
    "omega_from_scale",
    "once",
    "optimized_scale",
    "perp_neg",
    "power_law",
    "project",
    "rescale",
    "scale_from_omega",
    "stack",
    "tangential",
    "tcfg",
    "unguided",
    "zero_init",
]

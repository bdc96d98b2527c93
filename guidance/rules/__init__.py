"""Rules: pure functions (positive, reference, omega) -> guided x0-prediction."""

from guidance.rules.linear import cfg, omega_from_scale, scale_from_omega, unguided

__all__ = ["cfg", "omega_from_scale", "scale_from_omega", "unguided"]

"""The objectives that a guidance weight is trained on, and the update that trains it.

`one_step` has the paper's objectives, which noise a true sample and take a single guided step. `rollout` trains
through the whole sampler. `training` turns a recipe into a network, a loss and an optimiser. `mismatch` estimates
distances between distributions. `annealing` and `matched` have the losses of two published rules. `averages` averages
parameters over updates.
"""

from guidance.learning.model import Model
from guidance.learning.one_step import (
    OneStep,
    Particles,
    draw_steps,
    guided_particles,
    l2,
    marginal_consistency,
    mean_reward,
    per_condition_consistency,
    reward_only,
    score_matching,
    self_consistency,
)
from guidance.learning.rollout import REMAT, Rollout, rollout_loss
from guidance.learning.updating import update, update_in_parts, updates

__all__ = [
    "REMAT", "Model", "OneStep", "Particles", "Rollout", "draw_steps", "guided_particles", "l2",
    "marginal_consistency", "mean_reward", "per_condition_consistency", "reward_only", "rollout_loss",
    "score_matching", "self_consistency", "update", "update_in_parts", "updates",
]  # fmt: skip

"""Learning guidance: the objectives that a weight is trained on, and one update.

`one_step`: the paper's objectives, which noise a true sample and correct a single step. `rollout`: through the sampler
that will be used. `training`: from a recipe to network, loss and optimiser. `mismatch`: the distances between laws.
`annealing`, `matched`: the losses of two published rules. `averages`: averages of params.
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
from guidance.learning.updating import update, update_in_parts

__all__ = [
    "REMAT", "Model", "OneStep", "Particles", "Rollout", "draw_steps", "guided_particles", "l2",
    "marginal_consistency", "mean_reward", "per_condition_consistency", "reward_only", "rollout_loss",
    "score_matching", "self_consistency", "update", "update_in_parts",
]  # fmt: skip

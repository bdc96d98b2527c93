"""`Model`: the frozen denoiser that guidance is learned for, and how it is guided."""

from typing import NamedTuple

import jax

from guidance import checks
from guidance.guides import autoguided, both_branches, guided
from guidance.guides.two import prediction_of
from guidance.rules import cfg
from guidance.sampling import Sampled, from_noise
from guidance.types import Array, Cond, Denoise, Guide, Rule, Schedule, Solver, Step, Weight


class Model(NamedTuple):
    """The frozen denoiser, its schedule, the null condition and the rule; objectives take it beside weight and data.

    weak: a second denoiser, whose prediction at the same condition is the reference (autoguidance). None: the
    reference is the denoiser's own prediction at `null`. With `weak`, `null` is not used.
    """

    denoise: Denoise
    schedule: Schedule
    null: Cond
    rule: Rule = cfg
    weak: Denoise | None = None

    def branches(self, x: Array, t: Array, cond: Cond) -> tuple[Array, Array]:
        """Returns the prediction at `cond` and the reference at (x, t), each [batch, ...]. Costs 2 evaluations."""
        if self.weak is None:
            return both_branches(checks.watched(self.denoise), x, t, cond, self.null)
        strong, weak = checks.watched(self.denoise), checks.watched(self.weak)
        return prediction_of(strong, x, t, cond), prediction_of(weak, x, t, cond)

    def guide(self, weight: Weight, skip: bool = True) -> Guide:
        """Returns the guide that applies the rule with this weight; `skip` is that of `guides.guided`."""
        if self.weak is None:
            return guided(self.rule, weight, self.null, skip)
        return autoguided(self.rule, weight, self.weak, skip)

    def sample(
        self,
        key: Array,
        weight: Weight,
        step: Step | Solver,
        grid: Array,
        shape: tuple[int, ...],
        cond: Cond,
        ids: Array,
    ) -> Sampled:
        """Draws noise and samples from it with this weight: `sampling.from_noise` with the two halves of the key.

        cond leaves [batch, ...], ids [batch]; a sample follows from the key and its id.
        """
        return from_noise(
            jax.random.split(key), self.denoise, self.guide(weight), step, self.schedule, grid, shape, cond, ids=ids
        )

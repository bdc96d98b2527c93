"""The frozen model that guidance is learned for."""

from typing import NamedTuple

from guidance import checks
from guidance.guides import autoguided, both_branches, guided
from guidance.guides.two import asked
from guidance.rules import cfg
from guidance.types import Array, Cond, Denoise, Guide, Rule, Schedule, Weight


class Model(NamedTuple):
    """The frozen model that is being guided: what every objective needs beside the weight and the data.

    null: the null condition. weak: a denoiser whose prediction at the same condition stands for the reference
    (autoguidance); None: the reference is the prediction at `null`, which is asked for nowhere else.
    """

    denoise: Denoise
    schedule: Schedule
    null: Cond
    rule: Rule = cfg
    weak: Denoise | None = None

    def branches(self, x: Array, t: Array, cond: Cond) -> tuple[Array, Array]:
        """The two predictions at (x, t), each [batch, ...]. 2 evaluations."""
        if self.weak is None:
            return both_branches(checks.watched(self.denoise), x, t, cond, self.null)
        return asked(checks.watched(self.denoise), x, t, cond), asked(checks.watched(self.weak), x, t, cond)

    def guide(self, weight: Weight, skip: bool = True) -> Guide:
        """The guide of the rule with this weight, as a sampler takes it; `skip` as in `guides.guided`."""
        if self.weak is None:
            return guided(self.rule, weight, self.null, skip)
        return autoguided(self.rule, weight, self.weak, skip)

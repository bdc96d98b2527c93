"""Smooth weights: functions of time alone, after published schedules of the guidance scale.

tau = 1 - t is the progress of sampling, from 0 at noise to 1 at data. On a uniform grid it is the papers' step number
divided by the number of steps. The papers print the scale w = 1 + omega. Here every argument is an omega; with
of="scale" the scale 1 + omega follows the ramp, as in the papers. Power-law guidance, whose strength depends on
|D_c - D_u|, is a rule: `rules.power_law`.
"""

import dataclasses
import math
from typing import Annotated, Any

import jax.numpy as jnp
from jax.scipy.special import betaln
from jax.tree_util import Partial

from guidance.ranges import Finite, Floor, Number, OneOf, Positive, ranged
from guidance.types import Array, Weight

# profiles: functions of the progress tau whose mean over [0, 1] is 1
RAMPS = {
    "linear": lambda tau: 2 * tau,
    "cosine": lambda tau: 1 - jnp.cos(jnp.pi * tau),
    "inverse_linear": lambda tau: 2 * (1 - tau),
    "sine": lambda tau: 1 + jnp.cos(jnp.pi * tau),
    "v": lambda tau: 2 * jnp.abs(1 - 2 * tau),
    "lambda": lambda tau: 2 * (1 - jnp.abs(1 - 2 * tau)),
}
_OF = ("scale", "omega")
Exponent = Annotated[Any, Number(1, math.inf, "[)")]


@ranged
def ramp(
    shape: Annotated[str, OneOf(RAMPS)],
    omega: Finite,
    floor: Floor = -math.inf,
    of: Annotated[str, OneOf(_OF)] = "scale",
) -> Weight:
    """Builds a weight that follows a ramp r(tau) of mean 1, tau = 1 - t; its time average is the constant omega.

        linear 2 tau | cosine 1 - cos(pi tau) | inverse_linear 2 (1 - tau) | sine 1 + cos(pi tau)
        v 2 |1 - 2 tau| | lambda 2 (1 - |1 - 2 tau|)

        of="scale":  1 + omega(t) = max(floor, (1 + omega) r(tau))      (the paper)
        of="omega":  1 + omega(t) = max(floor, 1 + omega r(tau))        (never less than unguided for omega >= 0)

    floor: the smallest scale (the paper's c_0; 1 means at least unguided). Where it applies it raises the average.
    `ramp("lambda", omega, of="omega")` is the triangle in the text of arXiv 2509.22007; `triangle` is that of its
    code. omega and floor are leaves. Raises ValueError for an unknown shape or `of`.
    Source: Analysis of Classifier-Free Guidance Weight Schedulers, arXiv 2404.13040 (of="omega": our choice).
    """
    return Partial(_Ramp(shape, of), omega, floor)


@dataclasses.dataclass(frozen=True)
class _Ramp:
    """The static part of a ramp. It compares by value, so that building it twice does not compile twice."""

    shape: str
    of: str

    def __call__(self, omega, floor, *, t, s, cond):
        del s, cond
        return _applied(self.of, omega, floor, RAMPS[self.shape](1 - t))


@ranged
def clamp_linear(omega: Finite, floor: Floor) -> Weight:
    """Builds the clamped linear ramp, scale = max(floor, 2 (1 + omega) (1 - t)), which is `ramp("linear", ..)`."""
    return ramp("linear", omega, floor)


@ranged
def powered_cosine(
    omega: Finite, power: Positive, floor: Floor = -math.inf, of: Annotated[str, OneOf(_OF)] = "scale"
) -> Weight:
    """Builds a weight that follows the profile (1 - cos(pi tau^power)) / 2, tau = 1 - t, from 0 at noise to 1 at data.

    A larger power > 0 makes it rise later. The profile is not normalised: omega is the weight at data, t = 0. `of` and
    `floor` are those of `ramp`. omega, power and floor are leaves. Raises ValueError for an unknown `of`.
    Source: Analysis of Classifier-Free Guidance Weight Schedulers, arXiv 2404.13040, powered cosine; of="omega" is the
    form of the code of Masked Diffusion Transformer, arXiv 2303.14389.
    """
    return Partial(_PoweredCosine(of), omega, power, floor)


@dataclasses.dataclass(frozen=True)
class _PoweredCosine:
    of: str

    def __call__(self, omega, power, floor, *, t, s, cond):
        del s, cond
        # tau = 0 is replaced before the power is taken, since the derivatives of 0^power are not finite
        started = t < 1
        powered = jnp.where(started, jnp.where(started, 1 - t, 1) ** power, 0)
        return _applied(self.of, omega, floor, (1 - jnp.cos(jnp.pi * powered)) / 2)


@ranged
def beta(omega: Finite, a: Exponent, b: Exponent) -> Weight:
    """Builds the weight whose scale is (1 + omega) p(tau), tau = 1 - t, with the Beta density p of mean 1.

        p(tau) = tau^(a-1) (1 - tau)^(b-1) / B(a, b)

    The mean scale is 1 + omega. Where p is 0 (at both ends, for a, b > 1) omega is -1: the prediction is
    unconditional. a, b >= 1, so that p has no poles. The paper has a = b = 2, its code a = 2, b = 3. The paper also
    divides the gap by a power of its norm; that part is the rule `rules.gap_normalised`.
    Source: Classifier-free Guidance with Adaptive Scaling, arXiv 2502.10574 (its progress is step / (steps - 1)).
    """
    return Partial(_beta, omega, a, b)


def _beta(omega, a, b, *, t, s, cond):
    del s, cond
    tiny = float(jnp.finfo(t.dtype).tiny)
    log_tau, log_rest = jnp.log(jnp.maximum(1 - t, tiny)), jnp.log(jnp.maximum(t, tiny))
    # the floor of the logarithms keeps values and gradients finite at both ends
    exponent = (a - 1) * log_tau + (b - 1) * log_rest - betaln(jnp.asarray(a, t.dtype), jnp.asarray(b, t.dtype))
    return (1 + omega) * jnp.exp(exponent) - 1


@ranged
def exponential(omega: Finite, rate: Finite) -> Weight:
    """Builds the weight with the scale (1 + omega) exp(rate (1 - t)): 1 + omega at noise, e^rate times that at data.

    Its mean scale is (1 + omega) (e^rate - 1) / rate. We found no published rate.
    Source: C2FG: Control Classifier-Free Guidance via Score Discrepancy Analysis, arXiv 2603.08155 (its t/T is our t,
    its omega is our scale).
    """
    return Partial(_exponential, omega, rate)


def _exponential(omega, rate, *, t, s, cond):
    del s, cond
    return (1 + omega) * jnp.exp(rate * (1 - t)) - 1


def _applied(of: str, omega, floor, profile: Array) -> Array:
    """Returns omega with the scale (1 + omega) profile, or for of="omega" 1 + omega profile, but at least `floor`."""
    scale = (1 + omega) * profile if of == "scale" else 1 + omega * profile
    return jnp.maximum(floor, scale) - 1

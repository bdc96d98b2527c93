"""The learned weight: a small network omega_phi(s, t, c), which does not depend on x.

    omega = head(MLP_6(embed(log_snr(s), log_snr(t)), embed(c)))

Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815 (6-layer MLP, log-SNR of s and t through a 2-layer MLP,
non-negative output). Widths, activation, initialisation and the head's gradient at zero are our choice.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.conditions import flat_features
from guidance.types import Array, Cond, Schedule, Weight
from guidance.weights.fixed import interval as limited

# the log-SNR runs over about [-10, 10]; this factor brings the inputs of the network to order one
_LOG_SNR_SCALE = 0.2
HEADS = ("nonnegative", "signed")


@jax.custom_vjp
def nonnegative(a: Array) -> Array:
    """Returns max(a, 0), with a gradient that lets a weight leave zero again.

    Where a > 0 the gradient g passes. Where a <= 0 it passes only if descent raises a (g < 0), as in projected
    gradient descent. The gradient of a ReLU is zero there, so that a weight could not leave zero. Softplus is never
    exactly zero, so that no branch could be skipped, and its gradient vanishes far below zero. Our choice; the paper
    has a ReLU, and its follow-up, arXiv 2608.14038, softplus.
    """
    return jnp.maximum(a, 0)


def _nonnegative_forward(a):
    return jnp.maximum(a, 0), a


def _nonnegative_backward(a, g):
    return (jnp.where((a > 0) | (g < 0), g, jnp.zeros_like(g)),)


nonnegative.defvjp(_nonnegative_forward, _nonnegative_backward)


class GuidanceNet(nn.Module):
    """The guidance network (*, log_snr_t, log_snr_s, cond) -> omega [batch].

    condition: "label" embeds int labels 0 .. num_classes - 1. "features" projects all numbers in the leaves of a
        condition (`conditions.flat_features`). "none" ignores the condition.
    initial_omega: the constant that the untrained network returns.
    head: "nonnegative" is the paper's: `nonnegative` of the last layer's output. It needs initial_omega > 0, so that
        training starts with a gradient. "signed" is the output itself. A negative omega moves the prediction towards
        the reference, and -1 all the way.
    """

    condition: str = "label"
    num_classes: int = 0
    width: int = 128
    depth: int = 6
    time_width: int = 64
    cond_width: int = 64
    initial_omega: float = 0.5
    head: str = "nonnegative"

    @nn.compact
    def __call__(self, *, log_snr_t: Array, log_snr_s: Array, cond: Cond) -> Array:
        times = _LOG_SNR_SCALE * jnp.stack([log_snr_s, log_snr_t, log_snr_s - log_snr_t], axis=-1)
        h = nn.Dense(self.time_width)(nn.silu(nn.Dense(self.time_width)(times)))
        if self.condition == "label":
            h = jnp.concatenate([h, nn.Embed(self.num_classes, self.cond_width)(cond)], axis=-1)
        elif self.condition == "features":
            h = jnp.concatenate([h, nn.Dense(self.cond_width)(flat_features(cond))], axis=-1)
        elif self.condition != "none":
            raise ValueError(f"condition must be 'label', 'features' or 'none', got {self.condition!r}")
        if self.head not in HEADS:
            raise ValueError(f"head must be {' or '.join(map(repr, HEADS))}, got {self.head!r}")
        for _ in range(self.depth - 1):
            h = nn.silu(nn.Dense(self.width)(h))
        bias = nn.initializers.constant(self.initial_omega)
        a = nn.Dense(1, kernel_init=nn.initializers.zeros, bias_init=bias)(h)[..., 0]
        return nonnegative(a) if self.head == "nonnegative" else a


def learned(
    net: GuidanceNet,
    params,
    schedule: Schedule,
    s_min: float = 0.01,
    t_max: float = 0.99,
    gap_min: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Weight:
    """Builds the weight of a trained network `net`; its leaves are `params`.

    Times are clamped to those of training: s >= s_min, t <= t_max and t - s >= gap_min. Training may never see a small
    step: with delta = 0.1 it never sees the steps of 0.01 of a 100-step sampler. Such a step gets the weight of the
    nearest trained one, from t to max(t - gap_min, s_min), since the network has learned nothing beyond.

    interval = (lo, hi): the weight is 0 unless lo < t <= hi, as with `weights.interval`, so that a step outside costs
    one evaluation. t is compared before it is clamped.
    """
    return Partial(_Learned(net, schedule, s_min, t_max, gap_min, interval), params)


@dataclasses.dataclass(frozen=True)
class _Learned:
    net: GuidanceNet
    schedule: Schedule
    s_min: float
    t_max: float
    gap_min: float
    interval: tuple[float, float] | None

    def __call__(self, params, *, t, s, cond):
        if self.net.condition == "label":
            checks.is_label(cond, self.net.num_classes)
        trained = jnp.clip(t, self.s_min, self.t_max)
        s = jnp.clip(jnp.minimum(s, trained - self.gap_min), self.s_min, self.t_max)
        times = {"log_snr_t": self.schedule.log_snr(trained), "log_snr_s": self.schedule.log_snr(s)}
        omega = self.net.apply(params, **times, cond=cond).astype(t.dtype)
        return omega if self.interval is None else limited(omega, *self.interval)(t=t, s=s, cond=cond)

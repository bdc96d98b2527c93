"""The five predictions of networks and the conversions between them: x0, eps, v, velocity, score.

With x = alpha x_0 + sigma eps every prediction is a linear function of the pair (x_0, eps):

    v        = alpha eps - sigma x_0                (arXiv 2202.00512)
    velocity = alpha' x_0 + sigma' eps              (d x_t / d t; eps - x_0 for rectified flow)
    score    = -eps / sigma                         (gradient of the log density)

A conversion at fixed (x, t) goes through x_0. At sigma = 0 eps cannot be recovered from x_0, and at alpha = 0 x_0
cannot be recovered from eps. There we floor the divisor, so that the result is finite.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from guidance import checks
from guidance.shapes import like
from guidance.types import Array, Denoise, Schedule

PREDICTIONS = ("x0", "eps", "v", "velocity", "score")


def _divide(a: Array, b: Array) -> Array:
    """Returns a / b for b >= 0. The floor on b keeps a / b^2 finite too, since the score divides twice."""
    floor = float(jnp.finfo(jnp.result_type(b)).tiny) ** 0.45
    return a / jnp.maximum(b, floor)


def eps_from_x0(schedule: Schedule, x: Array, x0: Array, t: Array) -> Array:
    """Returns eps = (x - alpha x_0) / sigma for x, x0 [batch, ...] and t [batch]; it is finite at sigma = 0."""
    alpha, sigma = like(schedule.alpha(t), x), like(schedule.sigma(t), x)
    return _divide(x - alpha * x0, sigma)


def x0_from(kind: str, schedule: Schedule, x: Array, prediction: Array, t: Array) -> Array:
    """Converts a prediction of the given kind at (x, t) to the x0-prediction.

    eps:       x_0 = (x - sigma eps) / alpha
    v:         x_0 = (alpha x - sigma v) / (alpha^2 + sigma^2)
    velocity:  x_0 = (sigma' x - sigma velocity) / (alpha sigma' - sigma alpha')
    score:     x_0 = (x + sigma^2 score) / alpha

    x, prediction [batch, ...]; t [batch]. Raises ValueError for an unknown kind.
    """
    _check(kind)
    if kind == "x0":
        return prediction
    alpha, sigma = like(schedule.alpha(t), x), like(schedule.sigma(t), x)
    if kind == "eps":
        return _divide(x - sigma * prediction, alpha)
    if kind == "score":
        return _divide(x + sigma**2 * prediction, alpha)
    if kind == "v":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    alpha_dot, sigma_dot = like(schedule.alpha_dot(t), x), like(schedule.sigma_dot(t), x)
    return _divide(sigma_dot * x - sigma * prediction, alpha * sigma_dot - sigma * alpha_dot)


def x0_to(kind: str, schedule: Schedule, x: Array, x0: Array, t: Array) -> Array:
    """Converts the x0-prediction at (x, t) to a prediction of the given kind; this is the inverse of `x0_from`."""
    _check(kind)
    if kind == "x0":
        return x0
    eps = eps_from_x0(schedule, x, x0, t)
    if kind == "eps":
        return eps
    if kind == "score":
        return -_divide(eps, like(schedule.sigma(t), x))
    if kind == "v":
        return like(schedule.alpha(t), x) * eps - like(schedule.sigma(t), x) * x0
    return like(schedule.alpha_dot(t), x) * x0 + like(schedule.sigma_dot(t), x) * eps


def velocity_coefficients(schedule: Schedule, t: Array) -> tuple[Array, Array]:
    """Returns (a, b), [batch] each, with velocity = a x_0 + b x: b = sigma'/sigma and a = alpha' - alpha b.

    For rectified flow a = -1/t and b = 1/t. Both are finite at sigma = 0. a is never 0: two predictions at one (x, t)
    differ in velocity by a times their difference in x_0.
    """
    growth = _divide(schedule.sigma_dot(t), schedule.sigma(t))
    return schedule.alpha_dot(t) - schedule.alpha(t) * growth, growth


def convert(source: str, target: str, schedule: Schedule, x: Array, prediction: Array, t: Array) -> Array:
    """Converts a prediction at (x [batch, ...], t [batch]) from the kind `source` to the kind `target`."""
    return x0_to(target, schedule, x, x0_from(source, schedule, x, prediction, t), t)


def as_denoise(network, params, kind: str, schedule: Schedule) -> Denoise:
    """Wraps network(params, x, t, cond), which predicts `kind`, into a denoiser (x, t, cond) -> x0-prediction.

    The denoiser is a pytree whose leaves are the params. Raises ValueError for an unknown kind and TypeError for what
    is no network or no schedule.
    """
    _check(kind)
    checks.is_network(network)
    checks.is_schedule(schedule)
    return Partial(_Bound(network, kind, schedule), params)


@dataclasses.dataclass(frozen=True)
class _Bound:
    """The static part of a wrapped network. It compares by value, so that wrapping twice does not compile twice."""

    network: Callable
    kind: str
    schedule: Schedule

    def __call__(self, params, x, t, cond):
        prediction = self.network(params, x, t, cond)
        checks.is_prediction("network", prediction, x)
        return x0_from(self.kind, self.schedule, x, prediction, t)


def _check(kind: str) -> None:
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction {kind!r}; known: {', '.join(PREDICTIONS)}")


def in_chunks(denoise: Denoise, size: int) -> Denoise:
    """Returns a denoiser that evaluates `denoise` on `size` samples at a time, with the same result.

    On a CPU this is faster where the activations of a chunk fit the cache. The result is a pytree with the leaves of
    `denoise`. Raises ValueError for size < 1.
    """
    if size < 1:
        raise ValueError(f"chunks need a size of at least 1, got {size}")
    return Partial(_InChunks(size), denoise)


@dataclasses.dataclass(frozen=True)
class _InChunks:
    size: int

    def __call__(self, denoise, x, t, cond):
        whole = x.shape[0] - x.shape[0] % self.size
        if whole <= self.size:
            return denoise(x, t, cond)
        head = jax.tree.map(lambda a: a[:whole].reshape(-1, self.size, *a.shape[1:]), (x, t, cond))
        out = jax.lax.map(lambda chunk: denoise(*chunk), head).reshape(whole, *x.shape[1:])
        if whole == x.shape[0]:
            return out
        rest = jax.tree.map(lambda a: a[whole:], (x, t, cond))
        return jnp.concatenate([out, denoise(*rest)])

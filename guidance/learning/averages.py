"""Averages of parameters along training: the power-function profiles of EDM2, several at once.

An average with a profile of relative width sigma_rel always looks back over the same share of the training so far, so
that it needs no warm-up and no tuning to the length of the run; an exponential average looks back over a fixed number
of updates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array


class Averages(NamedTuple):
    """count: updates seen; means: one tree of parameters for each profile, in the order given to `start`."""

    count: Array  # type: ignore[assignment]  # nobody counts the entries of this tuple
    means: tuple[Any, ...]


def exponent(sigma_rel: float) -> float:
    """gamma of the profile f(tau) ~ tau^gamma on [0, t] whose standard deviation is sigma_rel t.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), whose real root in gamma is unique for gamma >= 0. Raises
    ValueError unless 0 < sigma_rel < 1 / sqrt(12), the width of the flat profile gamma = 0.
    Source: Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696, eq. 126.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel = {sigma_rel}: allowed: a number in (0, 0.288)")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def start(params: Any, profiles: Sequence[float]) -> Averages:
    """The averages of no updates: the initial parameters, which the first update replaces, once for each profile."""
    return Averages(jnp.zeros((), jnp.int32), tuple(jax.tree.map(jnp.array, params) for _ in profiles))


def update(averages: Averages, params: Any, profiles: Sequence[float]) -> Averages:
    """theta_hat_t = beta_t theta_hat_{t-1} + (1 - beta_t) theta_t with beta_t = (1 - 1/t)^(gamma + 1), t = 1, 2, ...

    Source: arXiv 2312.02696, eq. 127.
    """
    count = averages.count + 1
    means = []
    for mean, sigma_rel in zip(averages.means, profiles, strict=True):
        beta = (1 - 1 / count.astype(jnp.float32)) ** (exponent(sigma_rel) + 1)
        means.append(jax.tree.map(lambda old, new, b=beta: (b * old + (1 - b) * new).astype(old.dtype), mean, params))
    return Averages(count, tuple(means))

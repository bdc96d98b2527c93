"""Averages of parameters over updates, with the power-function profiles of EDM2; several profiles at once.

An average of relative width sigma_rel always covers the same share of the training so far. It needs no warm-up and no
tuning to the length of the run. An exponential average, by contrast, covers a fixed number of updates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from guidance.types import Array


class Averages(NamedTuple):
    """The averages after `count` updates; `means` has one tree of parameters per profile, in the order of `start`."""

    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody calls
    means: tuple[Any, ...]


def exponent(sigma_rel: float) -> float:
    """Returns the gamma for which the profile f(tau) ~ tau^gamma on [0, t] has the standard deviation sigma_rel t.

    It is the only root gamma >= 0 of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Raises ValueError unless
    0 < sigma_rel < 1 / sqrt(12), which is the width of the flat profile gamma = 0.
    Source: Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696, eq. 126.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel = {sigma_rel}: allowed: a number in (0, 0.288)")
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def start(params: Any, profiles: Sequence[float]) -> Averages:
    """Returns the averages before any update: a copy of `params` per profile, which the first update replaces."""
    return Averages(jnp.zeros((), jnp.int32), tuple(jax.tree.map(jnp.array, params) for _ in profiles))


def update(averages: Averages, params: Any, profiles: Sequence[float]) -> Averages:
    """Returns the averages after one more update, the t-th, which gave the parameters theta_t = `params`:

        theta_hat_t = beta_t theta_hat_{t-1} + (1 - beta_t) theta_t,   beta_t = (1 - 1/t)^(gamma + 1)

    Source: arXiv 2312.02696, eq. 127.
    """
    count = averages.count + 1
    means = []
    for mean, sigma_rel in zip(averages.means, profiles, strict=True):
        beta = (1 - 1 / count.astype(jnp.float32)) ** (exponent(sigma_rel) + 1)
        means.append(jax.tree.map(lambda old, new, b=beta: (b * old + (1 - b) * new).astype(old.dtype), mean, params))
    return Averages(count, tuple(means))

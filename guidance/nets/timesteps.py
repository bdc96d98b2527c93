"""The discrete timesteps of published diffusion networks, and where they lie in our time.

Such a network was trained at k = 0 .. T - 1 with alpha_bar_k = prod_{i <= k} (1 - beta_i), a signal-to-noise ratio
alpha_bar_k / (1 - alpha_bar_k). What it must be told at our time t is the k of equal ratio; between two timesteps the
log-SNR is interpolated linearly in k (our choice: at an integer k the network gets exactly its own timestep, and the
sinusoidal embedding is smooth in between). Beyond the ends the network gets its first or last timestep.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from guidance.shapes import like
from guidance.types import Array, Schedule


def linear_betas(count: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """beta_k rising linearly over k = 0 .. count - 1, float64 [count]; the defaults are DDPM's, ADM's and DiT's.

    Source: Denoising Diffusion Probabilistic Models, arXiv 2006.11239, section 4.
    """
    return np.linspace(first, last, count)


def cosine_betas(count: int = 1000, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """beta_k = min(1 - f((k + 1)/T) / f(k/T), 0.999), f(u) = cos^2(pi/2 (u + 0.008)/1.008), float64 [count].

    Source: Improved Denoising Diffusion Probabilistic Models, arXiv 2102.09672, eq. 17; ADM's ImageNet-64 model.
    """
    f = np.cos(np.pi / 2 * (np.arange(count + 1) / count + offset) / (1 + offset)) ** 2
    return np.minimum(1 - f[1:] / f[:-1], largest)


def log_snr_table(betas: np.ndarray) -> np.ndarray:
    """log(alpha_bar_k / (1 - alpha_bar_k)) of every timestep, float64 [T], falling in k.

    Source: Denoising Diffusion Probabilistic Models, arXiv 2006.11239, eq. 4.
    """
    log_alpha_bar = np.cumsum(np.log1p(-betas))
    return log_alpha_bar - np.log(-np.expm1(log_alpha_bar))


def timestep(table: np.ndarray, log_snr: Array) -> Array:
    """The fractional k in [0, T - 1] whose log-SNR is `log_snr` [batch], by linear interpolation of `table` [T]."""
    return jnp.interp(-log_snr, jnp.asarray(-table, log_snr.dtype), jnp.arange(len(table), dtype=log_snr.dtype))


def times(table: np.ndarray, schedule: Schedule, k) -> Array:
    """Our times with the signal-to-noise ratios of the integer timesteps k [n]: a grid at the network's own timesteps.

    The last timesteps of a table may be noisier than t = 1 of the schedule; their times then exceed 1 slightly.
    """
    return schedule.time(jnp.asarray(table[np.asarray(k)]))


@dataclasses.dataclass(frozen=True)
class EpsNetwork:
    """A network that predicts eps at discrete timesteps as a function of our time, (params, x, t, cond) -> eps.

    ask: (params, x, k, cond) -> eps at the fractional timestep k; table: log-SNR of each timestep. The network is
    asked at the k of equal log-SNR and at x / sqrt(alpha^2 + sigma^2), which has the variance of its own diffusion;
    eps is the same there. Compared by value, so that wrapping twice does not compile twice.
    """

    ask: Callable
    table: tuple[float, ...]
    schedule: Schedule

    def __call__(self, params, x: Array, t: Array, cond: Array) -> Array:
        size = jnp.sqrt(self.schedule.alpha(t) ** 2 + self.schedule.sigma(t) ** 2)
        k = timestep(np.asarray(self.table), self.schedule.log_snr(t))
        return self.ask(params, x / like(size, x), k, cond)

"""The discrete timesteps of published diffusion networks, and where they lie in our time.

Such a network was trained at k = 0 .. T - 1 with alpha_bar_k = prod_{i <= k} (1 - beta_i), a signal-to-noise ratio
alpha_bar_k / (1 - alpha_bar_k). What it must be told at our time t is the k of equal ratio; between two timesteps the
log-SNR is interpolated linearly in k (our choice: at an integer k the network gets exactly its own timestep, and the
sinusoidal embedding is smooth in between). Beyond the ends the network gets its first or last timestep.
"""

import jax.numpy as jnp
import numpy as np

from guidance.types import Array, Schedule


def linear_betas(count: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """beta_k rising linearly over k = 0 .. count - 1, float64 [count]; the defaults are DDPM's, ADM's and DiT's.

    Source: Denoising Diffusion Probabilistic Models, arXiv 2006.11239, section 4.
    """
    return np.linspace(first, last, count)


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

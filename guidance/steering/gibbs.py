"""Gibbs-like guidance: sample without guidance, then repeatedly add some noise and sample with guidance.

The CFG scores of all noise levels together are not those of a diffused density. If p ~ p_c^(1+omega) p_u^(-omega) is
diffused to the noise level rho, its exact score at the EDM state x is

    score = (1 + omega) s_c - omega s_u + grad_x log E_Renyi,   E_Renyi = int p(x0|x,c)^(1+omega) p(x0|x)^(-omega) dx0

CFG lacks the last term, which repels and vanishes as rho^2. Gibbs rounds guide at small noise levels only, where the
term is small. `guides.delayed` makes the term smaller at a given level.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from guidance.sampling import Sampled
from guidance.schedules import diffuse
from guidance.shapes import as_state, normal_like, row_keys, with_dtypes_of
from guidance.types import Array, Schedule


def gibbs(
    key: Array,
    first: Sampled,
    run: Callable[[Array, Array], Sampled],
    schedule: Schedule,
    t: Array | float,
    rounds: int,
    ids: Array | None = None,
) -> Sampled:
    """Repeats `rounds` times: add noise, x_t = alpha_t x_0 + sigma_t z, then sample, x_0 = run(key, x_t).x0.

    first: the start of the chain, for example `sample` with `guides.unguided()` from noise; rounds = 0 returns it.
    run: a sampler from time t down to data, for example `sample` with a guide on a grid that starts at t. ids: sample
    ids for the noise, by default the row numbers; give `run` the same ones. No trajectory is kept.

    The chain moves from the distribution of CFG towards p_c^(1+omega) p_u^(-omega), which it reaches only as t -> 0
    and the number of rounds -> infinity. The paper uses sigma_t/alpha_t = 1 (t = 1/2 for rectified flow), 2 rounds,
    omega = 1, and 32 Heun steps, of which the first sampling takes 12 and what the division among the rounds leaves.
    Costs the evaluations of `first` and of all rounds.
    Source: Conditional Diffusion Models with Classifier-Free Gibbs-like Guidance, arXiv 2505.21101.
    """
    ids = jnp.arange(first.x0.shape[0]) if ids is None else ids

    def body(x0, i):
        noise_key, run_key = jax.random.split(jax.random.fold_in(key, i))
        z = normal_like(row_keys(noise_key, ids), x0)
        out = run(run_key, diffuse(schedule, x0, z, jnp.full(x0.shape[:1], t)))
        return with_dtypes_of(out.x0, x0), out.nfe

    x0, nfe = jax.lax.scan(body, as_state(first.x0), jnp.arange(rounds))
    total = first.nfe if rounds == 0 else _sum(first.nfe, {name: jnp.sum(counts) for name, counts in nfe.items()})
    return Sampled(x0, total, None)


def gaussian_renyi(mean_u: Array, variance_u: Array, mean_c: Array, variance_c: Array, omega) -> Array:
    """Returns log int N(x; m_c, v_c)^(1+omega) N(x; m_u, v_u)^(-omega) dx, elementwise; for Gaussians CFG lacks it.

        = 1/2 log(v_u^(1+omega) v_c^(-omega) / v_a) + omega (1+omega) (m_c - m_u)^2 / (2 v_a)
        v_a = (1+omega) v_u - omega v_c

    This is omega times the Renyi divergence of order 1 + omega. It is NaN where v_a <= 0, since the integral does not
    exist. For diagonal covariances, sum it over the axes. Source: arXiv 2505.21101, Proposition 1; Gaussian case
    derived here.
    """
    joint = (1 + omega) * variance_u - omega * variance_c
    joint = jnp.where(joint > 0, joint, jnp.nan)
    spread = (1 + omega) * jnp.log(variance_u) - omega * jnp.log(variance_c) - jnp.log(joint)
    return 0.5 * (spread + omega * (1 + omega) * (mean_c - mean_u) ** 2 / joint)


def _sum(a, b):
    return {name: a.get(name, 0) + b.get(name, 0) for name in sorted(a | b)}

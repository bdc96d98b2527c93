"""Gibbs-like guidance: sample without guidance, then repeat "noise to a middle level, sample down with guidance".

CFG scores at different noise levels are not the diffusion of any single density. For p ~ p_c^(1+omega) p_u^(-omega)
smoothed by the same noise, the exact score is (EDM state, noise rho)

    score = (1 + omega) s_c - omega s_u + grad_x log E_Renyi,   E_Renyi = int p(x0|x,c)^(1+omega) p(x0|x)^(-omega) dx0

CFG drops the last term, which repels and vanishes as rho^2. Restarting at a small level spends guidance where the term
is small; `guides.delayed` shrinks the error at a given level.
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
    """Repeats `rounds` times: x_t = alpha_t x_0 + sigma_t z, then x_0 = run(key, x_t).x0.

    first: the start of the chain, e.g. `sample` with `guides.unguided()` from noise; rounds = 0 returns it. run: any
    sampler from time t down to data, e.g. `sample` with a guide on a grid that starts at t. The paper's defaults:
    sigma_t/alpha_t = 1 (t = 1/2 in rectified flow), 2 rounds, omega = 1, of 32 Heun steps 12 + remainder for the
    first. ids: sample ids of the noise, default the row numbers (give `run` the same). No trajectory is kept.
    Evaluations: those of `first` and of all rounds, by branch. The chain moves from CFG's law towards the tilted law
    p_c^(1+omega) p_u^(-omega), which it reaches as t -> 0 and the rounds -> infinity only.
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
    """log int N(x; m_c, v_c)^(1+omega) N(x; m_u, v_u)^(-omega) dx, elementwise: the missing term of CFG for Gaussians.

        = 1/2 log(v_u^(1+omega) v_c^(-omega) / v_a) + omega (1+omega) (m_c - m_u)^2 / (2 v_a)
        v_a = (1+omega) v_u - omega v_c

    omega times the Renyi divergence of order 1 + omega. NaN where v_a <= 0: the integral does not exist. For diagonal
    covariances sum over the axes. Source: arXiv 2505.21101, Proposition 1; Gaussian case derived here.
    """
    joint = (1 + omega) * variance_u - omega * variance_c
    joint = jnp.where(joint > 0, joint, jnp.nan)
    spread = (1 + omega) * jnp.log(variance_u) - omega * jnp.log(variance_c) - jnp.log(joint)
    return 0.5 * (spread + omega * (1 + omega) * (mean_c - mean_u) ** 2 / joint)


def _sum(a, b):
    return {name: a.get(name, 0) + b.get(name, 0) for name in sorted(a | b)}

"""The catalogue of samplers that several tests run over, and a driver that lets a test choose the noise."""

from unittest import mock

import jax
import jax.numpy as jnp

from experiments.config import registry
from guidance import sampling
from guidance.sampling import dpm, solvers, steps
from guidance.sampling.sample import advance, begin, step_inputs
from guidance.schedules import SCHEDULES
from tests.named import needed

STOCHASTIC = {
    "churned_ddim": sampling.churned_ddim(0.5),
    "ddpm": sampling.ddpm(),
    "edm_stochastic": sampling.edm_stochastic(0.2),
    "dpmpp_2m_sde": sampling.dpmpp_2m_sde(),
    "dpmpp_2s_sde": sampling.dpmpp_2s_sde(),
}
# every other solver that a config can name, and a higher order of one
DETERMINISTIC = {
    **{
        name: getattr(sampling, member.maker)(**needed(member))
        for name, member in registry.named("sampler").items()
        if name not in STOCHASTIC
    },
    "unipc_3": sampling.unipc(3),
}
SOLVERS = {**DETERMINISTIC, **STOCHASTIC, "adaptive": sampling.adaptive(1e-3, 1e-3)}


def unasked(x, t, cond):
    """The denoiser of guides that know the answer themselves."""
    raise AssertionError("nobody asks for a prediction")


def paired(names):
    """(name, schedule): every name on rectified flow and, in turn, on one of the other schedules.

    Each pair compiles anew, and what a schedule breaks it breaks in more than one solver or guide.
    """
    others = sorted(set(SCHEDULES) - {"rectified_flow"})
    pairs = [
        (name, schedule) for i, name in enumerate(names) for schedule in ("rectified_flow", others[i % len(others)])
    ]
    assert {schedule for _, schedule in pairs} == set(SCHEDULES)
    return pairs


def driven(solver, denoise, guide, schedule, grid, x, cond, noise):
    """The trajectory [steps + 1, batch, ...] of a sampler whose k-th draw in step i is noise[i, k]."""
    solver = sampling.as_solver(solver)
    keys = jax.random.split(jax.random.key(0), x.shape[0])

    def body(carry, inputs):
        inputs, given = inputs
        draws = iter(given)
        replaced = {"normal_like": lambda keys, x: next(draws)}
        with (
            mock.patch.multiple(steps, **replaced),
            mock.patch.multiple(solvers, **replaced),
            mock.patch.multiple(dpm, **replaced),
        ):
            carry = advance(keys, inputs, denoise, guide, solver, schedule, *carry, cond)
        return carry, carry[0]

    start = (x, begin(denoise, guide, solver, schedule, grid, x, cond))
    _, path = jax.lax.scan(body, start, (step_inputs(grid), noise))
    return jnp.concatenate([x[None], path])

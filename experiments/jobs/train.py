"""Job `train`: the base denoiser of problems that have none in closed form, one for each seed."""

import functools

import jax
import jax.numpy as jnp
import optax

from experiments.jobs.loop import fit
from guidance.learning import update
from guidance.matched import guidance_matched_loss
from guidance.predictions import x0_to
from guidance.schedules import diffuse


def run(problem, config, workdir) -> list:
    """The params of the base denoiser for each seed (() where the denoiser is known), trained or restored."""
    if problem.network is None:
        return [()] * config.seeds
    base = config.base
    optimizer = optax.adam(optax.cosine_decay_schedule(base.learning_rate, base.steps))
    loss = functools.partial(_loss, problem, base)

    @jax.jit
    def one_update(state, key, i):
        params, opt_state, figures = update(optimizer, loss, *state, jax.random.fold_in(key, i))
        return (params, opt_state), figures

    init = jax.jit(problem.network.init)
    trained = []
    for seed in range(config.seed, config.seed + config.seeds):
        key = jax.random.key(seed)
        params = init(jax.random.fold_in(key, 0))
        state, _ = fit(
            f"base denoiser, seed {seed}",
            workdir / "base" / f"seed_{seed}",
            workdir / "metrics.jsonl",
            (params, optimizer.init(params)),
            lambda state, i, key=key: one_update(state, jax.random.fold_in(key, 1), i),
            base.steps,
            max(config.learn.checkpoint_every, base.steps // 10),
        )
        trained.append(state)
    return trained


def _loss(problem, base, params, key):
    """E |network - target|^2 in the network's own prediction, t ~ U[0, 1], conditions dropped with probability p.

    With base.guidance_matched > 0 the guided prediction at that omega takes the place of the network's.
    """
    data_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
    x0, cond = problem.draw(data_key, base.batch)
    eps = jax.random.normal(noise_key, x0.shape)
    t = jax.random.uniform(time_key, (base.batch,), minval=1e-3, maxval=1.0)
    x = diffuse(problem.schedule, x0, eps, t)
    cond = jnp.where(jax.random.uniform(drop_key, (base.batch,)) < base.condition_dropout, problem.null, cond)
    target = x0_to(problem.network.kind, problem.schedule, x, x0, t)
    if base.guidance_matched > 0:
        predict = functools.partial(problem.network.apply, params)
        return guidance_matched_loss(predict, x, t, cond, problem.null, target, base.guidance_matched)
    error = problem.network.apply(params, x, t, cond) - target
    return jnp.mean(jnp.sum(error.reshape(base.batch, -1) ** 2, axis=-1))

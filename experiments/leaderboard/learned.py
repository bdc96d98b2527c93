"""Learned weights for any rule: the rollout objective on a whole group of problems at once."""

import functools

import jax
import jax.numpy as jnp

from experiments.jobs.learn import guidance_optimizer, rollout_weight
from experiments.leaderboard.evaluate import QUICKLY
from experiments.leaderboard.problems import GUIDED, SCHEDULE, Group
from guidance import learning, mixtures, sampling, weights
from guidance.rollout import Rollout, rollout_loss

REAL = 256  # true samples for each condition and update
PARTICLES = 64
RATE = 5e-3


def trainer(group: Group, rule, steps: int, updates: int):
    """key -> omega tables [problems, steps, GUIDED] of networks trained through `steps` DDIM steps of `rule`."""
    net = weights.GuidanceNet(num_classes=GUIDED, width=64, depth=6, time_width=32, cond_width=32)
    grid, labels = sampling.uniform_grid(steps), jnp.arange(GUIDED)
    optimizer, weight = guidance_optimizer(RATE, updates), rollout_weight(net, SCHEDULE, steps)

    def loss(truth, model, params, key):
        data_key, roll_key = jax.random.split(key)
        real = mixtures.sample(data_key, truth, jnp.repeat(labels, REAL)).reshape(GUIDED, REAL, -1)
        guided = learning.Model(group.denoise(model), SCHEDULE, truth.null, rule)
        omega = weights.table(grid, weights.tabulated(weight(params), grid, labels))
        return rollout_loss(
            roll_key, guided, omega, sampling.ddim(), grid, real, labels, Rollout(PARTICLES, remat="none")
        )

    def train(truth, model, key):
        params = net.init(key, log_snr_t=jnp.zeros(1), log_snr_s=jnp.zeros(1), cond=labels[:1])

        def one(state, key):
            params, opt_state, _ = learning.update(key, optimizer, functools.partial(loss, truth, model), *state)
            return (params, opt_state), None

        keys = jax.random.split(jax.random.fold_in(key, 1), updates)
        (params, _), _ = jax.lax.scan(one, (params, optimizer.init(params)), keys)
        return weights.tabulated(weight(params), grid, labels)

    def train_all(key):
        # one after the other, as in `evaluate`
        keys = jax.random.split(key, len(group.names))
        return jax.lax.map(lambda problem: train(*problem), (group.truth, group.model, keys))

    return jax.jit(train_all, compiler_options=QUICKLY)

"""Learned weights for any rule: the rollout objective on a whole group of problems at once."""

import functools

import jax
import jax.numpy as jnp

from experiments.leaderboard.evaluate import QUICKLY
from experiments.leaderboard.problems import GUIDED, SCHEDULE, Group
from guidance import learning, sampling, weights
from guidance.learning import training
from guidance.learning.training import Recipe, Truth
from guidance.truth import mixtures


def trainer(group: Group, rule, steps: int, updates: int):
    """Returns a function key -> tables [problems, steps, GUIDED] of weights, each trained for one problem.

    They are trained through `steps` DDIM steps of `rule`, for `updates` updates.
    """
    recipe, labels = Recipe(steps=steps, updates=updates, particles=64, real=256), jnp.arange(GUIDED)
    net, optimizer = training.network(labels, recipe), training.optimizer(recipe.rate, updates)
    grid, weight = sampling.uniform_grid(steps), training.weight_of(net, SCHEDULE, recipe)

    def loss(truth, model, params, key):
        def real(key, k, among):
            return mixtures.sample(key, truth, jnp.repeat(among, k)).reshape(GUIDED, k, -1)

        guided = learning.Model(group.denoise(model), SCHEDULE, truth.null, rule)
        samples = Truth(lambda key, n: mixtures.sample_joint(key, truth, n), real)
        return training.loss(key, guided, weight(params), samples, labels, recipe)

    def train(truth, model, key):
        params = training.initial(key, net, labels)
        keys = jax.random.split(jax.random.fold_in(key, 1), updates)
        loss_here = functools.partial(loss, truth, model)
        params, _ = learning.updates(keys, optimizer, loss_here, params, optimizer.init(params))
        return weights.tabulated(weight(params), grid, labels)

    def train_all(key):
        # one after the other, as in `evaluate`
        keys = jax.random.split(key, len(group.names))
        return jax.lax.map(lambda problem: train(*problem), (group.truth, group.model, keys))

    return jax.jit(train_all, compiler_options=QUICKLY)

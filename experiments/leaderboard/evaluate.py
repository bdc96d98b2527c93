"""Samples and measures by one compiled function for each guide and group, whatever the number of steps."""

import functools

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from experiments.leaderboard.problems import GUIDED, SCHEDULE, Group
from guidance import metrics, sampling, tables, weights
from guidance.truth import mixtures

REFERENCE = 4  # true samples that a measurement compares with, for each sample that it measures
# more than a hundred programs that run for seconds each: with these they compile in 60 % of the time and run as fast
QUICKLY: dict[str, int | bool] = {"xla_backend_optimization_level": 1}
if jaxlib.__version__.startswith("0.10."):  # later ones may not know it
    QUICKLY["xla_cpu_use_fusion_emitters"] = False
METRICS = (
    "energy_distance",
    "mode_share_error",
    "variance_ratio",
    "norm_growth",
    "negative_log_likelihood",
)


def evaluator(group: Group, guide, step, samples: int):
    """Returns a function (tables [knobs, longest, GUIDED], grid, steps, key) -> metrics [problems, knobs, METRICS].

    The grid is one of `steps` steps that `padded` has filled up to [longest + 1]. All knobs share noise and reference
    samples.
    """
    one = functools.partial(_evaluate, group, guide, step, samples)
    run = _over_problems(group, jax.vmap(one, (None, None, 0, None, None, None, None)), samples)
    return lambda tables, *rest: run(np.broadcast_to(tables, (len(group.names), *tables.shape)), *rest)


def learned_evaluator(group: Group, guide, step, samples: int):
    """Returns the same for one table of each problem: tables [problems, longest, GUIDED] -> [problems, METRICS]."""
    return _over_problems(group, functools.partial(_evaluate, group, guide, step, samples), samples)


def _evaluate(group, guide, step, samples, truth, model, table, grid, steps, key, reference):
    x = _sample(group, guide, step, truth, model, table, grid, steps, key, samples)
    return measure(truth, x, reference)


def _over_problems(group, one, samples):
    """Returns a compiled function that runs `one` on each problem of the group in turn.

    It does not batch the problems, because batches of small matrix products cost a CPU six times more.
    """

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def run(tables, grid, steps, key):
        noise_key, reference_key = jax.random.split(key)
        reference = references(group, reference_key, REFERENCE * samples)

        def of_problem(problem):
            truth, model, table, reference = problem
            return one(truth, model, table, grid, steps, noise_key, reference)

        return jax.lax.map(of_problem, (group.truth, group.model, tables, reference))

    return run


def floor(group: Group, key, samples: int):
    """Returns what true samples score, [problems, METRICS]."""
    key, reference_key = jax.random.split(key)
    x, reference = references(group, key, samples), references(group, reference_key, REFERENCE * samples)
    return jax.vmap(measure)(group.truth, x, reference)


def sampler(group: Group, guide, step, samples: int):
    """Returns a function (table [longest, GUIDED], grid, steps, key, index of a problem) -> samples [GUIDED, n, d]."""

    @functools.partial(jax.jit, static_argnums=4)
    def run(table, grid, steps, key, index):
        truth, model = jax.tree.map(lambda a: a[index], (group.truth, group.model))
        return _sample(group, guide, step, truth, model, table, grid, steps, key, samples)

    return run


def references(group: Group, key, n: int):
    """Draws true samples [problems, GUIDED, n, d]."""
    labels = jnp.repeat(jnp.arange(GUIDED), n)
    draw = jax.vmap(lambda truth: mixtures.sample(key, truth, labels))(group.truth)
    return draw.reshape(draw.shape[0], GUIDED, n, -1)


def _sample(group, guide, step, truth, model, table, grid, steps, key, samples):
    dimension = truth.means.shape[-1]
    built = guide(weights.table(grid, table), truth.null)
    cond = jnp.repeat(jnp.arange(GUIDED), samples)
    inputs = group.denoise(model), built, step, SCHEDULE, grid, (dimension,), cond
    return sampling.from_noise(jax.random.split(key), *inputs, steps=steps).x0.reshape(GUIDED, samples, dimension)


def padded(grid, longest: int):
    """Returns the grid with zeros after it, [longest + 1], so that grids of any number of steps compile once."""
    return jnp.zeros(longest + 1).at[: len(grid)].set(grid)


def keys(config, tuning: int) -> list:
    """Returns the keys of the seeds: `tuning` of them to tune on, then those that are reported."""
    return [jax.random.fold_in(jax.random.key(config.seed), 100 + i) for i in range(tuning + config.seeds)]


def rows(problem, method, words, settings, steps, nfe, values) -> list[dict]:
    """Returns one row for each metric from {metric: a value for each seed}."""
    grid, nfe = "uniform grid", float(nfe)
    return [
        tables.mean_row(problem, method, words, settings, grid, steps, nfe, metric, seeds)._asdict()
        for metric, seeds in values.items()
    ]


def measure(truth, x, reference):
    """Returns the numbers of METRICS for samples x [GUIDED, n, d], means over the conditions."""
    groups, n, dimension = x.shape
    # a diverged sample must lose, not spoil the tables
    x = jnp.nan_to_num(jnp.clip(x, -1e3, 1e3), nan=1e3)
    energy = jax.vmap(lambda a, b: metrics.energy_distance(a, b).value)(x, reference)
    flat, cond = x.reshape(-1, dimension), jnp.repeat(jnp.arange(groups), n)
    zero = jnp.zeros(len(cond))
    members = mixtures.responsibilities(truth, SCHEDULE, flat, zero, cond).reshape(groups, n, -1)
    shares = jax.vmap(metrics.mode_shares)(members)
    wanted = jnp.exp(truth.log_weights[:groups])
    width = jax.vmap(lambda x, members: _width(x, members, truth))(x, members)
    norm = lambda a: jnp.mean(jnp.linalg.norm(a, axis=-1))  # noqa: E731
    values = (
        jnp.mean(energy),
        jnp.mean(jax.vmap(metrics.share_error)(shares, wanted)),
        jnp.mean(width),
        norm(x) / norm(reference),
        -jnp.mean(mixtures.log_density(truth, SCHEDULE, flat, zero, cond)),
    )
    return jnp.stack(values)


def _width(x, members, truth):
    """Returns the mean over the class's modes, by their shares in the sample, of tr S_j / tr S*_j."""
    total = jnp.sum(members, axis=0)
    mean = members.T @ x / jnp.where(total > 0, total, 1)[:, None]
    second = members.T @ (x**2) / jnp.where(total > 0, total, 1)[:, None]
    spread = jnp.sum(second - mean**2, axis=-1)
    variances = jnp.broadcast_to(truth.variances, truth.means.shape)
    return jnp.sum(total * spread / jnp.sum(variances, axis=-1)) / jnp.sum(total)

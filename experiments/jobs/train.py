"""Job `train`: trains the base denoiser, one for each seed, of problems that have none in closed form."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.config import ConfigError
from experiments.problems.images.judge import COLUMNS, ROWS
from experiments.problems.interface import require
from experiments.runtime import checkpoints, drawing, launch, loop, mesh, progress
from guidance import guides, sampling
from guidance.conditions import dropped, repeated, taken
from guidance.learning import averages, update_in_parts
from guidance.learning.matched import guidance_matched_loss
from guidance.predictions import x0_from, x0_to
from guidance.schedules import diffuse
from guidance.shapes import row_dot
from guidance.types import Cond

MIN_SNR = 5.0  # gamma of the min-SNR weighting, as its paper recommends
PICTURE_STEPS = 25


class State(NamedTuple):
    """What is trained: params, their optimiser, and their averages, one for each profile of base.averages."""

    params: Any
    opt_state: Any
    averages: averages.Averages

    @property
    def best(self) -> Any:
        """Returns the params to sample with: the first average, or the params themselves without averages."""
        return self.averages.means[0] if self.averages.means else self.params


class Batch(NamedTuple):
    """What one update sees: the parts of x = alpha(t) x0 + sigma(t) eps, and the conditions, some of them dropped."""

    x0: jax.Array
    eps: jax.Array
    t: jax.Array
    cond: Cond


def run(problem, config, workdir) -> list:
    """Returns the params of the base denoiser for each seed: imported ones, or trained or restored ones."""
    if problem.model.network is None:
        return [mesh.shard(problem.model.known)] * config.seeds
    require(problem, config.job, "data", *["instrument"] * (config.base.pictures > 0))
    optimizer = optax.adam(optax.cosine_decay_schedule(config.base.learning_rate, config.base.steps))
    init, update = jax.jit(problem.model.network.init), loop.compiled(_update(problem, config.base, optimizer))
    seeds = range(config.seed, config.seed + config.seeds)
    return [_train(problem, config, workdir, seed, init, optimizer, update) for seed in seeds]


def kept(problem, config, workdir, seed: int, step: int) -> Any:
    """Returns the params to sample with as they were after `step` updates, one of base.keep, of a run that has ended.

    Raises ConfigError for a problem that trains no denoiser.
    """
    if problem.model.network is None:
        raise ConfigError(
            f"{problem.name} trains no denoiser: there is none of {step} updates; allowed: another reference"
        )
    like = jax.eval_shape(problem.model.network.init, jax.random.key(0))
    remedy = f"train again with base.keep={step}"
    return checkpoints.restore_kept(_folder(workdir, seed), step, mesh.shard(_zeros(like)), remedy)


def _update(problem, base, optimizer) -> Callable:
    """Returns (state, i, key, arrays, pair) -> (state, figures): the update i of any seed, which all share."""

    def one_update(state, i, key, arrays, pair):
        batch = _batch(problem, base, jax.random.fold_in(key, i), arrays, pair)
        loss = functools.partial(_loss, problem, base)
        params, opt_state, figures = update_in_parts(optimizer, loss, state.params, state.opt_state, batch)
        return State(params, opt_state, averages.update(state.averages, params, base.averages)), figures

    return one_update


def _train(problem, config, workdir, seed: int, init, optimizer, update) -> Any:
    """Returns what the denoiser of one seed is sampled with; `update` is `_update`, compiled."""
    base, key, data = config.base, jax.random.key(seed), problem.data
    update_key = jax.random.fold_in(key, 1)
    with progress.waiting(f"base denoiser, seed {seed}: initial params"):
        params = init(jax.random.fold_in(key, 0))
    pictures = {round(base.steps * (k + 1) / base.pictures) for k in range(base.pictures)}

    def at_mark(step, state):
        if step in base.keep:
            checkpoints.save(checkpoints.kept(_folder(workdir, seed), step), step, state.best)
        if step in pictures:
            _picture(problem, workdir / "pictures" / f"base_seed_{seed}_update_{step:07d}.png", mesh.local(state.best))

    feed = data.feed and data.feed(base.batch, mesh.share(base.batch), seed)

    def pair(i):
        return None if feed is None else mesh.place(tuple(feed(i)), base.batch)

    def batch(i):
        return _batch(problem, base, jax.random.fold_in(update_key, i), data.arrays, pair(i))

    state = loop.fit(
        f"base denoiser, seed {seed}",
        _folder(workdir, seed),
        workdir / "metrics.jsonl",
        State(params, optimizer.init(params), averages.start(params, base.averages)),
        lambda carry, i: update(carry, i, update_key, data.arrays, pair(i)),
        base.steps,
        max(config.learn.checkpoint_every, base.steps // 10),
        marks=pictures | set(base.keep),
        at_mark=at_mark,
        batch=batch,
    )
    return state.best


def _folder(workdir, seed: int):
    return workdir / "base" / f"seed_{seed}"


def _zeros(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _batch(problem, base, key, arrays, pair=None) -> Batch:
    """Returns a batch, leaves [base.accumulate, base.batch / base.accumulate, ...], with t ~ U[0.001, 1].

    Conditions are dropped with probability base.condition_dropout. pair: (x0, cond) of base.batch rows; None where the
    problem draws them.
    """
    n = base.batch
    data_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
    x0, cond = problem.data.draw(data_key, arrays, n) if pair is None else pair
    eps = jax.random.normal(noise_key, x0.shape)
    t = jax.random.uniform(time_key, (n,), minval=1e-3, maxval=1.0)
    drop = jax.random.uniform(drop_key, (n,)) < base.condition_dropout
    batch = Batch(x0, eps, t, dropped(cond, problem.model.null, drop))
    return jax.tree.map(lambda leaf: leaf.reshape(base.accumulate, n // base.accumulate, *leaf.shape[1:]), batch)


def _loss(problem, base, params, batch: Batch):
    """Returns the loss of one part of a batch, a mean over its rows.

    base.weighting = "prediction": |network - target|^2, for whatever the network predicts. "min_snr": min(SNR, 5)
    |x0_hat - x0|^2, in terms of x0 (arXiv 2303.09556). With base.guidance_matched > 0 the guided prediction at that
    omega takes the place of the network's.
    """
    x0, eps, t, cond = batch
    network, schedule = problem.model.network, problem.model.schedule
    x = diffuse(schedule, x0, eps, t)
    target = x0_to(network.kind, schedule, x, x0, t)
    if base.guidance_matched > 0:
        predict = functools.partial(network.apply, params)
        return guidance_matched_loss(predict, x, t, cond, problem.model.null, target, base.guidance_matched)
    prediction = network.apply(params, x, t, cond)
    if base.weighting == "min_snr":
        error = x0_from(network.kind, schedule, x, prediction, t) - x0
        return jnp.mean(jnp.minimum(jnp.exp(schedule.log_snr(t)), MIN_SNR) * row_dot(error, error))
    error = prediction - target
    return jnp.mean(row_dot(error, error))


def _picture(problem, path, params) -> None:
    """Draws unguided samples of the first conditions, to see how the training goes."""
    model, grid = problem.model, sampling.uniform_grid(PICTURE_STEPS)
    cond = repeated(taken(model.conditions, slice(COLUMNS)), ROWS)

    @jax.jit
    def run(params):
        keys, step = (jax.random.key(0), jax.random.key(1)), sampling.ddim()
        inputs = model.denoise(params), guides.unguided(), step, model.schedule, grid, model.shape, cond
        return sampling.from_noise(keys, *inputs).x0

    samples = mesh.local(run(params)).reshape(-1, ROWS, *model.shape)

    def write():
        path.parent.mkdir(exist_ok=True)
        figure, [axes] = drawing.panels(1, 6, 4)
        points = problem.instrument.picture(axes, samples)
        drawing.legend(figure, markerscale=3)
        drawing.Picture(figure, drawing.POINTS if points else (), points or ()).save(path, dpi=90)

    launch.first(write)

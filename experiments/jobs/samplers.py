"""Samples of a problem under a weight: what the job `evaluate` measures, and the selection of checkpoints."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.config.expressions import AUTOGUIDED
from experiments.jobs import train
from experiments.problems import construct, interface
from experiments.runtime import mesh, progress
from guidance import sampling, weights
from guidance.conditions import repeated, size, taken
from guidance.learning import Model
from guidance.types import Rule


class Pair(NamedTuple):
    """Params of a denoiser, and of a weaker one that autoguidance moves away from."""

    strong: Any
    weak: Any


def bases_of(problem, config, workdir, rule: str, bases: list) -> list:
    """Returns what a rule is sampled with, for each seed: the params `bases` or, for autoguidance, a Pair."""
    if rule != AUTOGUIDED:
        return bases
    updates = config.eval.weak
    return [Pair(base, train.kept(problem, config, workdir, config.seed + i, updates)) for i, base in enumerate(bases)]


def model_of(problem, rule: Rule, base) -> Model:
    """Returns the model that the rule guides. base: params of the denoiser, or a Pair of them."""
    model = problem.model
    strong, weak = (base.strong, model.denoise(base.weak)) if isinstance(base, Pair) else (base, None)
    return Model(model.denoise(strong), model.schedule, model.null, rule, weak)


def step_of(config):
    """Returns the step or solver of evaluations and rollouts."""
    return construct.solver(config.eval.sampler, "eval.sampler")


def keys(seed: int, purpose: int = 3) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a seed's initial noise and of its measurements. Every purpose has different noise."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.key(seed), purpose)))


def measured(problem, key, samples, full: bool) -> dict[str, float]:
    """Returns the metrics of samples [K, n, ...] by the problem's instrument.

    If a sample is not finite, the tuned metrics are infinite and the others are left out.
    """
    if not np.isfinite(samples).all():
        return dict.fromkeys(problem.instrument.tuned, float("inf"))
    return problem.instrument.measure(key, samples, full)


def sampler(problem, config, steps: int, count: int | None = None, rule: str = "cfg"):
    """Returns a function (params or a Pair, table [steps, G], key) -> (samples [K, n, ...], evaluations per sample).

    It draws `count` samples (default: eval.samples), n for each of the K conditions that `interface.shares` chooses,
    eval.batch at a time. A sample follows from its number and the key, whatever its batch. Samples of several batches
    come back in the host's memory. Every batch is filled up with copies of its last sample, to one size that the
    devices divide, so that there is one compilation. The function raises progress.Stopped between batches.
    """
    grid, step, model = sampling.uniform_grid(steps), step_of(config), problem.model
    conditions, n = interface.shares(model.conditions, count or config.eval.samples)
    cond, columns = repeated(conditions, n), model.columns
    total = size(cond)
    batch = min(config.eval.batch or total, total)
    starts = range(0, total, batch)

    @jax.jit
    def run(base, table, key, ids, cond):
        guided, weight = model_of(problem, construct.rule(rule), base), weights.table(grid, table, columns)
        out = guided.sample(key, weight, step, grid, model.shape, cond, ids)
        return out.x0, out.evaluations

    def sample(base, table, key):
        parts, evaluations, table = [], 0, np.asarray(table)  # learned ones are committed to devices, others not
        for start in progress.track(starts, f"samples at {steps} steps") if len(starts) > 1 else starts:
            if start and progress.stop_requested():
                raise progress.Stopped
            rows = min(batch, total - start)
            ids = np.minimum(np.arange(start, start + mesh.rounded(batch)), start + rows - 1)
            x, nfe = mesh.local(run(base, table, key, ids, taken(cond, ids)))
            parts.append(x[:rows] if len(starts) == 1 else np.asarray(x[:rows]))
            evaluations += int(nfe) * len(parts[-1])
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        whole, rest = divmod(evaluations, total)
        return samples.reshape(total // n, n, *model.shape), evaluations / total if rest else whole

    return sample

"""Samples of a problem under a weight, as `evaluate` measures them and as the selection of checkpoints does."""

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
    """The params of a denoiser, and of a weaker one that autoguidance moves away from."""

    strong: Any
    weak: Any


def bases_of(problem, config, workdir, rule: str, bases: list) -> list:
    """What a rule is sampled with, for each seed: the params themselves, or a Pair for autoguidance."""
    if rule != AUTOGUIDED:
        return bases
    updates = config.eval.weak
    return [Pair(base, train.kept(problem, config, workdir, config.seed + i, updates)) for i, base in enumerate(bases)]


def model_of(problem, rule: Rule, base) -> Model:
    """What is guided by the rule. base: params of the denoiser, or a Pair of them."""
    model = problem.model
    strong, weak = (base.strong, model.denoise(base.weak)) if isinstance(base, Pair) else (base, None)
    return Model(model.denoise(strong), model.schedule, model.null, rule, weak)


def step_of(config):
    """The step or solver of evaluations and rollouts."""
    return construct.solver(config.eval.sampler, "eval.sampler")


def keys(seed: int, purpose: int = 3) -> tuple[jax.Array, jax.Array]:
    """The keys of a seed's initial noise and of its measurements; every purpose has noise of its own."""
    return tuple(jax.random.split(jax.random.fold_in(jax.random.key(seed), purpose)))


def measured(problem, key, samples, full: bool) -> dict[str, float]:
    """What the instrument of the problem measures on samples [K, n, ...]; of samples that are not all finite, no
    instrument's number means anything: the tuned metrics are infinite, and there are no others."""
    if not np.isfinite(samples).all():
        return dict.fromkeys(problem.instrument.tuned, float("inf"))
    return problem.instrument.measure(key, samples, full)


def sampler(problem, config, steps: int, count: int | None = None, rule: str = "cfg"):
    """(base params or a Pair, table [steps, G], key) -> (samples [K, n, ...], network evaluations per sample).

    `count` samples (default eval.samples) of the conditions that `problems.shares` deals out, eval.batch at a time.
    Each follows from its number, whatever the batch; samples of several batches come back in the host's memory. A
    batch is filled up with its last sample to what the devices divide, the last batch to as many as the others.
    Compiled once. Raises progress.Stopped between batches.
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
            own = min(batch, total - start)
            ids = np.minimum(np.arange(start, start + mesh.rounded(batch)), start + own - 1)
            x, nfe = mesh.local(run(base, table, key, ids, taken(cond, ids)))
            parts.append(x[:own] if len(starts) == 1 else np.asarray(x[:own]))
            evaluations += int(nfe) * len(parts[-1])
        samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
        whole, rest = divmod(evaluations, total)
        return samples.reshape(total // n, n, *model.shape), evaluations / total if rest else whole

    return sample

"""Chooses the checkpoint of a learned weight whose samples score best, as the paper does.

The loss cannot choose, since its minimum is not where a whole sampler has the lowest FID. So we save the params every
`learn.select_every` updates. After the last update we score all of them by the leading tuned metric on
`learn.select_samples` samples, with noise that no evaluation uses. selection.jsonl has the scores.
Source: Learn to Guide Your Diffusion Model, arXiv 2510.00815 (checkpoints chosen by FID on 2048 samples).
"""

import pathlib
from collections.abc import Callable

from experiments.jobs.samplers import keys, measured, sampler
from experiments.problems import interface
from experiments.runtime import checkpoints, mesh, progress
from experiments.runtime.ledger import Ledger, key
from guidance import sampling, weights
from guidance.conditions import size

PURPOSE = 4  # of the noise; see samplers.keys
FIELDS = ("task", "family", "seed", "update", "metric", "samples", "score")  # of a line of selection.jsonl


def marks(every: int, iterations: int) -> list[int]:
    """Returns the updates after which params are saved: each `every`-th and the last; none for every = 0."""
    return [*range(every, iterations, every), iterations] if every else []


def chooser(problem, config, task, steps: list[int], path: pathlib.Path) -> Callable:
    """Returns a function (seed, base params, folder, params of some update) -> the params with the lowest score.

    Weights for any number of sampler steps are scored at the largest number that is evaluated. Of equal scores the
    first wins. The params that are returned lie whole on this device.
    """
    wanted, steps_sampled = config.learn.select_samples, task.steps or max(config.eval.steps)
    grid = sampling.uniform_grid(steps_sampled)
    run_sampler = sampler(problem, config, steps_sampled, wanted, task.rule)
    shown, each = interface.shares(problem.model.conditions, wanted)
    metric, count = problem.instrument.tuned[0], size(shown) * each

    def choose(seed: int, base, folder: pathlib.Path, like):
        ledger, (noise_key, measure_key) = Ledger(path, FIELDS), keys(seed, PURPOSE)

        def restored(step):
            return mesh.local(checkpoints.restore_kept(folder, step, like, "learn again in a new folder"))

        def score(step):
            if progress.stop_requested():
                raise progress.Stopped
            omegas = weights.tabulated(task.weight(restored(step)), grid, problem.model.conditions)
            samples, _ = run_sampler(base, omegas, noise_key)
            value = measured(problem, measure_key, samples, False)[metric]
            return dict(zip(FIELDS, (task.name, task.family, seed, step, metric, count, value), strict=True))

        names = {step: {"task": task.name, "seed": seed, "update": step, "samples": wanted} for step in steps}
        fresh = any(key(name) not in ledger.done for name in names.values())
        tracked = progress.track(steps, f"{task.name}, seed {seed}: scoring")
        entries = [ledger.get(names[step], lambda step=step: score(step)) for step in tracked]
        best = min(entries, key=lambda entry: entry["score"])
        if fresh:
            words = f"update {best['update']} of {steps[-1]} has the lowest {metric}, {best['score']:.4g}"
            print(f"{task.name}, seed {seed}: {words} of {count} samples")
        return restored(best["update"])

    return choose

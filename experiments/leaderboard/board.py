"""Runs the leaderboard: tunes every contender on some seeds, measures it on others, writes rows as it goes."""

import functools
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from experiments.config import ConfigError
from experiments.config.expressions import COMBINATIONS, shortened
from experiments.leaderboard import contenders as field
from experiments.leaderboard import evaluate, images, learned, page
from experiments.leaderboard.contenders import Unit
from experiments.leaderboard.problems import GUIDED, groups
from experiments.problems import construct
from experiments.problems.interface import refusing
from experiments.runtime import launch, progress, results, sizes
from experiments.runtime.ledger import Ledger
from guidance import sampling
from guidance.tables import Row

SAMPLER = sampling.ddim()


@sizes.in_one_line()
def run(config, workdir) -> None:
    """Evaluates what the ledger lacks, then writes results.json, leaderboard.md, leaderboard.csv and the pictures.

    Two units run at a time: while one compiles or waits, the other computes. The numbers do not depend on that. Raises
    ConfigError, in one line, for several processes, files that cannot be used and memory that is not there, and
    `progress.Stopped` when a stop was requested.
    """
    if launch.several():
        raise ConfigError("job = leaderboard: allowed: one process")
    ledger = Ledger(workdir / "evaluations.jsonl", ("rows",))
    columns = {"mixtures": mixture_units, "mnist": images.mnist_units, "pair": images.pair_units}
    with refusing(), progress.waiting("preparing the problems"):
        units = [unit for name in config.columns for unit in columns[name](config)]

    def work(unit):
        rows = []
        for settings, compute in unit:
            if progress.stop_requested():
                raise progress.Stopped
            rows += ledger.get(settings, lambda c=compute: {"rows": c()})["rows"]
            count.advance()
        return rows

    with progress.counting("leaderboard", sum(map(len, units))) as count, ThreadPoolExecutor(2) as pool:
        rows = [Row(**row) for of_unit in pool.map(work, units) for row in of_unit]
    results.write(workdir / "results.json", rows)
    page.write(workdir, rows, config)
    print(f"the leaderboard: {workdir / 'leaderboard.md'}")


def mixture_units(config) -> list[Unit]:
    """Returns the units of the mixtures: all contenders and learned weights on every group. Trains two networks."""
    units: list[Unit] = []
    for group in groups(jax.random.key(config.seed), tuple(config.base_steps)):
        bench, name = Bench(group, config), group.names[0]
        units.append([({"problem": name, "contender": "true data"}, bench.floor)])
        units += field.units(field.contenders(config), name, config.nfe, bench.tuned)
        units += [
            [({"problem": name, "learned": rule, "nfe": nfe}, functools.partial(bench.learned, rule, nfe))]
            for rule in config.learned
            for nfe in config.nfe
        ]
    return units


class Bench:
    """One group of problems, its compiled functions, and the protocol.

    For each problem and NFE, the knob of a contender is tuned on the mean energy distance over `tuning_seeds` seeds.
    The rows are means over `seeds` other seeds. All contenders share noise and reference samples.
    """

    def __init__(self, group, config):
        self.group, self.config, self.compiled = group, config, {}
        self.longest = max(config.nfe)

    def tuned(self, entrant: field.Contender, nfe: int) -> list[dict]:
        """Returns the rows of a contender at its best knob of each problem."""
        steps = entrant.steps(nfe)
        grid = sampling.uniform_grid(steps)
        tables = np.repeat(entrant.table(grid, self.longest)[..., None], GUIDED, axis=-1)
        run = self._compiled(entrant.structure, evaluate.evaluator, entrant.guide, entrant.step)
        values = np.stack([np.asarray(run(tables, self._padded(grid), steps, key)) for key in self._keys()])
        trial, final = values[: self.config.tuning_seeds], values[self.config.tuning_seeds :]
        means = trial[..., 0].mean(0)
        best = np.argmin(np.where(np.isfinite(means), means, np.inf), axis=-1)  # [problems]
        rows = []
        for p, name in enumerate(self.group.names):
            knob = entrant.knobs[best[p]]
            words, settings = f"{entrant.knob} = {knob:.3g}", {entrant.knob: knob}
            rows += self._rows(name, entrant.name, words, settings, steps, nfe, final[:, p, best[p]])
        return rows

    def learned(self, rule: str, nfe: int) -> list[dict]:
        """Returns the rows of a learned weight, which is trained anew for each reported seed."""
        steps, values = nfe // 2, []
        grid = sampling.uniform_grid(steps)
        updates = max(1, self.config.updates * min(self.config.nfe) // nfe)
        made = construct.rule(rule)
        train = learned.trainer(self.group, made, steps, updates)
        run = self._compiled("learned " + rule, evaluate.learned_evaluator, field.by_rule(made))
        for i, key in enumerate(self._keys()[self.config.tuning_seeds :]):
            padded = np.zeros((len(self.group.names), self.longest, GUIDED), np.float32)
            padded[:, :steps] = train(jax.random.fold_in(key, 7 + i))
            values.append(np.asarray(run(padded, self._padded(grid), steps, key)))
        rows = []
        for p, name in enumerate(self.group.names):
            final = np.stack(values)[:, p]
            rows += self._rows(
                name, f"learned {shortened(rule, COMBINATIONS)}", "omega(s, t, c)", {}, steps, nfe, final
            )
        return rows

    def floor(self) -> list[dict]:
        """Returns the rows of true samples."""
        values = np.stack([np.asarray(evaluate.floor(self.group, key, self.config.samples)) for key in self._keys()])
        final = values[self.config.tuning_seeds :]
        pairs = enumerate(self.group.names)
        return [row for p, name in pairs for row in self._rows(name, "true data", "", {}, 1, 0, final[:, p])]

    def _compiled(self, name, build, guide, step=SAMPLER):
        if name not in self.compiled:
            self.compiled[name] = build(self.group, guide, step, self.config.samples)
        return self.compiled[name]

    def _keys(self):
        return evaluate.keys(self.config, self.config.tuning_seeds)

    def _padded(self, grid):
        return evaluate.padded(grid, self.longest)

    def _rows(self, problem, method, words, settings, steps, nfe, values) -> list[dict]:
        """Returns one row for each metric from values [seeds, METRICS]."""
        named = dict(zip(evaluate.METRICS, values.T, strict=True))
        return evaluate.rows(problem, method, words, settings, steps, nfe, named)

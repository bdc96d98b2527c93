"""Runs the leaderboard: tunes every contender on some seeds, measures it on others, writes rows as it goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import progress, records
from experiments.jobs.evaluate import Ledger
from experiments.leaderboard import contenders as field
from experiments.leaderboard import evaluate, learned, page
from experiments.leaderboard.problems import GUIDED, groups
from guidance import sampling

SAMPLER = sampling.ddim()


def run(config, workdir) -> None:
    """Fills the ledger, then writes results.json, leaderboard.md, leaderboard.csv and the pictures."""
    with progress.waiting("training the two networks"):
        stacks = groups(jax.random.key(config.seed), tuple(config.base_steps))
    ledger = Ledger(workdir / "evaluations.jsonl")
    entrants = field.contenders(tuple(config.omegas))
    total = len(stacks) * len(config.nfe) * (len(entrants) + len(field.LEARNED))
    done = []
    with progress.counting("leaderboard", total) as count:
        for group in stacks:
            bench = Bench(group, config)
            done += ledger.get(f"{group.names[0]}, true data", lambda b=bench: {"rows": b.floor()})["rows"]
            for name, measure in bench.everybody(entrants):
                for nfe in config.nfe:
                    if progress.stop_requested():
                        raise progress.Stopped
                    label = f"{group.names[0]}, {name}, NFE {nfe}"
                    done += ledger.get(label, lambda m=measure, n=nfe: {"rows": m(n)})["rows"]
                    count.advance()
    rows = [records.Row(**row) for row in done]
    records.write_results(workdir / "results.json", rows)
    page.write(workdir, rows, config, stacks)
    print(f"the leaderboard: {workdir / 'leaderboard.md'}")


class Bench:
    """One group of problems, its compiled functions, and the protocol.

    The knob of every contender is tuned on the mean energy distance over `tuning_seeds` seeds, for each problem and
    NFE; what is reported are means over `seeds` other seeds. Noise and reference samples are shared by all contenders.
    """

    def __init__(self, group, config):
        self.group, self.config, self.compiled = group, config, {}
        self.longest = max(config.nfe)

    def everybody(self, entrants):
        """(name, nfe -> rows) of every contender and every learned weight."""
        hand_made = [(e.name, functools.partial(self.tuned, e)) for e in entrants]
        return hand_made + [(f"learned {rule}", functools.partial(self.learned, rule)) for rule in field.LEARNED]

    def tuned(self, entrant: field.Contender, nfe: int) -> list[dict]:
        steps = entrant.steps(nfe)
        grid = sampling.uniform_grid(steps)
        tables = np.repeat(entrant.table(grid, self.longest)[..., None], GUIDED, axis=-1)
        run = self._compiled(entrant.structure, evaluate.evaluator, entrant.guide, entrant.step)
        values = np.stack([np.asarray(run(tables, self._padded(grid), steps, key)) for key in self._keys()])
        trial, final = values[: self.config.tuning_seeds], values[self.config.tuning_seeds :]
        best = np.argmin(trial[..., 0].mean(0), axis=-1)  # [problems]
        rows = []
        for p, name in enumerate(self.group.names):
            knob = entrant.knobs[best[p]]
            what = "lambda" if entrant.name == "cfg_plus_plus" else "omega"
            rows += self._rows(
                name, entrant.name, f"{what} = {knob:.3g}", {what: knob}, steps, nfe, final[:, p, best[p]]
            )
        return rows

    def learned(self, rule: str, nfe: int) -> list[dict]:
        """One training for each reported seed, with that seed's own key."""
        steps, values = nfe // 2, []
        grid = sampling.uniform_grid(steps)
        updates = max(1, self.config.updates * min(self.config.nfe) // nfe)
        train = learned.trainer(self.group, field.RULES[rule], steps, updates)
        run = self._compiled("learned " + rule, evaluate.learned_evaluator, field.by_rule(field.RULES[rule]))
        for i, key in enumerate(self._keys()[self.config.tuning_seeds :]):
            padded = np.zeros((len(self.group.names), self.longest, GUIDED), np.float32)
            padded[:, :steps] = train(jax.random.fold_in(key, 7 + i))
            values.append(np.asarray(run(padded, self._padded(grid), steps, key)))
        rows = []
        for p, name in enumerate(self.group.names):
            final = np.stack(values)[:, p]
            rows += self._rows(name, f"learned {rule}", "omega(s, t, c)", {}, steps, nfe, final)
        return rows

    def floor(self) -> list[dict]:
        """What true samples score."""
        values = np.stack([np.asarray(evaluate.floor(self.group, key, self.config.samples)) for key in self._keys()])
        final = values[self.config.tuning_seeds :]
        pairs = enumerate(self.group.names)
        return [row for p, name in pairs for row in self._rows(name, "true data", "", {}, 1, 0, final[:, p])]

    def _compiled(self, name, build, guide, step=SAMPLER):
        if name not in self.compiled:
            self.compiled[name] = build(self.group, guide, step, self.config.samples)
        return self.compiled[name]

    def _keys(self):
        count = self.config.tuning_seeds + self.config.seeds
        return [jax.random.fold_in(jax.random.key(self.config.seed), 100 + i) for i in range(count)]

    def _padded(self, grid):
        return jnp.zeros(self.longest + 1).at[: len(grid)].set(grid)

    def _rows(self, problem, method, words, settings, steps, nfe, values) -> list[dict]:
        """One row for each metric from values [seeds, METRICS]."""
        seeds = len(values)
        rows = []
        for m, metric in enumerate(evaluate.METRICS):
            error = float(np.std(values[:, m], ddof=1) / np.sqrt(seeds)) if seeds > 1 else None
            row = records.Row(
                problem, method, words, settings, "uniform grid", steps, float(nfe), seeds, metric,
                float(np.mean(values[:, m])), error,
            )  # fmt: skip
            rows.append(row._asdict())
        return rows

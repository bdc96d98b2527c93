"""Job `evaluate`: measures every weight, hand-made or learned, with the same sampler, noise and reference samples.

A weight never sees x, so on a grid it is a table omega[step, condition], and one compiled function for each rule and
number of steps serves the whole sweep. Each seed has a model, learned weights, noise and reference of its own.
Hand-made families are tuned on the very numbers that are reported, per seed and per metric: the comparison favours
them.
"""

import math

import numpy as np

from experiments.config.expressions import SAMPLERS, shortened, spelled
from experiments.jobs import candidates as hand
from experiments.jobs import learn, train
from experiments.jobs.candidates import UNGUIDED, Candidate
from experiments.jobs.samplers import bases_of, keys, measured, sampler
from experiments.problems import interface
from experiments.runtime import launch, ledger, progress, results
from experiments.runtime.ledger import Ledger
from experiments.runtime.results import DIFFERENCE, GIVEN, IN_FULL, LEARNED, NONE, SHARE, TUNED
from guidance import sampling, tables, weights
from guidance.tables import Row

SHORTLIST = 3  # of each family and metric, the weights that seeds beyond eval.sweep_seeds still see


class Samplers:
    """Draws samples under any weight: one compiled function for each rule and number of steps."""

    def __init__(self, problem, config, bases, workdir, count: int | None = None):
        self.problem, self.config, self.workdir, self.count = problem, config, workdir, count
        self.compiled, self.bases = {}, {"cfg": bases}

    def __call__(self, i: int, rule: str, table, key):
        """Draws (samples [K, n, ...], NFE) of the model of seed index i with the weights table [steps, G]."""
        program = len(table), rule
        if program not in self.compiled:
            self.compiled[program] = sampler(self.problem, self.config, len(table), self.count, rule)
        if rule not in self.bases:
            self.bases[rule] = bases_of(self.problem, self.config, self.workdir, rule, self.bases["cfg"])
        return self.compiled[program](self.bases[rule][i], table, key)


def run(problem, config, workdir, bases: list | None = None, learned: dict[str, list] | None = None) -> list[Row]:
    """Evaluates all weights, writes results.json, prints the rows that matter most, and returns all rows.

    bases, learned: what `train.run` and `learn.run` return, where they have run. Raises ConfigError for a problem
    without data or instrument, and progress.Stopped when a stop was requested.
    """
    interface.require(problem, config.job, "data", "instrument")
    bases = bases or train.run(problem, config, workdir)
    learned = learned or learn.run(problem, config, workdir, bases)
    ledger = Ledger(workdir / "evaluations.jsonl", ("nfe", "metrics"), problem.instrument.tuned)
    rows, samplers = [], Samplers(problem, config, bases, workdir)
    for steps in config.eval.steps:
        rows += _at_steps(problem, config, ledger, steps, samplers, learned)
    launch.first(lambda: results.write(workdir / "results.json", rows))
    tuned = problem.instrument.tuned
    shown = [row for row in rows if row.kind != GIVEN and row.metric in tuned]
    print(tables.table(shown))
    print(f"all rows: {workdir / 'results.json'}")
    return rows


def _at_steps(problem, config, ledger, steps, samplers, learned) -> list[Row]:
    """Evaluates all weights at one number of steps; returns the rows.

    The whole grid of hand-made weights is measured on the first `eval.sweep_seeds` seeds; on the others, the
    shortlist.
    """
    _, n = interface.shares(problem.model.conditions, config.eval.samples)
    hand_made = hand.candidates(config, problem.model.schedule)
    sampled = {"sampler": spelled("sampler", config.eval.sampler, SAMPLERS), "steps": steps}
    tasks = [task for task in learn.tasks(problem, config) if task.steps in (None, steps)]
    swept, tuned = min(config.seeds, config.eval.sweep_seeds), problem.instrument.tuned
    methods = len({candidate.family for candidate in hand_made})
    few = min(len(hand_made), SHORTLIST * methods * len(tuned))  # at most, as lists overlap
    total = swept * len(hand_made) + (config.seeds - swept) * few + config.seeds * (len(tasks) + methods)
    table = _Entries(tuned)
    details, floors = [], []
    with progress.counting(f"evaluating at {steps} steps", total) as count:
        for i, seed in enumerate(range(config.seed, config.seed + config.seeds)):
            noise_key, measure_key = keys(seed)

            def evaluate(candidate, full, i=i, noise_key=noise_key, measure_key=measure_key):
                if progress.stop_requested():
                    raise progress.Stopped
                grid = sampling.uniform_grid(candidate.longer * steps)
                omegas = weights.tabulated(candidate.weight(grid), grid, problem.model.conditions)
                samples, nfe = samplers(i, candidate.rule, omegas, noise_key)
                entry = {"nfe": nfe, "metrics": measured(problem, measure_key, samples, full)}
                if full:
                    entry["metrics"]["median_omega"] = float(np.median(omegas))
                    entry |= {"rule": candidate.rule, "table": np.asarray(omegas).tolist()}
                return entry

            trained = [hand.learned(task, task.weight(learned[task.name][i])) for task in tasks]
            # samples that come in batches cost more than all that is measured on them: they are not drawn twice
            in_full = i >= swept or config.eval.batch > 0
            for candidate in hand_made if i < swept else table.shortlist(hand_made):
                key = {"seed": seed, **sampled, **candidate.identity}
                table.add(i, candidate, ledger.get(key, lambda c=candidate, full=in_full: evaluate(c, full)))
                count.advance()
            details.append({})
            for best, label, candidate in table.winners(i) + [(c.family, c.method, c) for c in trained]:
                known = table.entries.get(name_of(candidate), {}).get(i, {})
                compute = (lambda e=known: e) if "table" in known else (lambda c=candidate: evaluate(c, True))
                key = {"seed": seed, **sampled, **candidate.identity, "in full": best}
                details[-1][label] = ledger.get(key, lambda f=compute, label=label: f() | {"label": label})
                count.advance()
            for candidate in trained:
                table.add(i, candidate, details[-1][candidate.method])
            floors.append(ledger.get({"seed": seed, "true samples": n}, lambda k=measure_key: _floor(problem, k, n)))
    return _Rows(problem, config, steps, floors).collect(table, details)


def _floor(problem, key, n) -> dict:
    return {"nfe": 0, "metrics": problem.instrument.floor(key, n, True)}


def name_of(candidate: Candidate) -> str:
    """Returns what tells a candidate from every other, as text."""
    return ledger.key(candidate.identity)


class _Entries:
    """What was measured at one number of steps. `entries`: {name_of a candidate: {seed index: entry}}."""

    def __init__(self, tuned):
        self.tuned, self.candidates, self.entries = tuned, {}, {}

    def add(self, seed: int, candidate: Candidate, entry: dict) -> None:
        name = name_of(candidate)
        self.candidates[name] = candidate
        self.entries.setdefault(name, {})[seed] = entry

    def family(self, family: str) -> list[str]:
        """Returns the members of a hand-made family, always with omega = 0; [] if there is no other member."""
        members = [name for name, c in self.candidates.items() if c.family in (family, "unguided") and not c.learned]
        return members if len(members) > 1 else []

    def families(self) -> list[str]:
        found = dict.fromkeys(c.family for c in self.candidates.values() if not c.learned)
        return [family for family in found if family not in UNGUIDED]

    def learned(self) -> list[str]:
        return [name for name, c in self.candidates.items() if c.learned]

    def winner(self, family: str, metric: str, seed: int) -> str:
        """Returns the member of a family that has the lowest metric of all that were measured on this seed."""
        members = [name for name in self.family(family) if seed in self.entries[name]]
        return min(members, key=lambda name: self.entries[name][seed]["metrics"][metric])

    def shortlist(self, hand_made) -> list[Candidate]:
        """Returns the weights without a knob and, for each family and tuned metric, the best few by their means."""
        kept = set(self.unguided())
        for family in self.families():
            for metric in self.tuned:
                kept |= set(sorted(self.family(family), key=lambda name: self.mean(name, metric))[:SHORTLIST])
        return [c for c in hand_made if name_of(c) in kept]

    def unguided(self) -> list[str]:
        return [name for name, c in self.candidates.items() if c.family in UNGUIDED]

    def mean(self, name: str, metric: str) -> float:
        return float(np.mean([entry["metrics"][metric] for entry in self.entries[name].values()]))

    def title(self, family: str) -> str:
        """Returns what people see of the best of a family."""
        return next(f"best {c.method}" for c in self.candidates.values() if c.family == family and not c.learned)

    def winners(self, seed: int) -> list[tuple[str, str, Candidate]]:
        """Returns (family, title, candidate) of unguided ones and of each family's best on the leading metric."""
        found = [(c.family, c.method, c) for c in map(self.candidates.get, self.unguided())]
        for family in self.families():
            found.append((family, self.title(family), self.candidates[self.winner(family, self.tuned[0], seed)]))
        return found


class _Rows:
    """Makes rows of entries: mean and standard error over seeds, and paired differences."""

    def __init__(self, problem, config, steps, floors):
        self.problem, self.tuned, self.steps, self.floors = problem.name, problem.instrument.tuned, steps, floors
        self.sampler = f"{shortened(config.eval.sampler, SAMPLERS)}, uniform grid"

    def row(self, kind, method, words, settings, entries, metric, values=None) -> Row:
        """Returns one row from one entry per seed; `values` take the place of the metric's, without a floor."""
        floor = None
        if values is None:
            values = [entry["metrics"].get(metric, math.inf) for entry in entries]
            floors = [f["metrics"][metric] for f in self.floors if metric in f["metrics"]]
            floor = float(np.mean(floors)) if floors else None
        nfe = float(np.mean([entry["nfe"] for entry in entries]))
        return tables.mean_row(
            self.problem, method, words, settings, self.sampler, self.steps, nfe, metric, values,
            floor=floor, kind=kind,
        )  # fmt: skip

    def collect(self, table: _Entries, details) -> list[Row]:
        """Returns all rows: of every weight, of the best of the families, and of what else was measured."""
        rows = []
        for name, by_seed in table.entries.items():
            entries, c = list(by_seed.values()), table.candidates[name]
            kind = LEARNED if c.learned else NONE if c.family in UNGUIDED else GIVEN
            rows += [self.row(kind, c.method, c.words, c.settings, entries, metric) for metric in self.tuned]
        for metric in self.tuned:
            rows += self._tuned(table, metric, len(details))
        for label in details[0]:
            entries = [of_seed[label] for of_seed in details]
            words = f"as tuned on {self.tuned[0]}"
            others = [
                name for name in dict.fromkeys(n for e in entries for n in e["metrics"]) if name not in self.tuned
            ]
            rows += [self.row(IN_FULL, label, words, {}, entries, name) for name in others]
        return rows

    def _tuned(self, table: _Entries, metric: str, seeds: int) -> list[Row]:
        """Returns the rows of each hand-made family's best per seed, and of how learned weights compare.

        These have a paired difference to each family's best, and close the share
        (unguided - learned) / (unguided - floor) of the gap to true data.
        """
        rows = []
        of = table.candidates
        [start] = [name for name, c in of.items() if c.family == "unguided"]
        unguided = [table.entries[start][seed]["metrics"][metric] for seed in range(seeds)]
        floors = [f["metrics"][metric] for f in self.floors]
        learned = {name: [table.entries[name][seed] for seed in range(seeds)] for name in table.learned()}
        for name, entries in learned.items():
            triples = zip(entries, unguided, floors, strict=True)
            closed = [_closed(start, entry["metrics"][metric], floor) for entry, start, floor in triples]
            label = of[name].method
            rows.append(self.row(SHARE, label, "share of the gap", {}, entries, f"{metric}_gap_closed", closed))
        for family in table.families():
            winners = [table.winner(family, metric, seed) for seed in range(seeds)]
            best = [table.entries[name][seed] for seed, name in enumerate(winners)]
            words = "; ".join(sorted({of[name].words for name in winners}))
            rows.append(self.row(TUNED, table.title(family), words, {"family": family}, best, metric))
            for name, entries in learned.items():
                gaps = [a["metrics"][metric] - b["metrics"][metric] for a, b in zip(entries, best, strict=True)]
                method, settings = of[name].method, {"learned": of[name].method, "minus": family}
                label = f"{method} - {table.title(family)}"
                words = "paired over seeds"
                rows.append(self.row(DIFFERENCE, label, words, settings, entries, f"{metric}_difference", gaps))
        return rows


def _closed(start: float, end: float, floor: float) -> float:
    """Returns the share of the gap from start to floor that end closes; NaN where there is no gap."""
    return (start - end) / (start - floor) if start != floor else float("nan")

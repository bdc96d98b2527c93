"""Job `evaluate`: every weight, hand-made or learned, through the same sampler, noise and reference samples.

A weight never sees x, so on a grid it is a table omega[step, condition]; one compiled evaluation per number of steps
serves the whole sweep. Each seed has its own model, learned weights, noise and reference. Hand-made families are
tuned on the very numbers that are reported, per seed and per metric: the comparison favours them.
"""

from typing import NamedTuple

import numpy as np

from experiments import launch, problems, progress, records
from experiments.jobs import learn, train
from experiments.jobs.draws import keys, sampler
from experiments.records import Ledger
from guidance import sampling, weights
from guidance.types import Weight

FAMILIES = ("constant", "interval", "clamp_linear")
SHORTLIST = 3  # of each family and metric, the weights that seeds beyond eval.sweep_seeds still see


class Candidate(NamedTuple):
    """A weight to evaluate: the family it belongs to, its knobs, its words, and the weight itself."""

    method: str
    settings: dict
    words: str
    weight: Weight


def candidates(config) -> list[Candidate]:
    """The hand-made weights of the config: unguided, constants, intervals, clamped ramps."""
    found = [Candidate("unguided", {}, "omega = 0", weights.constant(0.0))]
    omegas = [omega for omega in config.eval.omegas if omega != 0]
    for omega in omegas:
        found.append(Candidate("constant", {"omega": omega}, f"omega = {omega:g}", weights.constant(omega)))
    for lo, hi in config.eval.intervals:
        for omega in omegas:
            knobs, words = {"omega": omega, "lo": lo, "hi": hi}, f"omega = {omega:g} on t in ({lo:g}, {hi:g}]"
            found.append(Candidate("interval", knobs, words, weights.interval(omega, lo, hi)))
    for floor in config.eval.clamp:
        for omega in omegas:
            words = f"scale = max({floor:g}, {2 * (1 + omega):g} (1 - t))"
            knobs = {"omega": omega, "floor": floor}
            found.append(Candidate("clamp_linear", knobs, words, weights.clamp_linear(omega, floor)))
    return found


def run(problem, config, workdir) -> list[records.Row]:
    """Evaluates everything, writes results.json, prints the table of what matters, returns all rows."""
    learned = learn.run(problem, config, workdir)
    bases = train.run(problem, config, workdir)
    ledger = Ledger(workdir / "evaluations.jsonl")
    rows = []
    for steps in config.eval.steps:
        rows += _at_steps(problem, config, ledger, steps, bases, learned)
    launch.first(lambda: records.write_results(workdir / "results.json", rows))
    shown = [row for row in rows if row.method not in FAMILIES and row.metric in problem.tuned]
    print(records.table(shown))
    print(f"all rows: {workdir / 'results.json'}")
    return rows


def _at_steps(problem, config, ledger, steps, bases, learned) -> list[records.Row]:
    """Evaluates all weights at one number of steps and returns the rows.

    The whole grid of hand-made weights runs on the first `eval.sweep_seeds` seeds; on the others only the shortlist.
    """
    grid, run_sampler = sampling.uniform_grid(steps), sampler(problem, config, steps)
    _, n = problems.shares(problem.conditions, config.eval.samples)
    hand_made = candidates(config)
    tasks = [task for task in learn.tasks(problem, config) if task.steps in (None, steps)]
    swept = min(config.seeds, config.eval.sweep_seeds)
    few = min(len(hand_made), 1 + SHORTLIST * len(FAMILIES) * len(problem.tuned))  # at most, as lists overlap
    total = swept * len(hand_made) + (config.seeds - swept) * few + config.seeds * (len(tasks) + 1 + len(FAMILIES))
    table = _Entries(problem.tuned)
    details, floors = [], []
    with progress.counting(f"evaluating at {steps} steps", total) as count:
        for i, seed in enumerate(range(config.seed, config.seed + config.seeds)):
            noise_key, measure_key = keys(seed)

            def evaluate(candidate, full, i=i, noise_key=noise_key, measure_key=measure_key):
                if progress.stop_requested():
                    raise progress.Stopped
                omegas = weights.tabulated(candidate.weight, grid, problem.conditions)
                samples, nfe = run_sampler(bases[i], omegas, noise_key)
                entry = {"nfe": nfe, "metrics": problem.measure(measure_key, samples, full)}
                if full:
                    entry["metrics"]["median_omega"] = float(np.median(omegas))
                    entry["table"] = np.asarray(omegas).tolist()
                return entry

            own = [Candidate(task.name, {}, "omega(s, t, c)", task.weight(learned[task.name][i])) for task in tasks]
            # samples that come in batches cost more than all that is measured on them: they are not drawn twice
            in_full = i >= swept or config.eval.batch > 0
            for candidate in hand_made if i < swept else table.shortlist(hand_made):
                key = f"{steps} steps, seed {seed}, {candidate.method}, {candidate.words}"
                table.add(i, candidate, ledger.get(key, lambda c=candidate, full=in_full: evaluate(c, full)))
                count.advance()
            details.append({})
            for label, candidate in (table.winners(i) | {c.method: c for c in own}).items():
                known = table.entries.get((candidate.method, candidate.words), {}).get(i, {})
                compute = (lambda e=known: e) if "table" in known else (lambda c=candidate: evaluate(c, True))
                details[-1][label] = ledger.get(f"{steps} steps, seed {seed}, {label}, in full", compute)
                count.advance()
            for candidate in own:
                table.add(i, candidate, details[-1][candidate.method])
            floors.append(ledger.get(f"{n} true samples, seed {seed}", lambda k=measure_key: _floor(problem, k, n)))
    return _Rows(problem, config, steps, floors).collect(table, details)


def _floor(problem, key, n) -> dict:
    return {"nfe": 0, "metrics": problem.floor(key, n, True)}


class _Entries:
    """What was measured at one number of steps: {(method, words): {seed index: entry}}, and who was best."""

    def __init__(self, tuned):
        self.tuned, self.candidates, self.entries = tuned, {}, {}

    def add(self, seed: int, candidate: Candidate, entry: dict) -> None:
        label = (candidate.method, candidate.words)
        self.candidates[label] = candidate
        self.entries.setdefault(label, {})[seed] = entry

    def family(self, name: str) -> list:
        """The labels of a hand-made family, to which omega = 0 always belongs; [] where it has no other member."""
        members = [label for label in self.entries if label[0] in (name, "unguided")]
        return members if len(members) > 1 else []

    def families(self) -> list[str]:
        return [name for name in FAMILIES if self.family(name)]

    def winner(self, name: str, metric: str, seed: int):
        """The label with the lowest metric on this seed, among the members of a family that it was measured on."""
        members = [label for label in self.family(name) if seed in self.entries[label]]
        return min(members, key=lambda label: self.entries[label][seed]["metrics"][metric])

    def shortlist(self, hand_made) -> list[Candidate]:
        """Unguided and, for each family and tuned metric, the best few by their mean so far."""
        kept = {("unguided", "omega = 0")}
        for name in self.families():
            for metric in self.tuned:
                kept |= set(sorted(self.family(name), key=lambda label: self.mean(label, metric))[:SHORTLIST])
        return [c for c in hand_made if (c.method, c.words) in kept]

    def mean(self, label, metric: str) -> float:
        return float(np.mean([entry["metrics"][metric] for entry in self.entries[label].values()]))

    def winners(self, seed: int) -> dict[str, Candidate]:
        """Unguided, and the best of each hand-made family on the leading metric."""
        best = {f"best {name}": self.candidates[self.winner(name, self.tuned[0], seed)] for name in self.families()}
        return {"unguided": self.candidates[("unguided", "omega = 0")]} | best


class _Rows:
    """Turns entries into rows: mean and standard error over seeds, and paired differences."""

    def __init__(self, problem, config, steps, floors):
        self.problem, self.steps, self.floors = problem, steps, floors
        self.sampler = "DDIM" if config.eval.churn == 0 else f"DDIM, churn {config.eval.churn:g}"
        self.sampler += ", uniform grid"

    def row(self, method, words, settings, entries, metric, values=None) -> records.Row:
        """One row from one entry per seed; `values` replaces the metric's own values (differences have no floor)."""
        floor = None
        if values is None:
            values = [entry["metrics"][metric] for entry in entries]
            floors = [f["metrics"][metric] for f in self.floors if metric in f["metrics"]]
            floor = float(np.mean(floors)) if floors else None
        nfe = float(np.mean([entry["nfe"] for entry in entries]))
        return records.mean_row(
            self.problem.name, method, words, settings, self.sampler, self.steps, nfe, metric, values, floor
        )

    def collect(self, table: _Entries, details) -> list[records.Row]:
        rows = []
        for label, by_seed in table.entries.items():
            entries = list(by_seed.values())
            settings = table.candidates[label].settings
            rows += [self.row(*label, settings, entries, metric) for metric in self.problem.tuned]
        for metric in self.problem.tuned:
            rows += self._tuned(table, metric, len(details))
        for label in details[0]:
            entries = [of_seed[label] for of_seed in details]
            words = f"as tuned on {self.problem.tuned[0]}"
            rows += [
                self.row(label, words, {}, entries, m) for m in entries[0]["metrics"] if m not in self.problem.tuned
            ]
        return rows

    def _tuned(self, table: _Entries, metric: str, seeds: int) -> list[records.Row]:
        """The best of each hand-made family per seed, the learned weights' paired differences to it, and the share
        (unguided - learned) / (unguided - floor) of the gap to true data that they close."""
        rows = []
        learned = [label for label in table.entries if label[0] not in (*FAMILIES, "unguided")]
        unguided = [table.entries[("unguided", "omega = 0")][seed]["metrics"][metric] for seed in range(seeds)]
        floors = [f["metrics"][metric] for f in self.floors]
        for label in learned:
            mine = [table.entries[label][seed] for seed in range(seeds)]
            triples = zip(mine, unguided, floors, strict=True)
            closed = [(start - own["metrics"][metric]) / (start - floor) for own, start, floor in triples]
            rows.append(self.row(label[0], "share of the gap", {}, mine, f"{metric}_gap_closed", closed))
        for name in table.families():
            winners = [table.winner(name, metric, seed) for seed in range(seeds)]
            best = [table.entries[label][seed] for seed, label in enumerate(winners)]
            words = "; ".join(sorted({words for _, words in winners}))
            rows.append(self.row(f"best {name}", words, {}, best, metric))
            for label in learned:
                mine = [table.entries[label][seed] for seed in range(seeds)]
                gaps = [a["metrics"][metric] - b["metrics"][metric] for a, b in zip(mine, best, strict=True)]
                words = f"{label[0]} - best {name}"
                rows.append(self.row(words, "paired over seeds", {}, mine, f"{metric}_difference", gaps))
        return rows

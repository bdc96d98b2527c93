"""`guidance.compare`, which samples with several weights and compares them by your own metric."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from tqdm import tqdm

from guidance import bars, checks, sampling, tables
from guidance.conditions import are_labels, listed, repeated, size
from guidance.learning import Model, training
from guidance.types import Array, Cond, Solver, Step, Weight
from guidance.weights import table, tabulated

DDIM = sampling.ddim()


class Compared(NamedTuple):
    """The result of `compare`: a row for each weight, number of steps and metric. It prints as a table, best first."""

    rows: list[tables.Row]

    def __str__(self) -> str:
        return tables.table(self.rows)

    def latex(self) -> str:
        """Returns the table as a LaTeX tabular with the rules of booktabs."""
        return tables.listing(self.rows).latex()

    def csv(self) -> str:
        """Returns the rows as CSV: what the table shows and the figure draws."""
        return tables.rows_as_csv(self.rows)

    def figure(self, metric: str | None = None) -> Any:
        """Returns a matplotlib figure of a metric (default: the first) against network evaluations per sample.

        Raises ValueError for a metric that was not measured.
        """
        known = list(dict.fromkeys(row.metric for row in self.rows))
        if metric is not None and metric not in known:
            raise ValueError(f"metric = {metric!r}: allowed: {' or '.join(known)}")
        return tables.against_nfe(self.rows, metric or known[0], lambda row: {})


def compare(
    model: Model,
    conditions: Cond,
    weights: Mapping[str, Weight],
    metric: Callable[[Array], Any],
    shape: tuple[int, ...],
    *,
    steps: Sequence[int] = (10, 20),
    seeds: int = 3,
    samples: int = 100,
    step: Step | Solver = DDIM,
) -> Compared:
    """Draws samples with every weight at every number of steps, and measures them.

    model, conditions: the same as for `guidance.fit`.
    weights: by name, such as {"unguided": weights.constant(0.0), ...}.
    metric: a function of samples [G, n, *shape], n of each condition. It returns a number, or {name: number}. Lower
        values are taken as better.
    shape: the shape of one sample.
    steps: the numbers of steps; the grids are uniform.
    seeds: the number of repetitions. Each starts from other noise, the same for all weights.
    samples: the number n of samples of each condition.
    step: the step or solver.

    Returns a row for each weight, number of steps and metric: the mean over the seeds, its standard error
    s / sqrt(seeds), and the network evaluations per sample, summed over branches. Costs one compilation for each
    number of steps, and seeds * G * n * NFE evaluations for each weight and number of steps. Raises TypeError or
    ValueError for arguments that do not fit.
    """
    model, conditions = training.with_denoiser(model), listed(conditions)
    checks.is_step(step)
    _check(weights, metric, shape, steps, seeds, samples)
    groups, cond, rows = size(conditions), repeated(conditions, samples), []
    columns = None if are_labels(conditions) else conditions
    arrays, together = training.split_arrays((model, step))

    @jax.jit
    def draw(key, arrays, grid, omegas):
        model, step = together(arrays)
        ids, weight = jnp.arange(groups * samples), table(grid, omegas, columns)
        out = model.sample(key, weight, step, grid, shape, cond, ids)
        return out.x0, out.evaluations

    with tqdm(total=len(steps) * len(weights) * seeds, desc="comparing", dynamic_ncols=True) as bar:
        for number in steps:
            grid, fresh = sampling.uniform_grid(number), True
            bar.set_description(f"comparing: compiling {number} steps")
            for name, weight in weights.items():
                omegas, nfe = _on_grid(weight, grid, conditions), []
                found: dict[str, list[float]] = {}
                for seed in range(seeds):
                    x, count = draw(jax.random.key(seed), arrays, grid, omegas)
                    nfe.append(float(count))
                    for label, value in _labelled(metric, x.reshape(groups, samples, *shape)).items():
                        found.setdefault(label, []).append(value)
                    if fresh:
                        bars.count_compiled(bar)
                        bar.set_description("comparing")
                        fresh = False
                    else:
                        bar.update()
                rows += [
                    tables.mean_row("", name, "", {}, _name(step), number, sum(nfe) / seeds, label, values)
                    for label, values in found.items()
                ]
    return Compared(rows)


def _check(weights, metric, shape, steps, seeds, samples) -> None:
    """Raises, in one line, for arguments of `compare` that do not fit."""
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(name, str) for name in weights):
        example = '{"unguided": weights.constant(0.0)}'
        raise TypeError(f"expected at least one weight by name, such as {example}, got {checks.words(weights)}")
    for weight in weights.values():
        checks.is_weight(weight)
    if not callable(metric):
        raise TypeError(f"expected a metric (samples [G, n, ...]) -> number, got {checks.words(metric)}")
    for name, value, lowest in (("steps", steps, 1), ("shape", shape, 0)):
        if (
            not isinstance(value, Sequence)
            or len(value) < lowest
            or not all(isinstance(n, numbers.Integral) for n in value)
        ):
            raise TypeError(f"{name} must be a tuple of integers, got {value!r}")
    for name, value in (("seeds", seeds), ("samples", samples)):
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} = {value!r}: allowed: an integer of at least 1")


def _on_grid(weight: Weight, grid: Array, conditions: Cond) -> Array:
    arrays, together = training.split_arrays(weight)
    return jax.jit(lambda arrays: tabulated(together(arrays), grid, conditions))(arrays)


def _labelled(metric: Callable, samples: Array) -> dict[str, float]:
    found = metric(samples)
    found = dict(found) if isinstance(found, Mapping) else {getattr(metric, "__name__", "metric"): found}
    for value in found.values():
        if not isinstance(value, numbers.Real) and getattr(value, "shape", None) != ():
            raise TypeError(f"a metric must return a number, or numbers by name, got {checks.words(value)}")
    return found


def _name(step: Step | Solver) -> str:
    function = step.apply if isinstance(step, Solver) else step
    function = getattr(function, "func", function)
    name = getattr(function, "__name__", type(function).__name__)
    return f"{name.strip('_')}, uniform grid"

"""`Problem`: the interface between jobs and problems, so that no job depends on which problem it has."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from experiments.config import ConfigError
from guidance.conditions import are_labels, size, taken
from guidance.types import Array, Cond, Denoise, Reward, Schedule


class Network(NamedTuple):
    """A base denoiser that the job trains, as `guidance.predictions.as_denoise` takes it."""

    init: Callable[[Array], Any]  # key -> params
    apply: Callable[..., Array]  # (params, x, t, cond) -> prediction
    kind: str


class Model(NamedTuple):
    """The model that is guided. A sample has the shape `shape`."""

    schedule: Schedule
    shape: tuple[int, ...]
    conditions: Cond  # all conditions, leaves [G, ...]; for instance the labels 0 .. G - 1
    null: Cond  # leaves without that axis, for instance the label G
    denoise: Callable[[Any], Denoise]  # params of the base -> the model to be guided
    network: Network | None = None  # None: the denoiser is known, params are `known`
    known: Any = ()  # the params of a base that is not trained
    # samples [n, ...] -> images [n, H, W, C] in [0, 1], perhaps beyond; a pytree. None: samples are no images
    to_images: Callable[[Array], Array] | None = None

    @property
    def columns(self) -> Cond:
        """Returns the conditions for `weights.table`: None for the labels 0 .. G - 1, which need no search."""
        return None if are_labels(self.conditions) else self.conditions


class Data(NamedTuple):
    """True data. `arrays` may be large: they are arguments of what is compiled, never constants in it."""

    draw: Callable[..., tuple[Array, Cond]]  # (key, arrays, n) -> training pairs (x0, cond), leaves [n, ...]
    # (key, arrays, k, conditions) -> training samples of the target, k for each of these conditions [K, k, ...]
    real: Callable[..., Array]
    arrays: Any = ()  # the data that `draw` and `real` draw from, a pytree
    # (batch, part, seed) -> a function update -> (x0, cond) of this process's part of the batch, in NumPy, for
    # training sets that do not fit memory; None: training pairs come from `draw`
    feed: Callable[..., Callable[[int], tuple]] | None = None
    names: tuple[str, ...] | None = None  # of the classes; None: they have none


class Instrument(NamedTuple):
    """The metrics and the picture by which samples are judged."""

    # (key, samples [G, n, ...], full) -> {metric: value}; full adds the costly ones
    measure: Callable[[Array, Array, bool], dict[str, float]]
    floor: Callable[[Array, int, bool], dict[str, float]]  # (key, n, full) -> metrics of n true samples per condition
    tuned: tuple[str, ...]  # the metrics, lower is better, that hand-made weights are tuned on; the first one leads
    # (axes, samples [K, n, ...]): draws them; returns the points drawn, (condition, x1, x2) each, or None for images
    picture: Callable[..., list[tuple] | None]
    features: Callable[[Array], Array] | None = None  # the space in which rollouts are matched; None: sample space


class Problem(NamedTuple):
    """A task: a model that is imperfect in a known way, true data, and what judges samples.

    Functions of a key are pure. An imported network may come without data and without an instrument: the one job for
    it is then `sample`.
    """

    name: str
    model: Model
    data: Data | None = None
    instrument: Instrument | None = None
    reward: Reward | None = None


@contextmanager
def refusing(place: str = "") -> Iterator[None]:
    """Raises an error that a user's file causes as ConfigError, in one line that begins with `place`."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise ConfigError(f"{place}: {error}" if place else str(error)) from None


def require(problem: Problem, job: str, *parts: str) -> None:
    """Raises ConfigError, in one line, where the problem comes without one of the parts that the job needs."""
    missing = [part for part in parts if getattr(problem, part) is None]
    if missing:
        raise ConfigError(f"job = {job}: {problem.name} comes without {' and '.join(missing)}; allowed: sample")


def shares(conditions: Cond, samples: int) -> tuple[Cond, int]:
    """Returns the conditions, leaves [K, ...], that `samples` samples are drawn for, and how many n are for each.

    These are all conditions or, where there are more conditions than samples, evenly spaced ones with n = 1. K n may
    be less than `samples`, since every condition has equally many.
    """
    count = size(conditions)
    shown = min(count, samples)
    return taken(conditions, np.arange(shown) * count // shown), samples // shown

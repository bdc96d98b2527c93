"""Problems: what jobs need to know of a task, and nothing else, so that no job asks which problem it is."""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from guidance.types import Array, Denoise, Reward, Schedule

JUDGED = ("labelled", "digits")  # the problems that train the classifier in whose features they measure


class Network(NamedTuple):
    """A base denoiser that the job trains: what `guidance.predictions.as_denoise` takes."""

    init: Callable[[Array], Any]  # key -> params
    apply: Callable[..., Array]  # (params, x, t, cond) -> prediction
    kind: str


class Problem(NamedTuple):
    """A task: true data, a model that is imperfect in a known way, and how to measure what it samples.

    G conditions are labels 0..G-1, `null` is the null label. Samples have shape `shape`. Functions of a key are pure.
    What may be large, `data` and the params, is an argument of what is compiled, never a constant in it.
    """

    name: str
    schedule: Schedule
    shape: tuple[int, ...]
    conditions: Array  # [G]
    null: int
    network: Network | None  # None: the denoiser is known, params are `known`
    denoise: Callable[[Any], Denoise]  # params of the base -> the model to be guided
    draw: Callable[..., tuple[Array, Array]]  # (data, key, n) -> training pairs (x0 [n, ...], cond [n])
    # (data, key, k, conditions) -> training samples of the target, k for each of these conditions [K, k, ...]
    real: Callable[..., Array]
    features: Callable[[Array], Array] | None  # the space in which rollouts are matched; None: sample space
    # (key, samples [G, n, ...], full) -> {metric: value}; full adds the costly ones
    measure: Callable[[Array, Array, bool], dict[str, float]]
    floor: Callable[[Array, int, bool], dict[str, float]]  # (key, n, full): what n true samples per condition score
    tuned: tuple[str, ...]  # the metrics, lower is better, that baselines are tuned on; the first one leads
    reward: Reward | None
    picture: Callable[..., None]  # (axes, samples [G, n, ...] or None for true data): draws samples
    known: Any = ()  # params of the base where there is no network to train
    data: Any = ()  # what `draw` and `real` draw from, a pytree
    # samples [n, ...] -> images [n, H, W, C] in [0, 1], perhaps beyond; a pytree. None: samples are no images
    to_images: Callable[[Array], Array] | None = None
    # (batch, part, seed) -> (update -> (x0, cond)) of this process's part of the batch, as numpy arrays, for training
    # sets that do not fit memory; None: training pairs come from `draw`
    feed: Callable[..., Callable[[int], tuple]] | None = None


def shares(conditions: Array, samples: int) -> tuple[Array, int]:
    """(conditions, n): of which conditions `samples` samples are, n of each; what does not come out even is left out.

    All conditions or, where they are more than the samples, one sample of every so many conditions.
    """
    shown = min(len(conditions), samples)
    return conditions[np.arange(shown) * len(conditions) // shown], samples // shown


def build(config, folder: pathlib.Path | None = None) -> Problem:
    """The problem that the config names. `folder`: of the run, where a problem of JUDGED keeps its classifier."""
    module = importlib.import_module(f"experiments.problems.{config.problem.name}")
    return module.build(config, folder) if config.problem.name in JUDGED else module.build(config)

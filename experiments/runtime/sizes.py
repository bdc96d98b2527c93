"""Refuses a run that needs more memory than the machine has, before it starts.

The estimates are lower bounds. They count only indispensable arrays: the samples of a batch, one layer of activations,
and weights with their gradient and moments. A run that passes may still run out of memory; `in_one_line` then turns
the error into one line. Imports nothing heavy.
"""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from experiments.config import ConfigError
from experiments.config.expressions import integers

FLOAT = 4  # bytes
COPIES = 4  # arrays of the size of a batch in memory at a time: clean samples, noised samples, noise, a prediction
LEARNED = 4  # arrays of the size of the weights in memory: weights, gradient, Adam's two moments
REMEDY = "smaller batches (base, learn.batch, learn.rollout_batch, eval.batch, sample.batch) or networks"


class Need(NamedTuple):
    """The number of bytes that some fields of a config cost."""

    fields: tuple[str, ...]
    bytes: float


def memory() -> int:
    """Returns the size of this machine's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needs(config) -> list[Need]:
    """Returns the indispensable arrays of a config's job: their bytes, and the fields that set their sizes."""
    found, numbers = [], _numbers(config.problem)
    trained = config.job not in ("report", "sample")
    if "base" in config and trained:
        found += _of_training(config.base, numbers, getattr(config.problem, "size", 1))
    if "learn" in config and trained and config.job != "train":
        found += _of_learning(config, numbers)
    if config.job == "sample":
        batch = min(config.sample.batch, sum(map(len, integers(config.sample.seeds))))
        found.append(Need(("sample.batch",), FLOAT * COPIES * batch * numbers))
    if "eval" in config and config.job in ("all", "evaluate"):
        samples = config.eval.samples
        found.append(Need(("eval.samples",), FLOAT * samples * numbers))
        found.append(
            Need(("eval.batch", "eval.samples"), FLOAT * COPIES * min(config.eval.batch or samples, samples) * numbers)
        )
    return found


def _of_training(base, numbers: int, side: int) -> list[Need]:
    network = getattr(base, "network", "mlp")
    layers = base.depth if network == "mlp" else 1
    places = {"mlp": 1, "dit": (side // getattr(base, "patch", 1)) ** 2}.get(network, side**2)
    rows = base.batch // base.accumulate
    weights = base.width**2 * base.depth * (LEARNED + len(base.averages))
    return [
        Need(
            ("base.batch", "base.width"),
            FLOAT * (COPIES * base.batch * numbers + rows * max(1, places) * base.width * layers),
        ),
        Need(("base.width", "base.depth"), FLOAT * weights),
    ]


def _of_learning(config, numbers: int) -> list[Need]:
    learn, found = (
        config.learn,
        [Need(("learn.width", "learn.depth"), FLOAT * LEARNED * config.learn.width**2 * config.learn.depth)],
    )
    if any(objective != "rollout" for objective in learn.objectives):
        rows = learn.batch * learn.particles
        found.append(Need(("learn.batch", "learn.particles"), FLOAT * COPIES * rows * numbers))
        found.append(Need(("learn.batch", "learn.particles"), FLOAT * rows * learn.particles))
    if "rollout" in learn.objectives:
        found.append(Need(("learn.rollout_batch",), FLOAT * COPIES * learn.rollout_batch * numbers))
        found.append(Need(("learn.rollout_batch",), FLOAT * learn.rollout_batch**2))
        found.append(
            Need(
                ("learn.rollout_real", "learn.rollout_batch"),
                FLOAT * learn.rollout_real * (numbers + learn.rollout_batch),
            )
        )
    return found


def _numbers(problem) -> int:
    """Returns a lower bound on the numbers in a sample."""
    if problem.name == "mixture":
        return problem.dimension
    return {"labelled": getattr(problem, "size", 1) ** 2, "digits": 8**2, "mnist": 28**2}.get(problem.name, 1)


def check(config, available: float) -> None:
    """Raises ConfigError, which names the fields, if the job needs more than `available` bytes of memory."""
    for fields, needed in needs(config):
        if needed > available:
            named = ", ".join(f"{name} = {functools.reduce(getattr, name.split('.'), config)}" for name in fields)
            raise ConfigError(f"{named}: needs at least {_words(needed)} of memory; there are {_words(available)}")


def check_disk(folder, field: str, needed: float, free: float) -> None:
    """Raises ConfigError, which names the field, if fewer than `needed` bytes are `free` on the folder's disk."""
    if needed > free:
        raise ConfigError(f"{field}: needs {_words(needed)} of disk in {folder}; {_words(free)} are free")


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Turns the error of a job that runs out of memory into a ConfigError."""
    try:
        yield
    except MemoryError as error:
        raise ConfigError(f"out of memory: {error}; allowed: {REMEDY}") from error
    except RuntimeError as error:  # jax has no class for this error
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise
        raise ConfigError(f"out of memory: {str(error).splitlines()[0][:200]}; allowed: {REMEDY}") from error


def _words(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.0f} TB"

"""What a run needs of memory at the very least, against what there is: said before anything of that size is asked for.

The estimates count the arrays that cannot be done without (the samples of a batch, one layer of activations, weights
with their gradient and moments) and leave out all else: what they refuse cannot work, what they let pass may still not
fit, and ends in one line as well (`in_one_line`). Imports nothing heavy.
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
COPIES = 4  # of a batch that exist at the same time: clean and noised samples, noise, a prediction
LEARNED = 4  # of a network's weights: themselves, their gradient, Adam's two moments
REMEDY = "smaller batches (base, learn.batch, learn.rollout_batch, eval.batch, sample.batch) or networks"


class Need(NamedTuple):
    """So many bytes, because of these fields."""

    fields: tuple[str, ...]
    bytes: float


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def needs(config) -> list[Need]:
    """The arrays that the job of a config cannot do without, by the fields to name."""
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
    """How many numbers a sample has, at least."""
    if problem.name == "mixture":
        return problem.dimension
    return {"labelled": getattr(problem, "size", 1) ** 2, "digits": 8**2, "mnist": 28**2}.get(problem.name, 1)


def check(config, there: float) -> None:
    """Raises ConfigError, naming the fields, where the job needs more than `there` bytes of memory."""
    for fields, needed in needs(config):
        if needed > there:
            named = ", ".join(f"{name} = {functools.reduce(getattr, name.split('.'), config)}" for name in fields)
            raise ConfigError(f"{named}: needs at least {_words(needed)} of memory; there are {_words(there)}")


def check_disk(folder, field: str, needed: float, free: float) -> None:
    """Raises ConfigError where the folder's disk has not room for `needed` bytes."""
    if needed > free:
        raise ConfigError(f"{field}: needs {_words(needed)} of disk in {folder}; {_words(free)} are free")


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Around a job: memory that was asked for and is not there becomes a ConfigError."""
    try:
        yield
    except MemoryError as error:
        raise ConfigError(f"out of memory: {error}; allowed: {REMEDY}") from error
    except RuntimeError as error:  # jax has no class for it
        if not re.search("RESOURCE_EXHAUSTED|[Oo]ut of memory", str(error)):
            raise
        raise ConfigError(f"out of memory: {str(error).splitlines()[0][:200]}; allowed: {REMEDY}") from error


def _words(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.0f} TB"

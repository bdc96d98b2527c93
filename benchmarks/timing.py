"""The clocks of the benchmarks, and what makes their ratios fair: contenders that take turns in one process."""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Taken(NamedTuple):
    """What one call took. cost: CPU time of the process on a CPU, where other load does not count, else wall time."""

    cost: float
    wall: float


def taken(call, *arguments) -> Taken:
    """Both clocks of one call until its result is there."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(call(*arguments))
    wall, used = time.perf_counter() - start[0], time.process_time() - start[1]
    return Taken(used if jax.default_backend() == "cpu" else wall, wall)


def seconds(call, *arguments) -> float:
    """What one call costs until its result is there."""
    return taken(call, *arguments).cost


class Turns(NamedTuple):
    """seconds: wall times [repeats] of each contender; others: cores that other processes kept busy, NaN if unknown.

    first: what each contender returned.
    """

    seconds: dict[str, np.ndarray]
    others: float
    first: dict[str, Any]


def alternated(contenders: dict[str, Callable[[], Any]], repeats: int) -> Turns:
    """Wall times of contenders that take turns, so that drift hits all alike; the first round compiles."""
    first = {name: jax.block_until_ready(call()) for name, call in contenders.items()}
    walls = {name: [] for name in contenders}
    start = time.perf_counter(), time.process_time(), _machine_seconds()
    for _ in range(repeats):
        for name, call in contenders.items():
            walls[name].append(taken(call).wall)
    wall, own, all_of_them = time.perf_counter() - start[0], time.process_time() - start[1], _machine_seconds()
    others = max((all_of_them - start[2] - own) / wall, 0.0)
    return Turns({name: np.array(each) for name, each in walls.items()}, others, first)


def neighbours(turns: Turns) -> str:
    """The line that says whether the machine was idle beside the benchmark."""
    return f"  other processes kept {turns.others:.2f} cores busy meanwhile"


def _machine_seconds() -> float:
    """CPU time that all processes of the machine have used; NaN where Linux does not say."""
    stat = pathlib.Path("/proc/stat")
    if not stat.exists():
        return float("nan")
    user, nice, system, _, _, interrupts, soft = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")

"""One clock for the benchmarks: CPU time of the process on a CPU, where other load does not count, else wall time."""

import time

import jax


def seconds(call, *arguments) -> float:
    """What one call takes until its result is there."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    start = clock()
    jax.block_until_ready(call(*arguments))
    return clock() - start

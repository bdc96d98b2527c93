"""Counting traces: how often jit had to compile, whatever its caches keep."""

import jax


def counted(function):
    """(jax.jit(function), a list that grows by one for each trace).

    Not `_cache_size()`: in a long test run jax drops entries of its global cache, and the size falls back to 0.
    """
    traces = []

    def traced(*arguments):
        traces.append(1)
        return function(*arguments)

    return jax.jit(traced), traces

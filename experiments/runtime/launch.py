"""Several processes as one program: how they find each other, and what only the first of them does.

Every process runs the same command and makes the same calls in the same order. Process 0 writes the files, into a
folder that all of them see. Unless the environment asks for several processes, there is one, and jax is not touched.
docs/pods.md has the commands.
"""

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from experiments.config import ConfigError

# options of glibc's mallopt(3) by their numbers: one arena, no separate mapping for large blocks, nothing given back
MALLOC = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}

_process, _processes, _polls, _stop = 0, 1, 0, False


class Elsewhere(Exception):
    """Says that process 0 failed at what it did for all. The message is that of process 0."""


def start() -> None:
    """Joins the processes that the environment describes. Call it before jax computes anything.

    GUIDANCE_COORDINATOR is host:port of process 0, GUIDANCE_PROCESSES the number of processes, and GUIDANCE_PROCESS
    the number of this one, from 0. With GUIDANCE_PROCESSES=auto, or in a SLURM step of several tasks, jax detects all
    three (SLURM, Open MPI, Kubernetes, TPU pods). GUIDANCE_HEARTBEAT is the number of seconds without a sign after
    which a process counts as dead and the others end with an error (default 100). Raises ConfigError for settings
    that cannot work.
    """
    alone = os.environ.get("SLURM_STEP_NUM_TASKS", "1") in ("", "0", "1")
    asked = os.environ.get("GUIDANCE_PROCESSES", "1" if alone else "auto")
    _give_cpu_devices_threads()
    if asked == "1":
        return
    explicit = {}
    if asked != "auto":
        explicit = {
            "num_processes": int(_setting("GUIDANCE_PROCESSES", asked, r"[1-9]\d*", "a number of processes, or auto")),
            "coordinator_address": _setting("GUIDANCE_COORDINATOR", asked, r"\S+:\d+", "host:port of process 0"),
            "process_id": int(_setting("GUIDANCE_PROCESS", asked, r"\d+", "this process's number, from 0")),
        }
        if explicit["process_id"] >= explicit["num_processes"]:
            raise ConfigError(f"GUIDANCE_PROCESS={explicit['process_id']}: allowed: 0 to {int(asked) - 1}")
    heartbeat = int(_setting("GUIDANCE_HEARTBEAT", asked, r"[1-9]\d*", "seconds", default="100"))
    import jax

    waits = {"heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": heartbeat}
    try:
        if not jax.distributed.is_initialized():
            jax.distributed.initialize(**explicit, **waits)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"GUIDANCE_PROCESSES={asked}: the processes did not find each other: {error}") from error
    global _process, _processes
    _process, _processes = jax.process_index(), jax.process_count()


@contextmanager
def joined() -> Iterator[None]:
    """Calls `start`, and on leaving makes this process a single one again. What jax has joined stays joined."""
    global _process, _processes, _stop
    before, threads = (_process, _processes, _stop), os.environ.get("PJRT_NPROC")
    try:
        start()
        yield
    finally:
        _process, _processes, _stop = before
        if threads is None:
            os.environ.pop("PJRT_NPROC", None)


def command(main: Callable[[list[str]], int]) -> int:
    """Runs `main` on the arguments of this process, which is a command and not a notebook; returns the exit code.

    Ctrl-C ends it without a traceback, and so does a pipe that is closed (`--help | head`).
    """
    keep_freed_memory()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # python flushes once more as it ends
        return 128 + signal.SIGPIPE
    return code


def keep_freed_memory() -> None:
    """Makes the C library keep freed memory for the next call. Call it before threads start.

    On a CPU, XLA allocates the temporaries of a program anew for every call. glibc returns such large blocks to the
    system, which clears their pages again: a third of the time of a transformer's gradient. Without glibc this does
    nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in MALLOC.values():
            mallopt(option, value)


def primary() -> bool:
    """Returns whether this is the process that writes files and prints."""
    return _process == 0


def several() -> bool:
    """Returns whether there is more than one process."""
    return _processes > 1


def first(action: Callable[[], Any]) -> Any:
    """Calls `action` in process 0 and returns its value in every process. The others wait for it.

    The value must survive JSON. If `action` raises, process 0 raises the same exception, and the others raise
    Elsewhere with its message.
    """
    if not several():
        return action()
    outcome, failure = None, None
    if primary():
        try:
            outcome = {"value": action()}
        except Exception as error:
            outcome, failure = {"error": f"{type(error).__name__}: {error}"}, error
    told = json.loads(_broadcast(json.dumps(outcome)))
    if failure is not None:
        raise failure
    if "error" in told:
        raise Elsewhere(told["error"])
    return told["value"]


def stop_agreed() -> bool:
    """Returns whether some process got SIGTERM and all have reached the call at which they stop.

    It is for several processes, which must call it equally often. Once true, it stays true.
    """
    from jax.experimental import multihost_utils

    global _polls, _stop
    _polls += 1
    _stop = _stop or multihost_utils.reached_preemption_sync_point(_polls)
    return _stop


def _broadcast(text: str) -> str:
    """Returns the text of process 0. Its length is sent first, since all processes must name the shape of an array."""
    import numpy as np
    from jax.experimental import multihost_utils

    raw = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(raw))))
    return bytes(multihost_utils.broadcast_one_to_all(raw if primary() else np.zeros(size, np.uint8))).decode()


def _setting(name: str, asked: str, pattern: str, meaning: str, default: str | None = None) -> str:
    value = os.environ.get(name, default)
    if value is None or not re.fullmatch(pattern, value):
        given = f"is missing beside GUIDANCE_PROCESSES={asked}" if value is None else f"= {value!r}"
        raise ConfigError(f"{name} {given}: allowed: {meaning}")
    return value


def _give_cpu_devices_threads() -> None:
    """Sets two threads for each virtual device of a CPU: with fewer, collectives can deadlock (jax 0.10)."""
    found = re.search(r"--xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    if found and "jax" not in sys.modules:
        os.environ.setdefault("PJRT_NPROC", str(2 * int(found[1])))

"""What a person sees while a job runs, how they stop it, and the metrics that it leaves line by line."""

import contextlib
import json
import math
import os
import pathlib
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from experiments.runtime import launch, records

SHOW_AFTER = 2.0  # seconds; what is shorter shows nothing
LINE_EVERY = 10.0  # seconds between lines where stderr is not a terminal

_stop_signal: int | None = None


class Stopped(Exception):
    """Raised by a job after it has saved, because `stop_requested`; `main` returns `exit_code`."""

    def __init__(self):
        super().__init__()
        self.exit_code = 128 + (_stop_signal or signal.SIGTERM)


class Diverged(Exception):
    """Raised by a job whose loss is not finite any more, after it has saved what it had; the message is one line."""


@contextmanager
def listening() -> Iterator[None]:
    """As long as it lasts SIGTERM and the first Ctrl-C ask the job to save and stop; a second one does what it did
    before, which for a command is to end it at once. Afterwards no request and no handler is left.

    Several processes must stop at the same update: there SIGTERM stays with jax, which lets them agree, Ctrl-C ends
    the process at once, and processes but the first show nothing. Signals reach the main thread only: in another one
    there is nothing to listen to.
    """
    if launch.several():
        with contextlib.nullcontext() if launch.primary() else _hushed():
            yield
        return
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _stop_signal
    requested, _stop_signal = _stop_signal, None
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGINT)}

    def request(number, frame):
        del frame
        global _stop_signal
        _stop_signal = number
        signal.signal(number, before[number])
        os.write(2, b"\nstopping after the next save; once more to stop at once\n")  # print may be in use

    try:
        for number in before:
            signal.signal(number, request)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop_signal = requested


def stop_requested() -> bool:
    """Whether the process was asked to stop. Jobs poll it between updates, save, and raise `Stopped`."""
    return launch.stop_agreed() if launch.several() else _stop_signal is not None


@contextmanager
def short_warnings() -> Iterator[None]:
    """Warnings without the place in the code that gave them, as long as it lasts."""
    usual = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _hushed() -> Iterator[None]:
    global SHOW_AFTER
    shown, SHOW_AFTER = SHOW_AFTER, 1e9
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        SHOW_AFTER = shown


def track(items: Iterable, description: str, total: int | None = None, start: int = 0) -> Iterator:
    """Yields the items; what takes longer than 2 s shows a bar on stderr, or a line every 10 s without a terminal.

    `start` of the `total` items were done before (a resumed run).
    """
    total = len(items) + start if total is None and hasattr(items, "__len__") else total
    with counting(description, total, start) as shown:
        for item in items:
            yield item
            shown.advance()


def counting(description: str, total: int | None, start: int = 0):
    """A context manager whose `advance()` moves the bar or the lines of `track`, for work that is not one loop."""
    return (_Bar if sys.stderr.isatty() else _Lines)(description, total, start)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Around one call that cannot report its progress (a compilation): says so once it has taken more than 2 s."""
    began = time.monotonic()
    said = threading.Event()

    def say():
        said.set()
        print(f"{description} ...", file=sys.stderr, flush=True)

    timer = threading.Timer(SHOW_AFTER, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if said.is_set():
            print(f"{description}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


class _Bar:
    """On a terminal: a bar that appears late and leaves nothing behind."""

    def __init__(self, description: str, total: int | None, start: int):
        self.bar = tqdm(
            desc=description, total=total, initial=start, delay=SHOW_AFTER, leave=False, dynamic_ncols=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def advance(self):
        self.bar.update()


class _Lines:
    """In a log file: the same as lines, one now and then."""

    def __init__(self, description: str, total: int | None, start: int):
        self.description, self.total, self.start, self.done = description, total, start, start
        self.began = time.monotonic()
        self.due = self.began + SHOW_AFTER

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def advance(self):
        self.done += 1
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + LINE_EVERY
        elapsed = now - self.began
        line = f"{self.description}: {self.done}"
        if self.total:
            left = elapsed * (self.total - self.done) / (self.done - self.start)
            line += f" of {self.total}, {elapsed:.0f} s, about {left:.0f} s left"
        else:
            line += f", {elapsed:.0f} s"
        print(line, file=sys.stderr, flush=True)


class Metrics:
    """The rows of one phase in metrics.jsonl, a file that the phases of a run share and append to in turn.

    Opening a phase at `step` drops its rows after that step, and a line cut short by a kill: resumed and uninterrupted
    runs leave the same bytes. Hence rows carry no times of day and no durations. Each row is flushed as it is written,
    so it is in the file before any checkpoint of a later step.
    """

    def __init__(self, path: pathlib.Path, phase: str, step: int):
        self.path, self.phase = pathlib.Path(path if launch.primary() else os.devnull), phase
        self._keep_until(step)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by __exit__)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, step: int, **figures: Any) -> None:
        """Appends {"phase", "step", **figures}; numbers that are not finite become null."""
        row = {"phase": self.phase, "step": int(step)} | {name: _number(value) for name, value in figures.items()}
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()

    def _keep_until(self, step: int) -> None:
        if not self.path.is_file():
            return
        found = records.entries(self.path)
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line, (row, number) in zip(lines, found, strict=True) if self._keeps(row, number, step)]
        if len(kept) != len(lines):
            records.write_atomically(self.path, b"".join(kept))

    def _keeps(self, row: Any, number: int, step: int) -> bool:
        try:
            return row["phase"] != self.phase or row["step"] <= step
        except (KeyError, TypeError):
            records.told_of(self.path, number, "and nothing else is lost")
            return True


def _number(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

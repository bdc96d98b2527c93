"""Progress of a job as a person sees it, requests to stop it, and the metrics that it writes line by line."""

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from experiments.runtime import launch, ledger
from experiments.runtime.writing import write_whole
from guidance import bars

SHOW_AFTER = 2.0  # seconds; shorter work shows nothing
LINE_EVERY = 10.0  # seconds between lines where stderr is not a terminal

_stop_signal: int | None = None


class Stopped(Exception):
    """Ends a job that has saved because it was asked to stop; `main` returns `exit_code`."""

    def __init__(self):
        super().__init__()
        self.exit_code = 128 + (_stop_signal or signal.SIGTERM)


class Diverged(Exception):
    """Ends a job whose loss is no longer finite, after its last finite state is saved; the message is one line."""


@contextmanager
def listening() -> Iterator[None]:
    """Turns SIGTERM and the first Ctrl-C into a request to save and stop.

    A second signal acts as it did before, which ends a command at once. On leaving, the earlier handlers are back and
    no request is left.

    Several processes must stop at the same update. With them SIGTERM stays with jax, which lets them agree, Ctrl-C
    ends the process at once, and only the first process shows anything. Signals reach the main thread only, so this
    does nothing in any other thread.
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
    """Returns whether the process was asked to stop. Jobs poll it between updates, save, and raise `Stopped`."""
    return launch.stop_agreed() if launch.several() else _stop_signal is not None


@contextmanager
def short_warnings() -> Iterator[None]:
    """Prints warnings without the place in the code that gave them."""
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


def say(text: str) -> None:
    """Prints a line on standard output at once, and nothing in processes but the first."""
    print(text, flush=True)


def track(items: Iterable, description: str, total: int | None = None, start: int = 0) -> Iterator:
    """Yields the items and shows how many are done, as `counting` does.

    total: their number, counting the `start` items that a resumed run has done before. None: that of `len`.
    """
    total = len(items) + start if total is None and hasattr(items, "__len__") else total
    with counting(description, total, start) as shown:
        for item in items:
            yield item
            shown.advance()


def counting(description: str, total: int | None, start: int = 0):
    """Returns a context manager whose `advance()` counts an item as done, for work that is not one loop.

    Work that takes longer than 2 s shows a bar on stderr or, where that is no terminal, a line every 10 s. The time
    left is estimated from the second item on, since the first one is often compiled.
    """
    return (_Bar if sys.stderr.isatty() else _Lines)(description, total, start)


@contextmanager
def waiting(description: str) -> Iterator[None]:
    """Says what a call is doing that takes longer than 2 s and cannot report progress, and in the end its seconds."""
    began, shown = time.monotonic(), threading.Event()

    def show():
        shown.set()
        _note(f"{description} ...")

    timer = _after_a_while(show)
    try:
        yield
    finally:
        timer.cancel()
        if shown.is_set():
            _note(f"{description}: {time.monotonic() - began:.0f} s")


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _after_a_while(action: Callable[[], Any]) -> threading.Timer:
    """Returns a started timer that calls `action` after SHOW_AFTER seconds, unless it is cancelled."""
    timer = threading.Timer(SHOW_AFTER, action)
    timer.daemon = True
    timer.start()
    return timer


class _Bar:
    """Draws a bar on a terminal. The bar appears late and is removed at the end."""

    def __init__(self, description: str, total: int | None, start: int):
        self.bar = tqdm(
            desc=description, total=total, initial=start, delay=SHOW_AFTER, leave=False, dynamic_ncols=True
        )
        self.start = start

    def __enter__(self):
        self.timer = _after_a_while(self.bar.refresh)
        return self

    def __exit__(self, *exception):
        self.timer.cancel()
        self.bar.close()

    def advance(self):
        bars.count_compiled(self.bar) if self.bar.n == self.start else self.bar.update()


class _Lines:
    """Prints a line now and then, for files and pipes."""

    def __init__(self, description: str, total: int | None, start: int):
        self.description, self.total, self.start, self.done = description, total, start, start

    def __enter__(self):
        self.began = time.monotonic()
        self.first_done, self.due = self.began, self.began + SHOW_AFTER
        self.timer = _after_a_while(self._show)
        return self

    def __exit__(self, *exception):
        self.timer.cancel()

    def advance(self):
        self.timer.cancel()
        self.done += 1
        now = time.monotonic()
        if self.done == self.start + 1:
            self.first_done = now
        if now >= self.due:
            self._show(now)

    def _show(self, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        self.due = now + LINE_EVERY
        line = f"{self.description}: {self.done}" + (f" of {self.total}" if self.total else "")
        line += f", {now - self.began:.0f} s"
        measured = self.done - self.start - 1
        if self.total and measured > 0:
            left = (now - self.first_done) * (self.total - self.done) / measured
            line += f", about {left:.0f} s left"
        _note(line)


class Metrics:
    """Writes the rows of one phase to metrics.jsonl, to which the phases of a run append in turn.

    Opening a phase at `step` drops its rows after that step, and a line that a kill cut short. Rows carry no times of
    day and no durations. So a resumed run leaves the same bytes as an uninterrupted one. Each row is flushed when it
    is written, and therefore is in the file before any checkpoint of a later step.
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
        """Appends the row {"phase", "step", **figures}. Numbers that are not finite become null."""
        row = {"phase": self.phase, "step": int(step)} | {name: _number(value) for name, value in figures.items()}
        self.file.write(json.dumps(row, allow_nan=False) + "\n")
        self.file.flush()

    def _keep_until(self, step: int) -> None:
        if not self.path.is_file():
            return
        found = ledger.entries(self.path)
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line, (row, number) in zip(lines, found, strict=True) if self._keeps(row, number, step)]
        if len(kept) != len(lines):
            write_whole(self.path, b"".join(kept))

    def _keeps(self, row: Any, number: int, step: int) -> bool:
        try:
            return row["phase"] != self.phase or row["step"] <= step
        except (KeyError, TypeError):
            ledger.warn_of(self.path, number, "and nothing else is lost")
            return True


def _number(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value

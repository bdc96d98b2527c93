"""Processes that do not import JAX anew: each is forked from one that has imported it and has computed nothing."""

import contextlib
import multiprocessing
import os
import sys

from tests.conftest import REPOSITORY

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.conftest", "optax", "experiments.runtime.checkpoints"])


def _run(code, arguments, *pipes):
    for stream, pipe in enumerate(pipes, start=1):
        os.dup2(pipe.fileno(), stream)
    sys.argv = ["forked", *arguments]
    exec(compile(code, "forked", "exec"), {"__name__": "__main__"})


class Forked:
    """A process that runs `code` with these arguments; what `subprocess.Popen` does with pipes and text."""

    def __init__(self, code: str, *arguments):
        ours, theirs = zip(*(_CONTEXT.Pipe(duplex=False) for _ in range(2)), strict=True)
        self._process = _CONTEXT.Process(target=_run, args=(code, [*map(str, arguments)], *theirs), daemon=True)
        with contextlib.chdir(REPOSITORY):  # where the process to fork from starts with the first one
            self._process.start()
        for pipe in theirs:
            pipe.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in ours)

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Returns the rest of stdout and of stderr, which must be short, once the process has ended."""
        self._process.join(timeout)
        assert self.returncode is not None, "it did not end in time"
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

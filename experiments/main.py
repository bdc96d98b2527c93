"""The command line: config -> checks -> job.

    python -m experiments.main --config=configs/mixture.py --workdir=runs/mixture [--config.learn.iterations=500 ...]
    python -m experiments.main --config=configs/mixture.py --help
    python -m experiments.main --list

--mesh=data:N,model:N,fsdp lays out devices; docs/pods.md has the commands for several hosts. The same command resumes
a run that was stopped. Exit codes: 0 done, 1 a full disk, foreign checkpoint or diverged loss, 2 a command or config
that cannot work (one line on stderr, before anything heavy is imported), 143 or 130 stopped and saved.
"""

import errno
import os
import pathlib
import sys
import warnings
from collections.abc import Callable

from experiments import launch, progress, records
from experiments.config import ConfigError, parse, usage


def main(arguments: list[str], ready: Callable[[], None] = lambda: None) -> int:
    """Runs what the command line asks for and returns the exit code. `ready` is called before the job, once processes
    have found each other and devices are laid out."""
    try:
        if {"-h", "--help"} & set(arguments):
            print(usage(arguments))
            return 0
        if "--list" in arguments:
            from experiments import catalogue  # imports the library, which no other early exit needs

            print(catalogue.listing())
            return 0
        request = parse(arguments)
        launch.start()
        locks = []
        launch.first(lambda: locks.append(records.claim(request.workdir, request.config)))
    except (ConfigError, launch.Elsewhere) as error:
        return _fail(error, 2)
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    progress.listen_for_stop()
    try:
        return _run(*request, ready)
    finally:
        for lock in locks:
            os.close(lock)


def _run(config, workdir: pathlib.Path, layout, ready) -> int:
    from experiments import checkpoints, jobs, mesh  # heavy: only now that the config is known to be sound

    try:
        mesh.use(**layout)
        ready()
        jobs.run(config, workdir)
    except ConfigError as error:
        records.release(workdir)
        return _fail(error, 2)
    except progress.Stopped as stopped:
        print("stopped and saved; the same command resumes", file=sys.stderr)
        return stopped.exit_code
    except (checkpoints.CheckpointError, progress.Diverged, launch.Elsewhere) as error:
        return _fail(error, 1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return _fail(f"{error.strerror}: {error.filename or workdir}; make room, then the same command resumes", 1)
    return 0


def _fail(error, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    launch.keep_freed_memory()  # of the whole process: not for those who call main from theirs
    sys.exit(main(sys.argv[1:]))

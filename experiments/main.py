"""Runs a job from the command line.

    python -m experiments.main --config=configs/mixture.py --workdir=runs/mixture [--config.learn.iterations=500 ...]
    python -m experiments.main --config=configs/mixture.py --help
    python -m experiments.main --list

The first line runs a job, the second lists the fields of its config, the third lists what configs can name. The same
command resumes a run that was stopped. --mesh=data:N,model:N,fsdp lays out devices; docs/pods.md has the commands for
several hosts. Exit codes: 0 done; 1 a failing disk, a foreign checkpoint or a diverged loss; 2 a command or config
that cannot work, as one line on stderr says before anything heavy is imported; 143 or 130 stopped and saved.
"""

import errno
import sys
from collections.abc import Callable

from experiments import config, problems
from experiments.config import ConfigError
from experiments.leaderboard import fields as leaderboard
from experiments.runtime import launch, progress, run_folder

FORMS = problems.FORMS | {"leaderboard": leaderboard.LEADERBOARD}
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def parse(arguments: list[str]) -> config.Request:
    """Returns the config, folder and devices that a command line asks for. Raises ConfigError."""
    return config.parse(arguments, FORMS)


def load(source: str, overrides: dict[str, str] | None = None):
    """Returns the checked config of "FILE.py[:PRESET]", with overrides by dotted name. Raises ConfigError."""
    return config.load(source, FORMS, overrides)


def main(arguments: list[str], ready: Callable[[], None] = lambda: None) -> int:
    """Runs the job of a command line and returns the exit code. Calls `ready` once the devices are laid out.

    It leaves nothing behind in a program that calls it: signals, output, warnings and the layout of devices are
    restored.
    """
    try:
        if {"-h", "--help"} & set(arguments):
            print(config.usage(arguments, FORMS))
            return 0
        if "--list" in arguments:
            from experiments.config import catalogue  # reads the whole library, which no other early exit needs

            print(catalogue.listing())
            return 0
        request = parse(arguments)
        with (
            launch.joined(),
            run_folder.claimed(request.workdir, request.config, FORMS[request.config.problem.name].fields) as claim,
            progress.short_warnings(),
            progress.listening(),
        ):
            return _run(claim, request.mesh, ready)
    except (ConfigError, launch.Elsewhere) as error:
        return _fail(error, 2)
    except OSError as error:
        if error.errno not in FULL and error.filename is None:
            raise
        path = error.filename2 or error.filename or request.workdir  # filename2: what a file was to be renamed to
        remedy = "make room, then" if error.errno in FULL else "once that is mended,"
        return _fail(f"{error.strerror}: {path}; {remedy} the same command resumes", 1)


def _run(claim: run_folder.Claim, layout, ready) -> int:
    progress.say(f"{claim.config.problem.name}: importing JAX, building the problem")
    if claim.config.job == "leaderboard":  # heavy, both: only now that the config is known to be sound
        from experiments.leaderboard.board import run
    else:
        from experiments.jobs import run
    from experiments.runtime import checkpoints, mesh

    try:
        with mesh.laid_out(**layout):
            ready()
            run(claim.config, claim.workdir)
    except ConfigError as error:
        return _fail(claim.given_up(error, "refused"), 2)
    except progress.Stopped as stopped:
        print("stopped and saved; the same command resumes", file=sys.stderr)
        return stopped.exit_code
    except progress.Diverged as error:
        return _fail(claim.given_up(error, "diverged"), 1)
    except (checkpoints.CheckpointError, launch.Elsewhere) as error:
        return _fail(error, 1)
    return 0


def _fail(error, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(launch.command(main))

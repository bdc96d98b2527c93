"""Samples for `gen`: the job `sample` of experiments.main, whose images are then measured like any others."""

import contextlib
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from experiments import config, main
from experiments.fid import BadInput
from experiments.runtime import launch


class Ended(Exception):
    """The job did not end well, and has said why; the argument is its exit code."""


def command(options, rest: list[str]) -> list[str]:
    """The job's command line. `rest`: what `gen` itself does not know, --config.NAME=VALUE."""
    given = {"config": options.config, "workdir": options.workdir, "mesh": options.mesh}
    own = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*own, *rest, "--config.job=sample"]


def folder(arguments: list[str]) -> pathlib.Path:
    """Where the job will leave its samples. Raises BadInput for a command that cannot work or asks for no npz."""
    try:
        request = main.parse(arguments)
    except config.ConfigError as error:
        raise BadInput(str(error)) from None
    if "npz" not in request.config.sample.output:
        raise BadInput(f"sample.output = {request.config.sample.output}: expected npz among them")
    return request.workdir / request.config.sample.into


@contextlib.contextmanager
def on_its_devices(arguments: list[str]) -> Iterator[None]:
    """The processes and the devices of the job, for as long as what it sampled is measured. Raises BadInput."""
    try:
        request = main.parse(arguments)
        with launch.joined():
            from experiments.runtime import mesh  # imports jax, which processes must not use before they have joined

            with mesh.laid_out(**request.mesh):
                yield
    except config.ConfigError as error:
        raise BadInput(str(error)) from None


def run(arguments: list[str], ready: Callable[[], Any]) -> Any:
    """Samples what is not there yet, and returns what `ready` does: it is called first, on the devices of the job.

    What the job prints goes to stderr. Raises Ended.
    """
    made = []

    def begin():
        try:
            made.append(ready())
        except BadInput as error:  # the job's own kind of error, which leaves no folder claimed
            raise config.ConfigError(str(error)) from None

    with contextlib.redirect_stdout(sys.stderr):
        code = main.main(arguments, begin)
    if code:
        raise Ended(code)
    return made[0]


def settings(samples: pathlib.Path) -> dict:
    """What the samples follow from, and the network evaluations that each took."""
    report = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
    return {name: report[name] for name in ("nfe", "settings")}

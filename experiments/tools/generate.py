"""Runs the job `sample` of experiments.main for the command `gen` of experiments.tools.fid."""

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
    """The job failed and has printed why; the argument is its exit code."""


def command(options, rest: list[str]) -> list[str]:
    """Returns the job's arguments. rest: the arguments that `gen` itself does not know, --config.NAME=VALUE."""
    given = {"config": options.config, "workdir": options.workdir, "mesh": options.mesh}
    known = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return [*known, *rest, "--config.job=sample"]


def folder(arguments: list[str]) -> pathlib.Path:
    """Returns the folder of the job's samples. Raises BadInput for wrong arguments, and if no npz will be written."""
    try:
        request = main.parse(arguments)
    except config.ConfigError as error:
        raise BadInput(str(error)) from None
    if "npz" not in request.config.sample.output:
        raise BadInput(f"sample.output = {request.config.sample.output}: expected npz among them")
    return request.workdir / request.config.sample.into


@contextlib.contextmanager
def on_its_devices(arguments: list[str]) -> Iterator[None]:
    """Uses the processes and devices of the job inside the context, to measure its samples. Raises BadInput."""
    try:
        request = main.parse(arguments)
        with launch.joined():
            from experiments.runtime import mesh  # imports jax, which processes must not use before they have joined

            with mesh.laid_out(**request.mesh):
                yield
    except config.ConfigError as error:
        raise BadInput(str(error)) from None


def run(arguments: list[str], ready: Callable[[], Any]) -> Any:
    """Draws the samples that are missing, and returns the value of `ready()`, which is called first.

    `ready` runs on the devices of the job. The job prints to stderr. Raises Ended if the job fails.
    """
    made = []

    def begin():
        try:
            made.append(ready())
        except BadInput as error:  # after a ConfigError the job does not claim its folder
            raise config.ConfigError(str(error)) from None

    with contextlib.redirect_stdout(sys.stderr):
        code = main.main(arguments, begin)
    if code:
        raise Ended(code)
    return made[0]


def settings(samples: pathlib.Path) -> dict:
    """Returns the settings that determine the samples, and the network evaluations that each sample took."""
    report = json.loads((samples / "samples.json").read_text(encoding="utf-8"))
    return {name: report[name] for name in ("nfe", "settings")}

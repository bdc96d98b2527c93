"""Reads the command line, and writes the text of --help. Imports nothing heavy."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.config.loading import Config, ConfigError, Forms, load, read, shown, stored
from experiments.config.values import did_you_mean

USAGE = (
    "usage: python -m experiments.main --config=FILE.py[:PRESET] --workdir=FOLDER "
    "[--mesh=data:N,model:N,fsdp] [--config.GROUP.FIELD=VALUE ...]; a FOLDER with a run needs no --config: its "
    "config.json is used, and job=sample uses it always"
)
FLAGS = ("config", "workdir", "mesh")


class Request(NamedTuple):
    """A command line that has been read and checked."""

    config: Config  # complete, checked, locked
    workdir: pathlib.Path
    mesh: Mapping[str, Any]  # for experiments.runtime.mesh; not in the config, as a run may move to other devices


def parse(arguments: list[str], forms: Forms) -> Request:
    """Returns the request of a command line, which is given without the program's name. Raises ConfigError."""
    flags = _flags(arguments)
    config, workdir = (flags.get(name, "") for name in ("config", "workdir"))
    if not (config or stored(workdir)):
        raise ConfigError(f"--config is missing; {USAGE}")
    if not workdir:
        raise ConfigError(f"--workdir is missing; {USAGE}")
    overrides = {name.removeprefix("config."): value for name, value in flags.items() if name.startswith("config.")}
    return Request(load(config, forms, overrides, workdir), pathlib.Path(workdir), _mesh(flags.get("mesh", "")))


def usage(arguments: list[str], forms: Forms) -> str:
    """Returns the text of --help: every field of the chosen config with its value, its meaning and what is allowed."""
    flags = _flags([argument for argument in arguments if argument not in ("-h", "--help")])
    source, workdir = flags.get("config", ""), flags.get("workdir", "")
    if not (source or stored(workdir)):
        return f"{USAGE}\nwith a --config, --help lists its fields; configs: configs/*.py"
    values, fields, presets = read(source, forms, workdir)
    lines = [USAGE, f"presets: {presets}", f"fields of {source or workdir} with their values:"]
    for name, field in fields.items():
        lines += [f"  --config.{name}={shown(values[name])}", f"      {field.meaning}; allowed: {field.kind.allowed}"]
    return "\n".join(lines)


def _flags(arguments: list[str]) -> dict[str, str]:
    """Returns {name: value} of --name=value and --name value. If a name comes twice, the last value counts."""
    flags, rest = {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(f"{argument!r} is not text in UTF-8; {USAGE}")
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise ConfigError(f"{argument!r} is not a flag; {USAGE}")
        if name not in FLAGS and not name.startswith("config."):
            raise ConfigError(
                f"--{name}: no such flag{did_you_mean(name, (*FLAGS, 'help', 'list'), prefix='--')}; {USAGE}"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name}=VALUE")
            value = rest.pop(0)
        flags[name] = value
    return flags


def _mesh(text: str) -> dict[str, Any]:
    """Returns {"data": 4, "model": 2, "fsdp": True} for "data:4,model:2,fsdp". Each of the three parts is optional."""
    chosen: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        found = re.fullmatch(r"(data|model):(0*[1-9][0-9]*)|fsdp", word)
        if not found:
            raise ConfigError(f"--mesh={text}: {word}: allowed: data:N, model:N, fsdp, separated by commas")
        chosen |= {found[1]: int(found[2])} if found[1] else {"fsdp": True}
    return chosen

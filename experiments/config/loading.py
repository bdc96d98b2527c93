"""From a config file, or the config.json of a folder, to a checked, locked config. Imports nothing heavy.

Each value is checked where it enters, by the `Kind` of its field. Whatever is wrong becomes one ConfigError: one line
that names the field, and what is allowed there.
"""

import json
import os
import pathlib
import reprlib
import runpy
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from experiments.config.values import REQUIRED, Field, Form, Refused, choice, literal, nearest

Forms = Mapping[str, Form]  # what a config may hold, by the name of its problem
# fields, and groups of them, that may change between two commands on one folder; samples keep their own settings
RESUMABLE = ("job", "figures", "sample.")
A_CONFIG_FILE = "a Python file that defines get_config(preset) and PRESETS, as configs/*.py do"
SHORT = reprlib.Repr()  # shows the beginning of a list, and all of a path
SHORT.maxstring = SHORT.maxother = 4096


class ConfigError(Exception):
    """The command line or the config file cannot be used; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Config(config_dict.ConfigDict):
    """A config. Printed, it is one line for each field, as on the command line."""

    def __repr__(self) -> str:
        return "\n".join(f"--config.{name}={shown(value)}" for name, value in flat(self).items())

    __str__ = __repr__


def load(source: str, forms: Forms, overrides: Mapping[str, Any] | None = None, workdir: str | os.PathLike = ""):
    """Returns the checked, locked config of "FILE.py[:PRESET]", with overrides by dotted name.

    Where `workdir` has a run, its config stands in for an empty `source`; and for job sample it stands in for whatever
    neither an override nor the preset sets, because samples are of that run. Raises ConfigError.
    """
    values, fields, _ = read(source, forms, workdir)
    chosen = _checked(overrides or {}, fields, "")
    if source and (values | chosen)["job"] == "sample" and stored(workdir):
        values = _of_the_run(source, forms, workdir, chosen)
    values |= chosen
    config = nested(values)
    missing = [(n, f.kind.allowed) for n, f in fields.items() if f.used(config) and not f.kind.exists(values[n])]
    broken = [(n, allowed) for n, allowed, holds in forms[values["problem.name"]].conditions if not holds(config)]
    if missing or broken:
        raise ConfigError(
            "; ".join(f"{n} = {_word(values[n])}: allowed: {allowed}" for n, allowed in missing + broken)
        )
    return config.lock()


def read(source: str, forms: Forms, workdir: str | os.PathLike) -> tuple[dict[str, Any], Mapping[str, Field], str]:
    """Returns (values, fields, presets) of a config file or, without one, of the run in a folder.

    Values and fields are by dotted name; the names of the presets are a text. Raises ConfigError.
    """
    if source:
        path, values, presets = _of_file(source)
    else:
        path, presets = os.path.join(workdir, "config.json"), "those of its config file"
        values = stored(workdir)
    problem = values.get("problem.name")
    if not isinstance(problem, str) or problem not in forms:
        raise ConfigError(f"{path}: problem.name = {_word(problem)}: allowed: {' or '.join(forms)}")
    another = choice(problem, why=" (another problem has its own config file)")
    fields = {"problem.name": Field(another, "the problem; each config file has its own"), **forms[problem].fields}
    values = {name: field.default for name, field in fields.items()} | values
    for name in [name for name, value in values.items() if value is REQUIRED]:
        raise ConfigError(f"{path}: {name} is missing; allowed: {fields[name].kind.allowed}")
    if not source:  # what this version does not know is refused where the folder is claimed
        values = {name: values[name] for name in fields}
    return _checked(values, fields, f"{path}: "), fields, presets


def _checked(values: Mapping[str, Any], fields: Mapping[str, Field], origin: str) -> dict[str, Any]:
    """Returns the values in their final types. Raises one ConfigError that names all that are wrong."""
    checked, refusals = {}, []
    for name, value in values.items():
        try:
            if name not in fields:
                raise Refused(_unknown(name, fields))
            checked[name] = fields[name].kind.read(value)
        except Refused as error:
            refusals.append(f"{origin}{name} = {_word(literal(value))}: {error}")
    if refusals:
        raise ConfigError("; ".join(refusals))
    return checked


def _unknown(name: str, fields: Mapping[str, Field]) -> str:
    """Returns what is wrong with a name that is no field, and the field that is closest to it."""
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        return f"a group of fields, such as {inside[0]}; --help lists them"
    group, dot, last = name.rpartition(".")
    siblings = [f.removeprefix(group + dot) for f in fields if f.rpartition(".")[0] == group]
    close = nearest(last, siblings, prefix=group + dot) if siblings else nearest(name, fields)
    return f"no such field{close or '; --help lists the fields'}"


def _of_file(source: str) -> tuple[pathlib.Path, dict[str, Any], str]:
    """Runs the config file of "FILE.py[:PRESET]"; returns its path, its values and its presets. Raises ConfigError."""
    name, found, preset = source.partition(".py:")
    path = pathlib.Path(name + ".py" if found else name)
    if not path.is_file():
        nearby = sorted(map(str, path.parent.glob("[!_]*.py"))) if path.parent.is_dir() else []
        raise ConfigError(f"--config={path}: no such file{nearest(str(path), nearby, f'; allowed: {A_CONFIG_FILE}')}")
    try:
        module = runpy.run_path(str(path)) if path.suffix == ".py" else {}
        presets = module.get("PRESETS")
        if not (callable(module.get("get_config")) and isinstance(presets, Mapping)):
            raise ConfigError(f"--config={path}: allowed: {A_CONFIG_FILE}")
        if preset and preset not in presets:
            known = f"{nearest(preset, presets)}; allowed: {', '.join(presets) or 'none'}"
            raise ConfigError(f"--config={source}: no such preset {preset!r}{known}")
        return path, flat(module["get_config"](preset)), ", ".join(presets) or "none"
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a person's file raises is theirs to read, in one line
        raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error


def _of_the_run(source: str, forms: Forms, workdir, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the run in a folder, but for what the preset of `source` sets of the group `sample`.

    Raises ConfigError for the config of another problem, and for a preset that contradicts the run.
    """
    file, found, _ = source.partition(".py")
    values, usual, run = (read(config, forms, workdir)[0] for config in (source, file + found, ""))
    preset = [name for name in values if values[name] != usual[name] and name not in chosen]
    for name in ("problem.name", *sorted(preset)):
        if not name.startswith(RESUMABLE) and values[name] != run.get(name):
            differ = f"{name} = {_word(values[name])} there, {_word(run.get(name))} in {workdir}/config.json"
            raise ConfigError(f"--config={source}: {differ}; allowed: no preset, no --config, or a new folder")
    return run | {name: values[name] for name in preset if name.startswith("sample.")} | {"job": "sample"}


def stored(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the config.json of a folder by dotted name, {} without one. Raises ConfigError if it is damaged."""
    path = os.path.join(folder, "config.json") if folder else ""
    if not os.path.exists(path):
        return {}
    try:
        return flat(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a new folder") from error


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested groups as one dict with dotted names."""
    fields = {}
    for name, value in config.items():
        group = isinstance(value, Mapping | config_dict.ConfigDict)
        fields.update(flat(value, f"{prefix}{name}.") if group else {f"{prefix}{name}": value})
    return fields


def nested(values: Mapping[str, Any]) -> Config:
    """Returns values by dotted name as nested groups."""
    config = Config({name.partition(".")[0]: {} for name in values if "." in name})
    config.update_from_flattened_dict(dict(values))
    return config


def shown(value: Any) -> str:
    """Returns a value as the command line takes it."""
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)


def _word(value: Any) -> str:
    try:
        return SHORT.repr(value)
    except ValueError:  # python does not print such integers
        return "an integer of thousands of digits"

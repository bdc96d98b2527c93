"""Reads a config file, or the config.json of a folder, and makes a checked, locked config. Imports nothing heavy.

The `Kind` of its field checks every value. Whatever is wrong becomes a ConfigError: one line that names the field and
says what is allowed.
"""

import json
import os
import pathlib
import reprlib
import runpy
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from experiments.config.values import REQUIRED, Field, Form, Refused, choice, did_you_mean, literal

Forms = Mapping[str, Form]  # what a config may hold, by the name of its problem
# fields, and a group, that two commands on one folder may set differently; a folder of samples keeps its own settings
RESUMABLE = ("job", "figures", "sample.")
A_CONFIG_FILE = "a Python file that defines get_config(preset) and PRESETS, as configs/*.py do"
SHORT = reprlib.Repr()  # shows the beginning of a list, and all of a path
SHORT.maxstring = SHORT.maxother = 4096


class ConfigError(Exception):
    """The command line or the config file cannot be used; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Config(config_dict.ConfigDict):
    """A config, or a group of its fields. Printed, it has one line for each field."""

    def __repr__(self) -> str:
        return "\n".join(f"{name} = {value!r}" for name, value in flat(self).items())

    __str__ = __repr__


def load(source: str, forms: Forms, overrides: Mapping[str, Any] | None = None, workdir: str | os.PathLike = ""):
    """Returns the checked, locked config of `source`, "FILE.py[:PRESET]", with overrides by dotted name.

    Without a source, the config is that of the run in `workdir`. With a source and job sample, it is also that of the
    run, since the run is what is sampled; of the source only what its preset sets in the group `sample` counts.
    Raises ConfigError.
    """
    values, fields, _ = read(source, forms, workdir)
    chosen = _checked(overrides or {}, fields, "")
    if source and (values | chosen)["job"] == "sample" and stored(workdir):
        values = _sampling_the_run(source, forms, workdir, chosen)
    values |= chosen
    config = nested(values)
    missing = [(n, f.kind.allowed) for n, f in fields.items() if f.used(config) and not f.kind.exists(values[n])]
    broken = [(n, allowed) for n, allowed, holds in forms[values["problem.name"]].conditions if not holds(config)]
    if missing or broken:
        raise ConfigError(
            "; ".join(f"{n} = {_brief(values[n])}: allowed: {allowed}" for n, allowed in missing + broken)
        )
    return config.lock()


def read(source: str, forms: Forms, workdir: str | os.PathLike) -> tuple[dict[str, Any], Mapping[str, Field], str]:
    """Returns the values and the fields of a config file by dotted name, and the names of its presets as a text.

    Without a source, the values are those of the run in `workdir`. Raises ConfigError.
    """
    if source:
        path, values, presets = _run_file(source)
    else:
        path, presets = os.path.join(workdir, "config.json"), "those of its config file"
        values = stored(workdir)
    problem = values.get("problem.name")
    if not isinstance(problem, str) or problem not in forms:
        raise ConfigError(f"{path}: problem.name = {_brief(problem)}: allowed: {' or '.join(forms)}")
    another = choice(problem, why=" (another problem has its own config file)")
    fields = {"problem.name": Field(another, "the problem; each config file has its own"), **forms[problem].fields}
    values = {name: field.default for name, field in fields.items()} | values
    for name in [name for name, value in values.items() if value is REQUIRED]:
        raise ConfigError(f"{path}: {name} is missing; allowed: {fields[name].kind.allowed}")
    if not source:  # what this version does not know is refused where the folder is claimed
        values = {name: values[name] for name in fields}
    return _checked(values, fields, f"{path}: "), fields, presets


def _checked(values: Mapping[str, Any], fields: Mapping[str, Field], origin: str) -> dict[str, Any]:
    """Returns the values in their final types. Raises a ConfigError that names every wrong one, after `origin`."""
    checked, refusals = {}, []
    for name, value in values.items():
        if name not in fields:
            refusals.append(f"{origin or '--config.'}{name}: {_unknown(name, fields)}")
            continue
        try:
            checked[name] = fields[name].kind.read(value)
        except Refused as error:
            refusals.append(f"{origin}{name} = {_brief(literal(value))}: {error}")
    if refusals:
        raise ConfigError("; ".join(refusals))
    return checked


def _unknown(name: str, fields: Mapping[str, Field]) -> str:
    """Returns the refusal of a name that is no field, with the field whose name is closest."""
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        return f"a group of fields, such as {inside[0]}; --help lists them"
    group, dot, last = name.rpartition(".")
    siblings = [f.removeprefix(group + dot) for f in fields if f.rpartition(".")[0] == group]
    close = did_you_mean(last, siblings, prefix=group + dot) if siblings else did_you_mean(name, fields)
    return f"no such field{close or '; --help lists the fields'}"


def _run_file(source: str) -> tuple[pathlib.Path, dict[str, Any], str]:
    """Runs the config file of "FILE.py[:PRESET]". Returns its path, its values and its presets. Raises ConfigError."""
    name, found, preset = source.partition(".py:")
    path = pathlib.Path(name + ".py" if found else name)
    if not path.is_file():
        nearby = sorted(map(str, path.parent.glob("[!_]*.py"))) if path.parent.is_dir() else []
        raise ConfigError(
            f"--config={path}: no such file{did_you_mean(str(path), nearby, f'; allowed: {A_CONFIG_FILE}')}"
        )
    try:
        module = runpy.run_path(str(path)) if path.suffix == ".py" else {}
        presets = module.get("PRESETS")
        if not (callable(module.get("get_config")) and isinstance(presets, Mapping)):
            raise ConfigError(f"--config={path}: allowed: {A_CONFIG_FILE}")
        if preset and preset not in presets:
            known = f"{did_you_mean(preset, presets)}; allowed: {', '.join(presets) or 'none'}"
            raise ConfigError(f"--config={source}: no such preset {preset!r}{known}")
        return path, flat(module["get_config"](preset)), ", ".join(presets) or "none"
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # whatever a person's file raises is theirs to read, in one line
        raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error


def _sampling_the_run(source: str, forms: Forms, workdir, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of the run in `workdir`, with what the preset of `source` sets in the group `sample`.

    Raises ConfigError if `source` has another problem than the run, or its preset another value of other fields.
    """
    file, found, _ = source.partition(".py")
    values, usual, run = (read(config, forms, workdir)[0] for config in (source, file + found, ""))
    preset = [name for name in values if values[name] != usual[name] and name not in chosen]
    for name in ("problem.name", *sorted(preset)):
        if not name.startswith(RESUMABLE) and values[name] != run.get(name):
            differ = f"{name} = {_brief(values[name])} there, {_brief(run.get(name))} in {workdir}/config.json"
            raise ConfigError(f"--config={source}: {differ}; allowed: no preset, no --config, or a new folder")
    return run | {name: values[name] for name in preset if name.startswith("sample.")} | {"job": "sample"}


def stored(folder: str | os.PathLike) -> dict[str, Any]:
    """Returns the values in the config.json of a folder by dotted name; {} if there is none. Raises ConfigError."""
    path = os.path.join(folder, "config.json") if folder else ""
    if not os.path.exists(path):
        return {}
    try:
        return flat(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a new folder") from error


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns {"group.field": value} for a config with groups."""
    fields = {}
    for name, value in config.items():
        group = isinstance(value, Mapping | config_dict.ConfigDict)
        fields.update(flat(value, f"{prefix}{name}.") if group else {f"{prefix}{name}": value})
    return fields


def nested(values: Mapping[str, Any]) -> Config:
    """Returns the config with groups for {"group.field": value}."""
    config = Config({name.partition(".")[0]: Config() for name in values if "." in name})
    config.update_from_flattened_dict(dict(values))
    return config


def shown(value: Any) -> str:
    """Returns the text of a value that the command line takes."""
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)


def _brief(value: Any) -> str:
    """Returns the value as Python code, in which long lists are cut."""
    try:
        return SHORT.repr(value)
    except ValueError:  # python does not print such integers
        return "an integer of thousands of digits"

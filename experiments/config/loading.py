"""From the command line to a checked, locked config, before anything heavy is imported.

What each field may hold is data, in `experiments.config.fields`. Whatever is wrong becomes one ConfigError with a
one-line message that names the field and what is allowed.
"""

import importlib.util
import json
import os
import pathlib
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import config_dict

from experiments.config.values import REQUIRED, Field, Form, Refused, choice, hint

USAGE = (
    "usage: python -m experiments.main --config=FILE.py[:PRESET] --workdir=FOLDER "
    "[--mesh=data:N,model:N,fsdp] [--config.GROUP.FIELD=VALUE ...]; where FOLDER has a run, its config.json stands in "
    "for --config, and for all that job=sample is not told"
)
Forms = Mapping[str, Form]  # by the names of problems
FLAGS = ("config", "workdir", "mesh")
LONGEST = 10_000  # characters of a value
# fields, and groups of them, that may change between two commands on one folder; samples keep their own settings
RESUMABLE = ("job", "figures", "sample.")
SHORT = reprlib.Repr()  # of a list its beginning, of a path all
SHORT.maxstring = SHORT.maxother = 4096


class ConfigError(Exception):
    """The command line or the config file cannot be used; the message is one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Request(NamedTuple):
    """What the command line asks for."""

    config: config_dict.ConfigDict  # complete, checked, locked
    workdir: pathlib.Path
    mesh: Mapping[
        str, Any
    ]  # the arguments of experiments.runtime.mesh.use; not part of the config: a run may change machines


def parse(arguments: list[str], forms: Forms) -> Request:
    """The checked request of a command line (without the program's name). Raises ConfigError."""
    flags = _flags(arguments)
    known = _known(flags)
    for name in ("config", "workdir"):
        if not flags.get(name) and not (name == "config" and known.values):
            raise ConfigError(f"--{name} is missing; {USAGE}")
    overrides = {name.removeprefix("config."): value for name, value in flags.items() if name.startswith("config.")}
    config = load(flags.get("config", ""), forms, overrides, known)
    return Request(config, pathlib.Path(flags["workdir"]), _mesh(flags.get("mesh", "")))


class Known(NamedTuple):
    """The config of the run that a folder has, by dotted name; empty where it has none."""

    folder: str = ""
    values: Mapping[str, Any] = {}


NEW = Known()


def stored(folder: str | os.PathLike) -> dict[str, Any]:
    """The config.json of a folder by dotted name, {} without one. Raises ConfigError for one that cannot be read."""
    path = os.path.join(folder, "config.json")
    if not os.path.exists(path):
        return {}
    try:
        return flat(json.loads(pathlib.Path(path).read_text(encoding="utf-8")))
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); allowed: a new folder") from error


def _known(flags: Mapping[str, str]) -> Known:
    folder = flags.get("workdir", "")
    return Known(folder, stored(folder) if folder else {})


def load(
    source: str, forms: Forms, overrides: Mapping[str, str] | None = None, known: Known = NEW
) -> config_dict.ConfigDict:
    """The config of "FILE.py[:PRESET]" with textual overrides by dotted name, checked, locked.

    Where the folder has a run, its config stands in for an empty `source`, and for job sample for whatever neither an
    override nor the preset says: samples are of that run. Raises ConfigError.
    """
    values, fields = _defaults(source, forms) if source else _of_folder(known, forms)
    if source and known.values and str((overrides or {}).get("job", values["job"])).strip("'\"") == "sample":
        values = _of_this_run(source, forms, values, fields, overrides or {}, known)
    for name, raw in (overrides or {}).items():
        if name not in fields:
            raise ConfigError(f"--config.{name}: {_unknown(name, fields)}")
        if name == "problem.name" and raw != values[name]:
            raise ConfigError(
                f"problem.name = {_word(raw)}: allowed: {values[name]} (another problem has its own config file)"
            )
        values[name] = _parsed(name, fields[name], raw)
    config = nested(_checked(values, fields))
    failures = [c for c in forms[config.problem.name].constraints if not c.holds(config)]
    if failures:
        raise ConfigError("; ".join(_refusal(c.field, flat(config)[c.field], c.allowed) for c in failures))
    return config.lock()


def _parsed(name: str, field: Field, raw: str) -> Any:
    """What `field.kind.read` takes, from the text of a command line; a text that cannot be taken apart stays text."""
    if len(raw) > LONGEST:
        raise ConfigError(f"{name}: a text of {len(raw)} characters; allowed: {field.kind.allowed}")
    try:
        return field.kind.parse(raw)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError):
        return raw


def usage(arguments: list[str], forms: Forms) -> str:
    """The text of --help: the fields of the chosen config with their defaults, what is allowed and what they mean."""
    flags = _flags([a for a in arguments if a not in ("-h", "--help")])
    source, known = flags.get("config"), _known(flags)
    if not source and not known.values:
        return f"{USAGE}\nwith a --config, --help lists its fields; configs: configs/*.py"
    values, fields = _defaults(source, forms) if source else _of_folder(known, forms)
    presets = ", ".join(_module(_split(source)[0]).PRESETS) or "none" if source else "those of its config file"
    source = source or known.folder
    lines = [
        f"  --config.{name}={_shown(values[name])}\n      {field.meaning}; allowed: {field.kind.allowed}"
        for name, field in fields.items()
    ]
    return "\n".join([USAGE, f"presets: {presets}", f"fields of {source} with their values:", *lines])


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested groups as one dict with dotted names."""
    fields = {}
    for name, value in config.items():
        group = isinstance(value, Mapping | config_dict.ConfigDict)
        fields.update(flat(value, f"{prefix}{name}.") if group else {f"{prefix}{name}": value})
    return fields


def _flags(arguments: list[str]) -> dict[str, str]:
    """--name=value and --name value; the last of equal names wins."""
    flags, rest = {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(f"{argument!r} is not text in UTF-8; {USAGE}")
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise ConfigError(f"{argument!r} is not a flag; {USAGE}")
        if name not in FLAGS and not name.startswith("config."):
            raise ConfigError(f"--{name}: no such flag{hint(name, (*FLAGS, 'help'), '--')}; {USAGE}")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"--{name} needs a value: --{name}=VALUE")
            value = rest.pop(0)
        flags[name] = value
    return flags


def _mesh(text: str) -> dict[str, Any]:
    """ "data:4,model:2,fsdp", each part optional -> {"data": 4, "model": 2, "fsdp": True}."""
    chosen: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        axis, _, length = word.partition(":")
        if word == "fsdp":
            chosen["fsdp"] = True
        elif axis in ("data", "model") and length.isdecimal() and int(length) > 0:
            chosen[axis] = int(length)
        else:
            raise ConfigError(f"--mesh={text}: {word}: allowed: data:N, model:N, fsdp, separated by commas")
    return chosen


def _split(source: str) -> tuple[pathlib.Path, str]:
    path, found, preset = source.partition(".py:")
    return pathlib.Path(path + ".py" if found else path), preset


def _module(path: pathlib.Path):
    """Runs a config file; it must define get_config(preset) and PRESETS, the known presets."""
    if not os.path.isfile(path):
        folder = path if os.path.isdir(path) else path.parent
        nearby = sorted(str(p) for p in folder.glob("[!_]*.py")) if os.path.isdir(folder) else []
        meant = "" if folder == path else hint(str(path), nearby)
        raise ConfigError(f"--config={path}: no such file{meant or (_listing(nearby) if nearby else '')}")
    if path.suffix != ".py":
        raise ConfigError(f"--config={path}: allowed: a Python file that defines get_config(preset) and PRESETS")
    spec = importlib.util.spec_from_file_location(f"configs.{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a person's file raises is theirs to read, in one line
        raise ConfigError(f"--config={path}: {type(error).__name__}: {error}") from error
    if not (callable(getattr(module, "get_config", None)) and isinstance(getattr(module, "PRESETS", None), Mapping)):
        raise ConfigError(f"--config={path}: allowed: a Python file that defines get_config(preset) and PRESETS")
    return module


def _defaults(source: str, forms: Forms) -> tuple[dict[str, Any], dict[str, Field]]:
    """The values of a config file and preset, not yet checked, and the fields that they must fill exactly."""
    path, preset = _split(source)
    module = _module(path)
    if preset and preset not in module.PRESETS:
        known = ", ".join(module.PRESETS) or "none"
        raise ConfigError(
            f"--config={source}: unknown preset {preset!r}; allowed: {known}{hint(preset, module.PRESETS)}"
        )
    try:
        values = flat(module.get_config(preset))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--config={source}: {type(error).__name__}: {error}") from error
    fields = _fields(_problem_of(source, values, forms), forms)
    for field in values.keys() - fields.keys():
        raise ConfigError(f"{path}: {field}: {_unknown(field, fields)}")
    for name in [name for name in fields if name not in values]:
        if fields[name].default is REQUIRED:
            raise ConfigError(f"{path}: {name} is missing; allowed: {fields[name].kind.allowed}")
        values[name] = fields[name].default
    return values, fields


def _fields(problem: str, forms: Forms) -> dict[str, Field]:
    return {
        "problem.name": Field(choice(problem), "the problem; each config file has its own"),
        **forms[problem].fields,
    }


def _of_folder(known: Known, forms: Forms) -> tuple[dict[str, Any], dict[str, Field]]:
    """The values of the run that a folder has, and their fields; fields that are younger have their defaults."""
    path = os.path.join(known.folder, "config.json")
    fields = _fields(_problem_of(path, known.values, forms), forms)
    values = {name: known.values.get(name, field.default) for name, field in fields.items()}
    for name, value in values.items():
        if value is REQUIRED:
            raise ConfigError(f"{path}: {name} is missing; allowed: {fields[name].kind.allowed}")
    return values, fields


def _of_this_run(source: str, forms: Forms, values, fields, overrides, known: Known) -> dict[str, Any]:
    """The values of the run that is sampled, but for what the preset of `source` says of samples.

    Raises ConfigError for the config of another problem, and for a preset that contradicts the run.
    """
    path, preset = _split(source)
    usual = _defaults(str(path), forms)[0] if preset else values
    said = {name for name in fields if values[name] != usual[name]} - overrides.keys()
    mine, _ = _of_folder(known, forms)
    for name in ("problem.name", *sorted(said)):
        here, there = values[name], mine.get(name)
        if not name.startswith(RESUMABLE) and _final(fields[name], here) != _final(fields[name], there):
            held = f"{name} = {_word(here)} there, {_word(there)} in {os.path.join(known.folder, 'config.json')}"
            raise ConfigError(f"--config={source}: {held}; allowed: no preset, no --config, or a new folder")
    kept = {name: values[name] for name in said if name.startswith("sample.")}
    return mine | kept | {"job": "sample"}


def _final(field: Field, value: Any) -> Any:
    """The value in its final type, where it has one."""
    try:
        return field.kind.read(value)
    except (ValueError, TypeError, OverflowError):
        return value


def _problem_of(source: str, values: Mapping[str, Any], forms: Forms) -> str:
    problem = values.get("problem.name")
    if not isinstance(problem, str) or problem not in forms:
        raise ConfigError(f"{source}: {_refusal('problem.name', problem, ' or '.join(forms))}")
    return problem


def _checked(values: Mapping[str, Any], fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values in their final types. Raises one ConfigError that names every field that is wrong."""
    checked, refusals = {}, []
    for name, field in fields.items():
        try:
            checked[name] = field.kind.read(values[name])
        except Refused as error:
            refusals.append(f"{name} = {_word(values[name])}: {error}")
        except (ValueError, TypeError, OverflowError):
            refusals.append(_refusal(name, values[name], field.kind.allowed))
    if refusals:
        raise ConfigError("; ".join(refusals))
    return checked


def nested(values: Mapping[str, Any]) -> config_dict.ConfigDict:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *groups, last = name.split(".")
        group = nested
        for key in groups:
            group = group.setdefault(key, {})
        group[last] = value
    return config_dict.ConfigDict(nested)


def _refusal(name: str, value: Any, allowed: str) -> str:
    return f"{name} = {_word(value)}: allowed: {allowed}"


def _word(value: Any) -> str:
    try:
        return SHORT.repr(value)
    except ValueError:  # python does not print such integers
        return "an integer of thousands of digits"


def _unknown(name: str, fields: Mapping[str, Field]) -> str:
    inside = [field for field in fields if field.startswith(f"{name}.")]
    if inside:
        return f"is a group, not a field; its fields: {', '.join(inside)}"
    group, _, last = name.rpartition(".")
    siblings = [field.rpartition(".")[2] for field in fields if field.rpartition(".")[0] == group]
    if not siblings:
        return f"no such field{hint(name, fields) or _listing(fields)}"
    prefix = f"{group}." if group else ""
    return f"no such field{hint(last, siblings, prefix) or _listing(prefix + sibling for sibling in siblings)}"


def _listing(known) -> str:
    return f"; allowed: {', '.join(known)}"


def _shown(value: Any) -> str:
    return repr(value).replace(" ", "") if isinstance(value, tuple) else str(value)

"""Files of learned weights: reads and writes them, and has the commands that list and plot them.

    python -m experiments.files.weight_files list runs/mixture/weights [FILE ...]
    python -m experiments.files.weight_files plot runs/mixture/weights/rollout@10_seed_0.safetensors omega.png

A file is a small .safetensors. Its arrays are the params of the guidance network. Its metadata is JSON under the key
`learned_weight`, with everything that is needed to use the weight again: see `About`. It has only one key because
safetensors does not sort keys, and equal weights should give equal files. Exit codes: 0 done, 2 a file or command that
cannot work, with one line on stderr for each file.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.files import names as classes
from experiments.files import tensors
from experiments.files.opening import one_line
from experiments.runtime import drawing, launch
from guidance import schedules, weights
from guidance.conditions import are_labels, flat_features, size
from guidance.types import Array, Cond, Schedule, Weight
from guidance.words import listed

KEY = "learned_weight"
VERSION = 4
# We also read earlier versions. Files before version 3 have no interval. Files before version 4 have no class names, a
# label as null, and only the name of the rule, which meant these calls.
NAMED = {
    "angle_domain": "angle_domain(cap=1.0471975511965976)",
    "apg": "apg(eta=0, cap=2.5, beta=-0.5)",
    "cfg_rescale": "cfg_rescale(phi=0.7)",
    "cfg_zero_star": "cfg_zero_star(steps=1)",
    "frequency_decoupled": "frequency_decoupled(factors=(0.25, 1), parallel=1)",
    "gap_normalised": "gap_normalised(gamma=0.5)",
    "magnitude_aware": "magnitude_aware(sensitivity=2)",
    "power_law": "power_law(exponent=0.9)",
}
CONVENTION = "omega = 0 is unguided: guided = D_c + omega (D_c - D_u); scale = 1 + omega"


class About(NamedTuple):
    """The metadata of a file, which describes its weight."""

    problem: str  # the problem that the weight was learned on
    objective: str
    rule: str  # the call of the rule used in learning, with all knobs; autoguided: CFG with a weaker denoiser
    steps: int | None  # the steps of the uniform grid used in learning; None: any grid
    schedule: str  # the name of the noise schedule
    s_min: float  # the weight clamps its times to s >= s_min, t <= t_max, t - s >= gap_min: guidance.weights.learned
    t_max: float
    gap_min: float
    interval: list[float] | None  # the weight is 0 for t outside (lo, hi]; None: no such limit
    conditions: int | list[list[float]]  # the number of class labels, or the numbers of each condition
    null: Any  # the condition of the unconditional branch: a label, or a pytree of lists and numbers
    names: list[str] | None  # the names of the classes, in the order of their labels; None: not known
    net: dict[str, Any]  # the fields of GuidanceNet
    training: dict[str, Any]  # the config of the run
    omega: str = CONVENTION
    version: int = VERSION


def write(
    path,
    weight: Weight,
    *,
    problem: str,
    objective: str,
    rule: str,
    steps: int | None,
    null: Any,
    training: Mapping[str, Any],
    names: Sequence[str] | None = None,
    conditions: Cond = None,
) -> About:
    """Writes a weight made by `guidance.weights.learned`, and returns the metadata of the file.

    conditions: the conditions that the weight was learned for, leaves [G, ...]; needed if its network reads features.
    Raises ValueError for any other weight, for a schedule without a name, and for params with NaN.
    """
    learned = getattr(weight, "func", None)
    net = getattr(learned, "net", None)
    if not isinstance(net, weights.GuidanceNet):
        raise ValueError("only weights made by guidance.weights.learned have a file")
    if net.condition == "features" and conditions is None:
        raise ValueError("a weight of features has a file only together with the conditions that it was learned for")
    known = numbers_of(conditions) if net.condition == "features" else net.num_classes
    about = About(
        problem, objective, rule, steps, schedule_name(learned.schedule), float(learned.s_min), float(learned.t_max),
        float(learned.gap_min), learned.interval and [float(t) for t in learned.interval], known, plain(null),
        names and list(names), _fields(net), json.loads(json.dumps(training)),
    )  # fmt: skip
    arrays = {name: np.asarray(a) for name, a in traverse_util.flatten_dict(weight.args[0], sep="/").items()}
    broken = [name for name, array in arrays.items() if not np.all(np.isfinite(array))]
    if broken:
        raise ValueError(f"{path} not written: {listed(broken)} hold NaN or infinity")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    tensors.write_safetensors(path, arrays, {KEY: json.dumps(about._asdict(), sort_keys=True)})
    return about


def read(path) -> tuple[Weight, About]:
    """Reads a weight, whose omegas equal those of the written weight to the bit, and the metadata of its file.

    Raises FileNotFoundError, and ValueError for a file that is damaged, that has another kind or version, or whose
    arrays do not fit its network or contain NaN.
    """
    about = read_about(path)
    arrays = tensors.read_safetensors(path)
    _check_net(path, about.net, arrays)
    try:
        net = weights.GuidanceNet(**about.net)
        zero, known = jnp.zeros(1), about.conditions
        row = jnp.zeros(1, jnp.int32) if isinstance(known, int) else jnp.zeros((1, len(known[0])))
        shapes = jax.eval_shape(net.init, jax.random.key(0), log_snr_t=zero, log_snr_s=zero, cond=row)
        schedule = schedules.by_name(about.schedule)
    except Exception as error:  # flax and jax raise many kinds of errors for senseless fields
        raise ValueError(f"{path}: what it says of its network cannot be built ({one_line(error)})") from None
    expected = {name: leaf.shape for name, leaf in traverse_util.flatten_dict(shapes, sep="/").items()}
    found = {name: array.shape for name, array in arrays.items()}
    faults = [
        f"{name} has shape {found.get(name, 'none')}, its network {expected.get(name, 'none')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    faults += [f"{name} is {a.dtype}, not floating point" for name, a in arrays.items() if a.dtype.kind != "f"]
    faults += [
        f"{name} holds NaN or infinity"
        for name, a in arrays.items()
        if a.dtype.kind == "f" and not np.isfinite(a).all()
    ]
    if faults:
        raise ValueError(f"{path}: {listed(faults, between='; ')}")
    params = traverse_util.unflatten_dict({name: jnp.asarray(array) for name, array in arrays.items()}, sep="/")
    within = about.interval and tuple(about.interval)
    return weights.learned(net, params, schedule, about.s_min, about.t_max, about.gap_min, within), about


def read_about(path) -> About:
    """Reads the metadata of a file, without its arrays. Raises the errors of `read`."""
    text = tensors.read_metadata(path).get(KEY)
    if text is None:
        raise ValueError(f"{path} is no learned weight: a .safetensors file without the key {KEY}")
    try:
        fields = json.loads(text)
        version = fields["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: what it says under {KEY} is not readable") from None
    if version not in (2, 3, VERSION):
        raise ValueError(f"{path} has version {version}; this program reads versions 2, 3 and {VERSION}")
    if version == 2:
        fields.setdefault("interval", None)
    if version < VERSION:
        fields.setdefault("names", None)
        fields["rule"] = NAMED.get(fields.get("rule"), fields.get("rule"))
    wrong = sorted(fields.keys() ^ set(About._fields)) or [
        name for name, kinds in _KINDS.items() if not isinstance(fields[name], kinds) or isinstance(fields[name], bool)
    ]
    if wrong:
        raise ValueError(f"{path}: {listed(wrong)} missing, unknown or of another type under {KEY}")
    if isinstance(fields["conditions"], list) and not _are_rows(fields["conditions"]):
        raise ValueError(f"{path}: its conditions are no rows of equally many numbers")
    names, count = fields["names"], _count(fields["conditions"])
    for name, (least, most) in _RANGES.items():
        value = count if name == "conditions" else fields[name]
        if value is not None and not least <= value <= most:
            raise ValueError(f"{path}: its {name} is {value!r}; expected {least} to {most:,}")
    if names is not None and (len(names) != count or not all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{path}: its conditions have the names [{listed(map(repr, names))}]; expected {count} of text"
        )
    if fields["interval"] is not None and not _is_interval(fields["interval"]):
        raise ValueError(f"{path}: its interval is {fields['interval']!r}; expected [lo, hi] with 0 <= lo < hi <= 1")
    if fields["omega"] != CONVENTION:
        raise ValueError(f"{path}: its convention is {fields['omega']!r}; expected {CONVENTION!r}")
    return About(**fields)


def _is_interval(value: list) -> bool:
    return len(value) == 2 and all(isinstance(t, float) for t in value) and 0 <= value[0] < value[1] <= 1


def _are_rows(value: list) -> bool:
    rows = [row for row in value if isinstance(row, list) and all(isinstance(number, int | float) for number in row)]
    return len(rows) == len(value) and len({len(row) for row in rows}) == 1


_KINDS = {
    **dict.fromkeys(("problem", "objective", "rule", "schedule", "omega"), str),
    **dict.fromkeys(("s_min", "t_max", "gap_min"), (int, float)),
    "conditions": (int, list),
    "null": (int, float, list, dict),
    "names": (list, type(None)),
    **dict.fromkeys(("net", "training"), dict),
    "steps": (int, type(None)),
    "interval": (list, type(None)),
}


_RANGES = {  # larger numbers would cost time and memory for each step and each condition
    **dict.fromkeys(("s_min", "t_max", "gap_min"), (0, 1)),
    "steps": (1, 1_000_000),
    "conditions": (0, classes.CLASSES),
}


def _check_net(path, net: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError for an absurdly large network, which could take for ever to build, or end the process.

    The depth is at most the number of arrays, since each layer has two.
    """
    for name, value in net.items():
        most = len(arrays) if name == "depth" else classes.CLASSES
        if type(value) is int and not 0 <= value <= most:
            raise ValueError(f"{path}: its network has {name} {value}; expected 0 to {most}")


def numbers_of(conditions: Cond) -> int | list[list[float]]:
    """Returns conditions, leaves [G, ...], as a file stores them: G for labels, else the numbers of each condition."""
    return size(conditions) if are_labels(conditions) else np.asarray(flat_features(conditions)).tolist()


def _learned_conditions(about: About) -> Array:
    """Returns the conditions that a weight was learned for, as its `cond`: labels [G], or features [G, d]."""
    known = about.conditions
    return jnp.arange(max(1, known)) if isinstance(known, int) else jnp.asarray(known, float)


def _count(conditions: int | list) -> int:
    return conditions if isinstance(conditions, int) else len(conditions)


def plain(null: Any) -> Any:
    """Returns a null condition as JSON stores it: a number, or lists and dicts of numbers."""
    if isinstance(null, dict):
        return {str(name): plain(entry) for name, entry in null.items()}
    if isinstance(null, tuple | list):
        return [plain(entry) for entry in null]
    return np.asarray(null).tolist()


def check_fits(
    path, about: About, schedule: Schedule, conditions: Cond, null: Any, names: tuple[str, ...] | None = None
) -> None:
    """Raises ValueError unless the weight was learned for a model with this schedule and these conditions.

    names: the names of the model's classes, in the order of their labels; compared if the file has names too.
    """
    faults = []
    if about.schedule != schedule_name(schedule):
        faults.append(f"schedule {about.schedule}, the model {schedule_name(schedule)}")
    file, model = (about.conditions, about.null), (numbers_of(conditions), plain(null))
    if about.net["condition"] == "none":
        pass
    elif file != model:
        words = "{} conditions and null label {}, the model {} and {}".format(*file, *model)
        faults.append(words if isinstance(file[0], int) else "conditions, or a null, of other numbers")
    else:
        differing = classes.difference(about.names and tuple(about.names), names)
        faults += [f"other classes, {differing}"] if differing else []
    if faults:
        raise ValueError(f"{path} was learned for another model: it has {'; '.join(faults)}")


def schedule_name(schedule: Schedule) -> str:
    """Returns the name of a schedule in `guidance.schedules.by_name`. Raises ValueError if it has none."""
    names = [name for name in schedules.SCHEDULES if schedules.by_name(name) == schedule]
    if not names:
        raise ValueError(f"a schedule without a name; known: {', '.join(schedules.SCHEDULES)}")
    return names[0]


def _fields(net: weights.GuidanceNet) -> dict[str, Any]:
    """Returns the fields of the network, without those that Flax adds."""
    return {f.name: getattr(net, f.name) for f in dataclasses.fields(net) if f.name not in ("parent", "name")}


# ---- commands


def describe(path) -> str:
    """Returns one line about a file. Raises the errors of `read`."""
    weight, about = read(path)
    count = sum(leaf.size for leaf in jax.tree.leaves(weight))
    steps = "any steps" if about.steps is None else f"{about.steps} steps"
    return (
        f"{path}: {about.objective}, {steps}, {about.schedule}, {_count(about.conditions)} conditions, "
        f"mean omega {np.mean(curves(weight, about)[2]):.3g}, {count:,} numbers, learned on {about.problem}"
    )


def curves(weight: Weight, about: About, points: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns starts t [k] and ends s [k] of steps, from noise to data, and omega [k, conditions] of each.

    A weight learned for one grid has the steps of that grid. A weight for any steps gets `points` steps, each as long
    as the smallest gap that it was trained at.
    """
    if about.steps is None:
        t = jnp.linspace(about.t_max, about.s_min + about.gap_min, points)
        s = jnp.maximum(t - about.gap_min, 0)
    else:
        grid = jnp.linspace(1, 0, about.steps + 1)
        t, s = grid[:-1], grid[1:]
    conditions = _learned_conditions(about)

    def at(t, s):
        t, s = (jnp.broadcast_to(time, len(conditions)) for time in (t, s))
        return weight(t=t, s=s, cond=conditions)

    return np.asarray(t), np.asarray(s), np.asarray(jax.vmap(at)(t, s))


def plot(path, target) -> None:
    """Draws omega over t, as `drawing.over_conditions` does, and writes its numbers beside the picture."""
    weight, about = read(path)
    t, s, omega = curves(weight, about)
    word = "class" if about.net["condition"] == "label" else "condition"
    names = about.names or [f"{word} {c}" for c in range(omega.shape[1])]
    figure, [axes] = drawing.panels(1, 5.2, 3.6)
    lines = drawing.over_conditions(axes, t, s, omega, names)
    steps = "any steps" if about.steps is None else f"{about.steps} steps"
    axes.set(title=f"{about.objective}, {steps}", ylabel="omega  (scale - 1)")
    drawing.time_axis(axes)
    drawing.legend(figure)
    drawing.Picture(figure, ("line", "t", "s", "omega"), lines).save(target)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.files.weight_files", description=__doc__.partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="one line for each file")
    listing.add_argument("paths", nargs="+", help="files, or folders that hold some")
    plotting = commands.add_parser("plot", help="omega over t")
    plotting.add_argument("file")
    plotting.add_argument("target", help="the PNG to write; its numbers go beside it, as CSV")
    options = parser.parse_args(arguments)
    code = 0
    paths = [options.file] if options.command == "plot" else _files(options.paths)
    for path in paths:
        try:
            print(describe(path))
            if options.command == "plot":
                plot(path, options.target)
                print(options.target)
        except (OSError, ValueError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            code = 2
    return code


def _files(paths: list[str]) -> list[pathlib.Path]:
    """Returns the files, and the .safetensors files in folders; a folder without any stays, and `read` refuses it."""
    found = []
    for path in map(pathlib.Path, paths):
        found += (sorted(path.rglob("*.safetensors")) if os.path.isdir(path) else []) or [path]
    return found


if __name__ == "__main__":
    sys.exit(launch.command(main))

"""Our networks against PyTorch's implementations of the same ones, at random weights.

    python -m experiments.parity                             # small networks, live (needs the extra: parity)
    python -m experiments.parity dit vae --full              # the published sizes, live: minutes and gigabytes
    python -m experiments.parity --write=tests/nets/golden   # the small ones' numbers, for tests without PyTorch

Every network has a file here with a `REFERENCE`; to add one, write such a file and name it in NAMES. Weights are
random and nowhere zero, so that every part of a network shows in its outputs; outputs include those of inner blocks,
so that an error shows where it arises.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import data

NAMES = ("dit", "inception", "unet", "vae")
TOLERANCE = 1e-5  # relative, in float32, of the small networks

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """What the other implementation was given and gave: its weights by its names; inputs and outputs by ours.

    weights: {} where they are too many to keep, and both sides draw them from a seed.
    """

    weights: Arrays
    inputs: Arrays
    outputs: Arrays


class Reference(NamedTuple):
    """small: a configuration whose numbers fit a file; full: the published ones, by name.

    theirs: configuration -> Case; imports torch when called. ours: (configuration, weights, inputs) -> outputs.
    package: what holds the other implementation, besides torch.
    """

    small: dict[str, Any]
    full: dict[str, dict[str, Any]]
    theirs: Callable[[dict[str, Any]], Case]
    ours: Callable[[dict[str, Any], Arrays, Arrays], Arrays]
    package: str = "diffusers"


def reference(name: str) -> Reference:
    """The reference called `name`, one of NAMES."""
    return importlib.import_module(f"experiments.parity.{name}").REFERENCE


def errors(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """max |ours - theirs| / max |theirs| of every output. Raises ValueError unless names and shapes agree."""
    shapes = [{name: np.shape(array) for name, array in arrays.items()} for arrays in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs differ in name or shape: {shapes[0]} and {shapes[1]}")
    return {name: float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs}


def write(path: pathlib.Path, case: Case) -> None:
    """The case as an .npz file of plain arrays."""
    np.savez_compressed(path, **{f"{part}/{k}": v for part, held in case._asdict().items() for k, v in held.items()})


def read(path: pathlib.Path) -> Case:
    """The case that `write` wrote."""
    held = data.read_npz(path)
    parts = {
        part: {k.removeprefix(f"{part}/"): v for k, v in held.items() if k.startswith(f"{part}/")}
        for part in Case._fields
    }
    return Case(**parts)

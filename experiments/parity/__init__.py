"""Compares our networks with PyTorch implementations of the same networks, at equal random weights.

    python -m experiments.parity                             # small networks (needs the extra: parity)
    python -m experiments.parity dit vae --full              # the published sizes: minutes and gigabytes
    python -m experiments.parity --write=tests/nets/golden   # writes the small cases, for tests without PyTorch

Every network has a file here with a `REFERENCE`; to add one, write such a file and name it in NAMES. No random weight
is zero, so that every part of a network changes its outputs. The outputs of inner blocks are compared too, which shows
where an error arises.
"""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from experiments import data

NAMES = ("dit", "inception", "unet", "vae")
TOLERANCE = 1e-5  # the largest relative error that a small network may have in float32

Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """One run of the PyTorch network: its weights by PyTorch's names, its inputs and outputs by our names.

    weights: {} if they are too large to store; both sides then draw them from a seed.
    """

    weights: Arrays
    inputs: Arrays
    outputs: Arrays


class Reference(NamedTuple):
    """A network and its PyTorch implementation, as functions of a configuration.

    small: a configuration whose numbers we store in a file. full: the published configurations by name. theirs:
    configuration -> Case, which imports torch. ours: (configuration, weights, inputs) -> outputs. package: the package
    of the PyTorch implementation.
    """

    small: dict[str, Any]
    full: dict[str, dict[str, Any]]
    theirs: Callable[[dict[str, Any]], Case]
    ours: Callable[[dict[str, Any], Arrays, Arrays], Arrays]
    package: str = "diffusers"


def reference(name: str) -> Reference:
    """Returns the reference called `name`, one of NAMES."""
    return importlib.import_module(f"experiments.parity.{name}").REFERENCE


def errors(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Returns max |ours - theirs| / max |theirs| of every output. Raises ValueError unless names and shapes agree."""
    shapes = [{name: np.shape(array) for name, array in arrays.items()} for arrays in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"outputs differ in name or shape: {shapes[0]} and {shapes[1]}")
    return {name: float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs}


def write(path: pathlib.Path, case: Case) -> None:
    """Writes a case as an .npz file."""
    parts = case._asdict().items()
    np.savez_compressed(path, **{f"{part}/{k}": v for part, arrays in parts for k, v in arrays.items()})


def read(path: pathlib.Path) -> Case:
    """Reads a case that `write` has written."""
    arrays = data.read_npz(path)
    parts = {
        part: {k.removeprefix(f"{part}/"): v for k, v in arrays.items() if k.startswith(f"{part}/")}
        for part in Case._fields
    }
    return Case(**parts)

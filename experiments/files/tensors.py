"""Reads and writes files of weights, which are arrays with names. No other module imports safetensors.

A missing file raises FileNotFoundError, a damaged or unsuitable one ValueError, each in one line with the path.
Nothing is unpickled.
"""

import errno
import hashlib
import os
import pathlib
import re
import sys
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors.numpy import save_file

from experiments.files import npz
from experiments.files.opening import existing, reading
from experiments.runtime import launch
from experiments.runtime.writing import replacing
from guidance.words import listed

WHOLE = "a whole .safetensors file"
# the types that numpy has, together with ml_dtypes
DTYPES = ("F16", "BF16", "F32", "F64", "BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
# prefixes that torch's parallel and compiled modules, and checkpoints, put before the names of a network's arrays
WRAPPERS = ("module", "_orig_mod", "model", "ema")
COUNTERS = ("n_averaged",)  # scalars that a wrapper adds (torch.optim.swa_utils.AveragedModel); we ignore them

TORCH = (".pt", ".pth", ".ckpt", ".bin")

Arrays = dict[str, np.ndarray]


def read_weights(path) -> Arrays:
    """Reads the arrays of a .safetensors or .npz file by their names in the network; see `unwrapped`.

    Prints the prefix that it removed from the names, if any. Raises the errors of `read_safetensors`.
    """
    path = existing(path, "weights as .safetensors or .npz")
    kind = path.suffix
    if kind in TORCH:
        raise ValueError(f"{path} is PyTorch's; python -m experiments.tools.convert makes a .safetensors file of it")
    if kind not in (".safetensors", ".npz"):
        with reading(path, "a readable file"), path.open("rb") as file:
            kind = ".npz" if file.read(2) == b"PK" else ".safetensors"  # zip archives begin with PK
    arrays, note = unwrapped(npz.read(path) if kind == ".npz" else read_safetensors(path))
    if note and launch.primary():
        print(f"{path}: {note}", file=sys.stderr)
    return arrays


def unwrapped(arrays: Arrays) -> tuple[Arrays, str]:
    """Returns the arrays without the prefixes (WRAPPERS, possibly nested) that all names share, and a note about them.

    If the names have several of these prefixes and one is `ema`, only the arrays under `ema` are returned.
    """
    wrapper, left_out = "", 0
    names = {name: name for name in arrays if name not in COUNTERS}  # without the prefix: as in the file
    while names:
        heads = {name.partition(".")[0] if "." in name else "" for name in names}
        if not heads <= set(WRAPPERS) or len(heads) > 1 and "ema" not in heads:
            break
        head = "ema" if "ema" in heads else heads.pop()
        inner = {name.removeprefix(f"{head}."): full for name, full in names.items() if name.startswith(f"{head}.")}
        left_out += len(names) - len(inner)
        names, wrapper = inner, f"{wrapper}{head}."
    if not wrapper:
        return dict(arrays), ""
    beside = f"; {left_out} arrays beside them are left out" if left_out else ""
    return {name: arrays[full] for name, full in names.items()}, f"taking the names after {wrapper!r}{beside}"


def read_safetensors(path) -> Arrays:
    """Reads all arrays of a .safetensors file by name, in the dtypes of the file (bfloat16 from ml_dtypes).

    Raises FileNotFoundError, and ValueError if the file is cut short, has another format, or has a dtype that numpy
    lacks (float8).
    """
    with reading(existing(path, "a .safetensors file"), WHOLE), safetensors.safe_open(path, "numpy") as file:
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (no mapping)
        foreign = [f"{name} is {kind}" for name, kind in kinds.items() if kind not in DTYPES]
        arrays = {} if foreign else {name: file.get_tensor(name) for name in kinds}
    if foreign:
        raise ValueError(f"{path}: {listed(foreign, 3)}; expected F16, BF16, F32, F64 or integers")
    return arrays


def read_metadata(path) -> dict[str, str]:
    """Reads the text that a .safetensors file has beside its arrays, {} if none. Raises as `read_safetensors` does."""
    with reading(existing(path, "a .safetensors file"), WHOLE), safetensors.safe_open(path, "numpy") as file:
        return dict(file.metadata() or {})


def write_safetensors(path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes `arrays`, and text beside them; the file appears only once it is complete. Raises OSError."""
    # safetensors ignores strides, so that it would scramble a transposed array
    whole = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    try:
        with replacing(path) as fresh:
            save_file(whole, fresh, metadata=dict(metadata))
    except safetensors.SafetensorError as error:  # it has a system error's number only in its text
        found = re.search(r"\(os error ([0-9]+)\)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None


def sha256(path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""The one module that knows safetensors: arrays with names, as published weights are kept.

Files are the user's: whatever is missing or not what it should be becomes FileNotFoundError or ValueError with a
one-line message that names the path. Nothing is unpickled.
"""

import hashlib
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
from safetensors.numpy import save_file


def read_safetensors(path) -> dict[str, np.ndarray]:
    """All arrays of a .safetensors file by name, in the dtypes of the file (bfloat16 as that of ml_dtypes).

    Raises FileNotFoundError, or ValueError if the file is cut short or is not of that format.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def read_metadata(path) -> dict[str, str]:
    """The text that a .safetensors file carries beside its arrays, {} for none. Raises as `read_safetensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def write_safetensors(path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes `arrays`, and text beside them; a file appears only when it is whole."""
    path = pathlib.Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    # safetensors writes the memory as it lies, and would scramble a transposed array
    whole = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    save_file(whole, unfinished, metadata=dict(metadata))
    unfinished.replace(path)


def sha256(path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with pathlib.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path):
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a .safetensors file")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole .safetensors file ({' '.join(str(error).split())})") from None

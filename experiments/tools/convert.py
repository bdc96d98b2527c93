"""Converts published .pt weights to .safetensors, so that nothing else needs PyTorch.

    python -m experiments.tools.convert DiT-XL-2-256x256.pt dit-xl-2-256.safetensors [--key=ema]

It loads only tensors (torch.load with weights_only=True) and refuses a file that would run code. Some files keep
several sets of weights by name, as {"model": {..}, "ema": {..}}; --key says which to take. The new file's metadata and
standard output get the name and the SHA-256 of the original. Exit codes: 0 done, 2 a file or command that cannot work,
with one line on stderr.
"""

import argparse
import os
import pathlib
import sys

import ml_dtypes
import numpy as np

from experiments.files import tensors
from experiments.files.opening import existing, one_line
from experiments.runtime import progress
from guidance.words import listed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tools.convert", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("source", help="a .pt, .pth, .ckpt or .bin file of PyTorch tensors")
    parser.add_argument("target", help="the .safetensors file to write")
    parser.add_argument("--key", help="the set of weights to take from a file that keeps several")
    options = parser.parse_args(arguments)
    try:
        if os.path.isdir(options.target):
            raise FileNotFoundError(f"{options.target} is a folder; expected the .safetensors file to write")
        if not os.path.isdir(pathlib.Path(options.target).parent):
            raise FileNotFoundError(f"{options.target}: its folder does not exist")
        with progress.waiting(f"reading {options.source}"):
            arrays = read_torch(options.source, options.key)
            digest = tensors.sha256(options.source)
        origin = {"origin": pathlib.Path(options.source).name, "origin_sha256": digest}
        with progress.waiting(f"writing {options.target}"):
            tensors.write_safetensors(options.target, arrays, origin)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"{options.target}: {len(arrays)} arrays, {sum(a.size for a in arrays.values()):,} numbers")
    print(f"origin {origin['origin']}, sha256 {digest}")
    return 0


def read_torch(path, key: str | None = None) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch file by name, as numpy arrays in the dtypes of the file.

    Raises ModuleNotFoundError if PyTorch is not installed, FileNotFoundError, and ValueError for a file that is broken
    or contains anything but tensors, and if `key` does not name one of its sets of weights.
    """
    path = existing(path, "a file of PyTorch tensors")
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError("converting .pt files needs PyTorch: pip install 'learn-to-guide[parity]'") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for files that are broken or contain code
        kind = type(error).__name__
        raise ValueError(f"{path} is not a whole PyTorch file of tensors alone; it is not loaded ({kind})") from None
    return {name: _array(tensor) for name, tensor in _chosen(path, content, key, torch.Tensor).items()}


def _chosen(path, content, key: str | None, tensor_type) -> dict:
    """Returns the set of tensors called `key`, or the whole content if it is one set and `key` is None."""

    def is_weights(value) -> bool:
        return isinstance(value, dict) and bool(value) and all(isinstance(one, tensor_type) for one in value.values())

    sets = {name: value for name, value in content.items() if is_weights(value)} if isinstance(content, dict) else {}
    if key is None and is_weights(content):
        return content
    if key in sets:
        return sets[key]
    known = f"it keeps the sets {listed(sets)}: say --key" if sets else "it keeps no sets of tensors by name"
    raise ValueError(f"{path}: {known}" if key is None else f"{path} has no set of tensors {key!r}; {known}")


def _array(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # torch cannot convert this type to numpy, so we pass its bits as int16
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Published .pt weights to safetensors, once, so that nothing else ever needs PyTorch.

    python -m experiments.tools.convert DiT-XL-2-256x256.pt dit-xl-2-256.safetensors [--key=ema]

Only tensors are loaded (torch.load with weights_only=True): a file that would run code is refused. Some files keep
several sets of weights by name, as {"model": {..}, "ema": {..}}; --key says which to take. The name and the SHA-256 of
the original go into the metadata of the new file and to standard output. Exit codes: 0 done, 2 a file or command that
cannot work, in one line on stderr.
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
    """The tensors of a PyTorch file by name, as numpy arrays in the dtypes of the file.

    Raises ModuleNotFoundError where PyTorch is not installed, FileNotFoundError, and ValueError for a file that is
    broken, holds anything but tensors, or keeps several sets of weights of which `key` names none.
    """
    path = existing(path, "a file of PyTorch tensors")
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError("converting .pt files needs PyTorch: pip install 'learn-to-guide[parity]'") from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no one exception for files that are broken or hold code
        kind = type(error).__name__
        raise ValueError(f"{path} is not a whole PyTorch file of tensors alone; it is not loaded ({kind})") from None
    return {name: _array(tensor) for name, tensor in _chosen(path, held, key, torch.Tensor).items()}


def _chosen(path, held, key: str | None, tensor_type) -> dict:
    """The dict of tensors in what a file holds."""

    def is_weights(value) -> bool:
        return isinstance(value, dict) and bool(value) and all(isinstance(one, tensor_type) for one in value.values())

    sets = {name: value for name, value in held.items() if is_weights(value)} if isinstance(held, dict) else {}
    if key is None and is_weights(held):
        return held
    if key in sets:
        return sets[key]
    known = f"it keeps the sets {listed(sets)}: say --key" if sets else "it keeps no sets of tensors by name"
    raise ValueError(f"{path}: {known}" if key is None else f"{path} has no set of tensors {key!r}; {known}")


def _array(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # unknown to numpy: the same bits under another name
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

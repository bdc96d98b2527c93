"""What the importers of published weights share: the check of names and shapes, and the torch layouts."""

import jax.numpy as jnp
import numpy as np


def check_arrays(what: str, arrays: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compares `arrays` with the names and shapes that the network called `what` has.

    Raises one ValueError, on one line, that lists every missing name, unexpected name and wrong shape.
    """
    faults = [f"missing {name} {shapes[name]}" for name in sorted(shapes.keys() - arrays.keys())]
    faults += [f"unexpected {name}" for name in sorted(arrays.keys() - shapes.keys())]
    faults += [
        f"{name} has shape {np.shape(arrays[name])}, expected {shapes[name]}"
        for name in sorted(shapes.keys() & arrays.keys())
        if np.shape(arrays[name]) != shapes[name]
    ]
    if faults:
        raise ValueError(f"{what} weights: {'; '.join(faults)}")


def dense(weight: np.ndarray, bias: np.ndarray) -> dict:
    """The params of nn.Dense from a torch Linear: [out, in] -> [in, out]."""
    return {"kernel": jnp.asarray(np.transpose(weight)), "bias": jnp.asarray(bias)}


def conv(weight: np.ndarray, bias: np.ndarray) -> dict:
    """The params of nn.Conv from a torch Conv2d: [out, in, H, W] -> [H, W, in, out]."""
    return {"kernel": jnp.asarray(np.transpose(weight, (2, 3, 1, 0))), "bias": jnp.asarray(bias)}


def norm(weight: np.ndarray, bias: np.ndarray) -> dict:
    """The params of nn.LayerNorm from a torch LayerNorm."""
    return {"scale": jnp.asarray(weight), "bias": jnp.asarray(bias)}

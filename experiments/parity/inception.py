"""Inception-v3 against pytorch-fid's module at random weights.

    python -m experiments.parity.inception                                   compares, and prints the errors
    python -m experiments.parity.inception tests/nets/golden/inception.npz   writes what the tests compare with

Needs torch, torchvision and pytorch-fid, which the project does not depend on. Nothing is downloaded: the weights are
drawn by NumPy from a seed, so that the file holds inputs and outputs only.
"""

import contextlib
import sys

import numpy as np

from guidance.nets import inception

SEED = 2015
IMAGES = (2, 40, 48, 3)


def random_arrays(seed: int = SEED) -> dict[str, np.ndarray]:
    """Weights by torch name, drawn in the order of the names, float32; activations stay of order one.

    Uniform numbers only, whose stream is bits scaled: kernels of variance 2 / fan-in, gains and variances in
    [0.5, 1.5], shifts and means in [-0.5, 0.5], the classifier of variance 1 / 2048.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in sorted(inception.torch_shapes().items()):
        unit = rng.random(shape, dtype=np.float32)
        if name.endswith(("bn.weight", "running_var")):
            arrays[name] = 0.5 + unit
        elif name.endswith("weight"):
            gain = 1.0 if name == "fc.weight" else 2.0
            arrays[name] = ((2 * unit - 1) * np.sqrt(3 * gain / np.prod(shape[1:]))).astype(np.float32)
        else:
            arrays[name] = unit - 0.5
    return arrays


def random_images(seed: int = SEED) -> np.ndarray:
    """uint8 [2, 40, 48, 3]."""
    return np.random.default_rng(seed).integers(0, 256, IMAGES, np.uint8)


def reference(arrays: dict[str, np.ndarray], images: np.ndarray, double: bool = False) -> dict[str, np.ndarray]:
    """Outputs of pytorch-fid's module: `prepared` NHWC, those of `Reading`, and each layer's moments.

    `layers` [94] are the names in the order of evaluation, `moments` [94, 2] mean and root mean square of the batch
    normalisation's output.
    """
    import torch

    dtype = torch.float64 if double else torch.float32
    module = _module(arrays).to(dtype).eval()
    layers, outputs = [], {}

    def record(name):
        def hook(_, __, output):
            layers.append(name)
            outputs[name] = output.detach().clone()  # the ReLU that follows works in place

        return hook

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_forward_hook(record(name.removesuffix(".bn")))
    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255)).to(dtype)
        prepared = 2 * torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1
        features = []
        module.avgpool.register_forward_hook(lambda _, __, output: features.append(output.flatten(1)))
        logits = module(prepared)
        layer, channels = inception.SPATIAL
        spatial = outputs[layer].relu()[:, :channels].permute(0, 2, 3, 1)
    return {
        "prepared": prepared.permute(0, 2, 3, 1).numpy(),
        "features": features[0].numpy(),
        "spatial": spatial.reshape(len(images), -1).numpy(),
        "logits": logits.numpy(),
        "unbiased_logits": (features[0] @ module.fc.weight.detach().T).numpy(),
        "layers": np.asarray(layers),
        "moments": np.asarray([moments(outputs[name].numpy()) for name in layers]),
    }


def moments(output: np.ndarray) -> tuple[float, float]:
    """Mean and root mean square, in float64."""
    output = np.asarray(output, np.float64)
    return output.mean(), np.sqrt(np.square(output).mean())


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """max |found - expected| / max |expected|."""
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected)) / np.max(np.abs(expected)))


def run(full: bool = False) -> dict[str, float]:
    """Relative errors of our port against the module in float32; `full` adds the module's own against float64.

    `prepared` differs by the module's own rounding of the places between pixels, size times eps.
    """
    import jax
    import jax.numpy as jnp

    arrays, images = random_arrays(), random_images()
    expected = reference(arrays, images)
    prepared = inception.prepare_torch(jnp.asarray(images, jnp.float32))
    reading = jax.jit(inception.read)(inception.from_torch(arrays), prepared)
    names = inception.Reading._fields
    errors = {"prepared": relative_error(prepared, expected["prepared"])}
    errors |= {name: relative_error(getattr(reading, name), expected[name]) for name in names}
    if full:
        exact = reference(arrays, images, double=True)
        errors |= {f"module's own {name}": relative_error(expected[name], exact[name]) for name in names}
    return errors


def golden(path) -> None:
    """Writes images, outputs of the module in float32, and sums of the weights that tell whether they are the same."""
    arrays, images = random_arrays(), random_images()
    outputs = reference(arrays, images)
    del outputs["prepared"]
    np.savez_compressed(path, images=images, weights=fingerprint(arrays), names=np.asarray(sorted(arrays)), **outputs)


def fingerprint(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The sum of each array, by name, in float64."""
    return np.asarray([arrays[name].sum(dtype=np.float64) for name in sorted(arrays)])


def _module(arrays: dict[str, np.ndarray]):
    """pytorch-fid's network with these weights; its counters of batches start at zero."""
    import torch

    torch.set_num_threads(2)
    library = torch.library.Library("torchvision", "DEF")  # torchvision without its compiled operations
    for schema in ("nms(Tensor dets, Tensor scores, float threshold) -> Tensor", "qnms(Tensor dets) -> Tensor"):
        with contextlib.suppress(RuntimeError):  # compiled, or defined before
            library.define(schema)
    from pytorch_fid import inception as published

    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    published.load_state_dict_from_url = lambda *_, **__: weights
    return published.fid_inception_v3()


if __name__ == "__main__":
    if sys.argv[1:]:
        golden(sys.argv[1])
    else:
        for name, error in run(full=True).items():
            print(f"{name:30s} {error:.1e}")

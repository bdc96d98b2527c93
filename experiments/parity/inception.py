"""Inception-v3 against pytorch-fid's module, layer by layer.

There is one size, whose 24 million weights fit no file of the tests: NumPy draws them from a seed on both sides, and
the stored case has their sums instead. The full run compares with the module in float64, which tells our rounding from
the module's own (3e-6 of the spatial features, 5e-7 of the others).
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.parity import Case, Reference, torch_side
from guidance.nets import inception

SMALL = {"seed": 2015, "images": (2, 40, 48, 3), "double": False}
FULL = {"Inception-v3, float64": SMALL | {"double": True}}
SEEN = slice(None, None, 13)  # every 13th row and column of the prepared images, which are large


def random_arrays(seed: int = SMALL["seed"]) -> dict[str, np.ndarray]:
    """Draws float32 weights by torch name, in the order of the names, that keep activations of order one.

    Kernels have the variance 2 / fan-in and the classifier 1 / 2048. Gains and variances are in [0.5, 1.5], shifts and
    means in [-0.5, 0.5]. All are uniform, because numpy makes uniform numbers by scaling bits, the same everywhere.
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


def fingerprint(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the sum of each array's bits as integers, in the order of the names; integer sums are exact."""
    return np.asarray([arrays[name].view(np.uint32).sum(dtype=np.uint64) for name in sorted(arrays)])


def theirs(config: dict) -> Case:
    """Runs pytorch-fid's network on uint8 images, with weights drawn from the seed.

    The outputs are those of `Reading`, some rows and columns of the prepared images and, as "layer/<name>" in the
    order of evaluation, mean and root mean square of the output of each batch normalisation.
    """
    torch = torch_side.torch()
    dtype = torch.float64 if config["double"] else torch.float32
    arrays = random_arrays(config["seed"])
    images = np.random.default_rng(config["seed"]).integers(0, 256, config["images"], np.uint8)
    module = published(torch, arrays).fid_inception_v3().to(dtype).eval()
    seen = {}

    def record(name):
        return lambda _module, _args, out: seen.update({name: out.clone()})  # the ReLU that follows works in place

    for name, part in module.named_modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.register_forward_hook(record(name.removesuffix(".bn")))
    pooled = torch_side.Watch({"pool": module.avgpool})
    x = torch_side.nchw(images / np.float32(255)).to(dtype)
    prepared = 2 * torch.nn.functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False) - 1
    logits = module(prepared)
    features = pooled.seen["pool"].flatten(1)
    layer, channels = inception.SPATIAL
    outputs = {
        "prepared": torch_side.nhwc(prepared)[:, SEEN, SEEN],
        "features": features.numpy(),
        "spatial": torch_side.nhwc(seen[layer].relu()[:, :channels]).reshape(len(images), -1),
        "logits": logits.numpy(),
        "unbiased_logits": (features @ module.fc.weight.T).numpy(),
    }
    moments = {f"layer/{name}": _moments(out.numpy().astype(np.float64), np) for name, out in seen.items()}
    return Case({}, {"images": images, "fingerprint": fingerprint(arrays)}, outputs | moments)


def ours(config: dict, weights: dict, inputs: dict) -> dict:
    """Returns the outputs of `guidance.nets.inception` for the same images, with weights drawn from the same seed.

    Raises ValueError if NumPy draws other weights than those of the case.
    """
    weights = weights or random_arrays(config["seed"])
    if not np.array_equal(fingerprint(weights), inputs["fingerprint"]):
        raise ValueError(
            f"NumPy {np.__version__} draws other weights from the seed {config['seed']} than were compared"
        )

    @jax.jit
    def apply(params, images):
        prepared = inception.prepare_torch(images.astype(jnp.float32))
        net = inception.InceptionV3()
        reading, state = net.apply({"params": params}, prepared, capture_intermediates=True)
        layers = {name: calls["__call__"][0] for name, calls in state["intermediates"].items() if name != "__call__"}
        moments = {f"layer/{name}": _moments(out, jnp) for name, out in layers.items() if name != "fc"}
        return {"prepared": prepared[:, SEEN, SEEN]} | reading._asdict() | moments

    outputs = apply(inception.from_torch(weights), jnp.asarray(inputs["images"]))
    return {name: np.asarray(out) for name, out in outputs.items()}


def _moments(out, xp):
    """Returns mean and root mean square over all pixels and channels; errors of both are relative to the second."""
    return xp.stack([xp.mean(out), xp.sqrt(xp.mean(xp.square(out)))])


def published(torch, arrays: dict[str, np.ndarray]):
    """Returns pytorch-fid's Python module, changed so that its networks load these weights instead of downloading."""
    from pytorch_fid import inception as found

    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
    found.load_state_dict_from_url = lambda *_, **__: weights  # nothing is downloaded
    return found


REFERENCE = Reference(SMALL, FULL, theirs, ours, package="pytorch_fid")

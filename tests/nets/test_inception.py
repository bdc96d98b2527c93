"""The port of Inception-v3: its shapes, the converter of its weights, the ways images enter.

That it computes what pytorch-fid's module does, layer by layer, is held against golden/inception.npz in
test_parity.py; here is what that file must hold for it.
"""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import parity
from experiments.parity.inception import fingerprint, random_arrays
from guidance.nets import inception

GOLDEN = pathlib.Path(__file__).parent / "golden" / "inception.npz"


@pytest.fixture(scope="module")
def case():
    return parity.read(GOLDEN)


@pytest.fixture(scope="module")
def arrays(case):
    drawn = random_arrays()
    np.testing.assert_array_equal(fingerprint(drawn), case.inputs["fingerprint"], "NumPy draws other weights")
    return drawn


def test_what_parity_compares(case):
    """Every output, and the moments of each of the 94 layers; no weights, which the seed gives."""
    layers = {f"layer/{name.removesuffix('.conv.weight')}" for name in inception.torch_shapes() if "conv" in name}
    assert len(layers) == 94 and not case.weights
    assert case.outputs.keys() == {"prepared", *inception.Reading._fields, *layers}
    assert len(case.inputs["images"]) == 2 and case.inputs["images"].dtype == np.uint8


def test_parity_at_other_weights_is_refused(case, arrays):
    other = arrays | {"fc.bias": np.nextafter(arrays["fc.bias"], np.float32(1))}
    with pytest.raises(ValueError, match="draws other weights from the seed 2015"):
        parity.reference("inception").ours({"seed": 2015}, other, case.inputs)


def test_spatial_features_are_what_the_evaluation_suite_takes():
    """mixed_6/conv[..., :7] of TensorFlow's graph: 17 x 17 x 7 = 2023 numbers."""
    images = jax.ShapeDtypeStruct((3, 299, 299, 3), jnp.float32)
    reading, _ = jax.eval_shape(inception.InceptionV3().init_with_output, jax.random.key(0), images)
    assert [part.shape for part in reading] == [(3, 2048), (3, 2023), (3, 1008), (3, 1008)]


def test_converter_gives_the_tree_of_init(arrays):
    params = inception.from_torch(arrays)
    images = jnp.zeros((1, 299, 299, 3))
    init = jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), images)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), init))


def test_converter_folds_the_normalisation(arrays):
    """gamma (w.x - mean) / sqrt(var + 1e-3) + beta, at one layer of one pixel."""
    name = "Mixed_6e.branch_pool"
    w, gain, shift, mean, variance = (arrays[f"{name}.{leaf}"].astype(np.float64) for leaf in inception.LEAVES)
    x = np.random.default_rng(0).normal(size=w.shape[1])
    expected = gain * (w[:, :, 0, 0] @ x - mean) / np.sqrt(variance + 1e-3) + shift
    layer = inception.from_torch(arrays)[name]
    np.testing.assert_allclose(x @ layer["kernel"][0, 0] + layer["bias"], expected, rtol=1e-5, atol=1e-5)


def test_converter_tolerates_counters_and_lists_every_fault_in_one_line(arrays):
    counter = {"Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64)}
    inception.from_torch(arrays | counter)
    wrong = arrays | {"fc.bias": np.zeros(1000, np.float32), "AuxLogits.fc.bias": np.zeros(1000, np.float32)}
    del wrong["Mixed_7c.branch1x1.bn.weight"], wrong["Mixed_5b.branch_pool.conv.weight"]
    faults = [
        "inception weights: missing Mixed_5b.branch_pool.conv.weight (32, 192, 1, 1)",
        "missing Mixed_7c.branch1x1.bn.weight (320,)",
        "unexpected AuxLogits.fc.bias",
        "fc.bias has shape (1000,), expected (1008,)",
    ]
    with pytest.raises(ValueError, match=f"^{re.escape('; '.join(faults))}$"):
        inception.from_torch(wrong)
    with pytest.raises(ValueError, match=r"^inception weights: fc.bias has dtype int64, expected floating point"):
        inception.from_torch(arrays | {"fc.bias": np.zeros(1008, np.int64)})


def test_preparations():
    """Ranges, and the place of the first and last pixels: TensorFlow's grid reaches 299 only at (299 - 1)/299."""
    levels = jnp.asarray([0.0, 128.0, 255.0])[:, None, None, None] * jnp.ones((1, 4, 4, 3))
    for way, expected in (("tensorflow", [-1, 0, 127 / 128]), ("torch", [-1, 1 / 255, 1])):
        prepared = inception.PREPARE[way](levels)
        assert prepared.shape == (3, 299, 299, 3)
        np.testing.assert_allclose(
            prepared, np.broadcast_to(np.reshape(expected, (3, 1, 1, 1)), prepared.shape), atol=1e-6
        )
    ramp = 10 * jnp.broadcast_to(jnp.arange(4.0)[None, None, :, None], (1, 4, 4, 3))
    i = np.arange(299)
    for way, places in (("tensorflow", i * 4 / 299), ("torch", (i + 0.5) * 4 / 299 - 0.5)):
        clipped = 10 * np.clip(places, 0, 3)
        expected = (clipped - 128) / 128 if way == "tensorflow" else 2 * clipped / 255 - 1
        np.testing.assert_allclose(inception.PREPARE[way](ramp)[0, 7, :, 1], expected, atol=1e-6)

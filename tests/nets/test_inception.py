"""The port of Inception-v3 against pytorch-fid's module at random weights, layer by layer; the ways images enter.

golden/inception.npz was written by `python -m experiments.parity.inception`, where torch is installed.
"""

import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.parity.inception import fingerprint, random_arrays, relative_error
from guidance.nets import inception

GOLDEN = pathlib.Path(__file__).parent / "golden" / "inception.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def arrays(golden):
    drawn = random_arrays()
    np.testing.assert_allclose(fingerprint(drawn), golden["weights"], rtol=1e-9, err_msg="NumPy draws other weights")
    return drawn


@pytest.fixture(scope="module")
def found(golden, arrays):
    """Our Reading, and by layer mean and root mean square before the ReLU."""

    @jax.jit
    def both(params, images):
        prepared = inception.prepare_torch(images.astype(jnp.float32))
        apply = inception.InceptionV3().apply
        reading, state = apply({"params": params}, prepared, capture_intermediates=True)
        outputs = {name: parts["__call__"][0] for name, parts in state["intermediates"].items() if name != "__call__"}
        return reading, {name: (jnp.mean(h), jnp.sqrt(jnp.mean(jnp.square(h)))) for name, h in outputs.items()}

    return both(inception.from_torch(arrays), jnp.asarray(golden["images"]))


@pytest.mark.parametrize("name", inception.Reading._fields)
def test_equals_the_module(name, found, golden):
    """The module's own rounding, measured against float64, is 3e-6 for `spatial` and 5e-7 for the others."""
    reading = getattr(found[0], name)
    assert reading.shape == golden[name].shape
    assert relative_error(reading, golden[name]) < 1e-5


def test_equals_the_module_layer_by_layer(found, golden):
    """In the mean over all pixels and channels, and the root mean square."""
    moments = found[1]
    assert sorted(golden["layers"]) == sorted(moments.keys() - {"fc"})
    assert len(golden["layers"]) == 94
    for name, expected in zip(golden["layers"], golden["moments"], strict=True):
        np.testing.assert_allclose(moments[name], expected, rtol=0, atol=1e-5 * expected[1], err_msg=name)


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
    with pytest.raises(
        ValueError, match=r"^inception weights: .*fc.bias has dtype int64, expected floating point numbers$"
    ):
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

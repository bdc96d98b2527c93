"""The port of the published LeNet-5 against a plain numpy forward pass, the original's outputs and its statistics."""

import gzip

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.signal import correlate

from guidance.nets import lenet


def random_torch_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape) / np.sqrt(np.prod(shape[1:], initial=1.0))
        for name, shape in lenet.torch_shapes().items()
    }


def torch_forward(w: dict[str, np.ndarray], image: np.ndarray):
    """One image [32, 32]: convolution, tanh, pool, in the published order."""

    def conv(h, name):
        kernels, biases = w[f"convnet.{name}.weight"], w[f"convnet.{name}.bias"]
        return np.stack([correlate(h, k, mode="valid")[0] + b for k, b in zip(kernels, biases, strict=True)])

    def pool(h):
        return np.max([h[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)

    h = image[None]
    for name in ("c1", "c3"):
        h = pool(np.tanh(conv(h, name)))
    h = np.tanh(conv(h, "c5"))[:, 0, 0]
    features = np.tanh(w["fc.f6.weight"] @ h + w["fc.f6.bias"])
    return features, w["fc.f7.weight"] @ features + w["fc.f7.bias"]


def test_equals_the_description_at_random_weights():
    arrays = random_torch_arrays()
    images = np.random.default_rng(1).uniform(size=(3, 32, 32, 1))
    reading = jax.jit(lenet.read)(lenet.from_torch(arrays), jnp.asarray(images))
    expected = [torch_forward(arrays, image[..., 0]) for image in images]
    np.testing.assert_allclose(reading.features, [f for f, _ in expected], atol=2e-6)
    np.testing.assert_allclose(reading.logits, [z for _, z in expected], atol=1e-5)


def test_small_images_are_enlarged():
    params = lenet.from_torch(random_torch_arrays())
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 28, 28, 1)), jnp.float32)
    enlarged = jax.image.resize(images, (3, 32, 32, 1), "bilinear")  # half-pixel centres too
    chex.assert_trees_all_close(lenet.read(params, images), lenet.read(params, enlarged), atol=1e-5)


def test_converter_gives_the_tree_of_init():
    params = lenet.from_torch({k: v.astype(np.float32) for k, v in random_torch_arrays().items()})
    init = jax.eval_shape(lenet.LeNet5().init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(params, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), init))
    assert sum(a.size for a in jax.tree.leaves(params)) == 61_706


def test_converter_lists_every_fault_in_one_line():
    arrays = random_torch_arrays()
    arrays["convnet.c2.weight"] = arrays.pop("convnet.c1.weight")
    arrays["fc.f6.bias"] = np.zeros(85)
    with pytest.raises(ValueError, match=r"^[^\n]*missing convnet.c1.weight[^\n]*unexpected convnet.c2.weight[^\n]*$"):
        lenet.from_torch(arrays)
    with pytest.raises(ValueError, match=r"fc.f6.bias has shape \(85,\), expected \(84,\)"):
        lenet.from_torch(arrays)


@pytest.fixture(scope="module")
def published(shared):
    with np.load(shared / "data/weights/mnist_lenet5.npz", allow_pickle=False) as arrays:
        return lenet.from_torch(dict(arrays))


def test_equals_the_original_module(published, shared):
    check = np.load(shared / "data/port_check/mnist_lenet5.npz", allow_pickle=False)
    reading = lenet.read(published, jnp.asarray(check["x32"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(reading.features, check["features84"], atol=1e-5)
    np.testing.assert_allclose(jax.nn.log_softmax(reading.logits), check["logp"], atol=1e-4)


def frechet(mu_a, sigma_a, mu_b, sigma_b) -> float:
    return np.sum((mu_a - mu_b) ** 2) + np.trace(sigma_a + sigma_b - 2 * np.real(sqrtm(sigma_a @ sigma_b)))


def read_mnist(path) -> np.ndarray:
    header = 16 if "images" in path.name else 8
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


@pytest.mark.slow
def test_accuracy_and_statistics_on_mnist(published, shared):
    """98.79 % on the test set; feature statistics as computed by the original module, FID(train, test) = 0.0512."""
    stored = np.load(shared / "data/weights/mnist_lenet84_stats.npz", allow_pickle=False)
    read = jax.jit(lenet.read)
    ours = {}
    for part, file in (("train", "train"), ("test", "t10k")):
        images = read_mnist(shared / f"data/mnist/{file}-images-idx3-ubyte.gz").reshape(-1, 1000, 28, 28, 1)
        readings = [read(published, chunk / np.float32(255)) for chunk in images]
        features = np.concatenate([r.features for r in readings]).astype(np.float64)
        ours[part] = features.mean(0), np.cov(features.T)
        np.testing.assert_allclose(ours[part][0], stored[f"{part}_mu"], atol=1e-5)
        np.testing.assert_allclose(ours[part][1], stored[f"{part}_sigma"], atol=1e-4)
    predicted = np.concatenate([r.logits for r in readings]).argmax(1)
    labels = read_mnist(shared / "data/mnist/t10k-labels-idx1-ubyte.gz")
    # one image of 10,000 may sit on a decision boundary to within rounding
    assert abs(np.mean(predicted == labels) - 0.9879) < 1.5e-4
    assert frechet(*ours["train"], *ours["test"]) == pytest.approx(0.0512, abs=5e-4)

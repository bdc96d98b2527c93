"""The pieces of the MNIST problem, and the published sweep over guidance weights through the project's own sampler."""

import functools
import gzip
import struct

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.config import ConfigError
from experiments.problems.images import judge, mnist
from guidance import guides, schedules, weights
from guidance.metrics import frechet
from guidance.nets import flow_vit, lenet
from guidance.rules import omega_from_scale
from guidance.sampling import ddim, sample, uniform_grid

pytestmark = pytest.mark.compute


@pytest.fixture
def files(tmp_path):
    """A folder with a random model, a random classifier and a set of five images in MNIST's format."""
    rng = np.random.default_rng(0)
    for name, net in (("model", flow_vit), ("classifier", lenet)):
        arrays = {key: (0.1 * rng.normal(size=shape)).astype(np.float32) for key, shape in net.torch_shapes().items()}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", rng.integers(0, 256, (5, 28, 28))), ("labels-idx1", np.arange(5))):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            content = gzip.compress(header + array.astype(np.uint8).tobytes())
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(content)
    return tmp_path


def load(folder) -> mnist.Mnist:
    return mnist.load(folder / "model.npz", folder / "classifier.npz", folder)


def read(problem, images) -> tuple[np.ndarray, np.ndarray]:
    """The features and logits of images [n, 28, 28, 1] in [0, 1]; floats beyond are clipped, as in the problem."""
    return judge.in_batches(jax.jit(lambda x: lenet.read(problem.classifier, jnp.clip(x, 0, 1))), images)


def test_load(files):
    problem = load(files)
    x = jnp.ones((5, *mnist.IMAGE_SHAPE))
    out = jax.jit(problem.denoise)(x, jnp.full(5, 0.5), jnp.asarray(problem.test.labels))
    chex.assert_shape(out, x.shape)
    chex.assert_shape(read(problem, data.to_unit(problem.test.images)), [(5, 84), (5, 10)])


@pytest.mark.parametrize(
    ("file", "field"),
    [
        ("model.npz", "problem.model"),
        ("classifier.npz", "problem.classifier"),
        ("train-images-idx3-ubyte.gz", "problem.data"),
    ],
)
def test_missing_and_wrong_files_name_the_field(files, file, field):
    np.savez(files / "other.npz", a=np.zeros(2))
    (files / file).write_bytes((files / "other.npz").read_bytes())
    with pytest.raises(ConfigError, match=f"^{field} = [^\n]*$"):
        load(files)
    (files / file).unlink()
    with pytest.raises(ConfigError, match=f"^{field} = [^\n]*{file}[^\n]*does not exist[^\n]*$"):
        load(files)


# Scale (1 + omega), steps, guided interval in t, then the numbers of the original torch module: share of samples that
# the classifier gives their label, Frechet distance of its 84 features to the test set, mean pixel; 2,000 samples from
# RandomState(5), labels i % 10, clipped to [0, 1]. The other published rows (scales 0 to 3 at 50 steps,
# 1 at 20) agree too, but take half a minute of a core each; guidance at all times is compared pixel by pixel below.
PUBLISHED = [
    (2, 50, (0.31, 0.69), 0.9905, 0.3863, 0.13945),  # the open (0.3, 0.7), off the grid's own times
    (1, 10, None, 0.9560, 0.2697, 0.12973),
]
SAMPLES, CHUNK = 2000, 100


@pytest.fixture(scope="module")
def published(shared):
    folder = shared / "data"
    problem = mnist.load(
        folder / "weights/mnist_cfg_flow_vit.npz", folder / "weights/mnist_lenet5.npz", folder / "mnist"
    )
    return problem, frechet.gaussian_stats(read(problem, data.to_unit(problem.test.images))[0])


@functools.partial(jax.jit, static_argnames="trajectory")
def draw(denoise, guide, grid, x, labels, trajectory=False):
    key, schedule = jax.random.key(0), schedules.by_name("rectified_flow")
    return sample(key, denoise, guide, ddim(), schedule, grid, x, labels, trajectory=trajectory)


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "count", "bounds", "agreement", "distance", "pixel"), PUBLISHED)
def test_published_sweep(published, scale, count, bounds, agreement, distance, pixel):
    problem, reference = published
    omega = float(omega_from_scale(scale))
    weight = weights.interval(omega, *bounds) if bounds else weights.constant(omega)
    guide = guides.cfg(weight, mnist.NULL)
    noise = np.random.RandomState(5).randn(SAMPLES, *mnist.IMAGE_SHAPE).astype(np.float32)  # noqa: NPY002 (theirs)
    labels = np.arange(SAMPLES, dtype=np.int32) % mnist.CLASSES
    grid = uniform_grid(count)
    chunks = [slice(i, i + CHUNK) for i in range(0, SAMPLES, CHUNK)]
    images = np.concatenate([draw(problem.denoise, guide, grid, noise[c], labels[c]).x0 for c in chunks])
    features, logits = read(problem, images)
    # The noise is the same, so only rounding differs: two of 2,000 labels, and the last printed digit of the rest.
    assert np.mean(logits.argmax(1) == labels) == pytest.approx(agreement, abs=1.01e-3)
    assert frechet.frechet_distance(frechet.gaussian_stats(features), reference) == pytest.approx(distance, abs=5e-4)
    assert np.clip(images, 0, 1).mean() == pytest.approx(pixel, abs=2e-5)


@pytest.mark.parametrize("scale", [1, 2])
def test_published_trajectory(published, shared, scale):
    """States of the original torch module after 10, 20, .. 50 Euler steps, through our guide and sampler."""
    problem, _ = published
    check = np.load(shared / "data/port_check/mnist_cfg_flow_vit_euler50.npz", allow_pickle=False)
    noise, labels = np.moveaxis(check["z0"], -3, -1), check["labels"].astype(np.int32)
    guide = guides.cfg(weights.constant(float(omega_from_scale(scale))), mnist.NULL)
    out = draw(problem.denoise, guide, uniform_grid(50), noise, labels, trajectory=True)
    # rounding (1e-6 per evaluation) grows along the trajectory, and with the scale
    states = np.moveaxis(check[f"traj_w{scale}"], -3, -1)
    np.testing.assert_allclose(out.trajectory[10::10], states, atol=1e-4 * scale)

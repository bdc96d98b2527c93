"""MNIST with a published denoiser, a published classifier, whose 84 features the metrics use, and the four data files.

The config names the files.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from experiments import data
from experiments.files import tensors
from experiments.problems.images import judge
from experiments.problems.interface import Data, Instrument, Model, Problem, refusing
from guidance import pools, predictions, schedules
from guidance.nets import flow_vit, lenet
from guidance.types import Denoise

CLASSES = 10
NULL = CLASSES
IMAGE_SHAPE = (28, 28, 1)
CHUNK = 160  # evaluations at a time: about 0.13 ms of a core each, a quarter more in batches of thousands


def build(config, folder) -> Problem:
    """Returns the problem of a config. Raises ConfigError as `load` does."""
    del folder  # nothing is kept
    settings = config.problem
    model = load(settings.model, settings.classifier, settings.data)
    training = judge.pool(data.to_unit(model.train.images), model.train.labels, CLASSES)

    def look(x):
        return lenet.read(model.classifier, jnp.clip(x, 0, 1))

    meter = judge.meter(jax.jit(look), data.to_unit(model.test.images), model.test.labels)
    every = jnp.arange(CLASSES)
    return Problem(
        "mnist, published flow transformer",
        Model(
            schedules.rectified_flow(),
            IMAGE_SHAPE,
            every,
            NULL,
            denoise=lambda params: predictions.in_chunks(model.denoise, CHUNK),
            to_images=Partial(jnp.asarray),
        ),
        Data(pools.draw, pools.draw_each, training),
        Instrument(
            measure=lambda key, samples, full: judge.measure(meter, samples, full),
            floor=lambda key, n, full: judge.measure(meter, pools.draw_each(key, training, n, every), full),
            tuned=judge.TUNED,
            picture=judge.picture,
            features=lambda x: look(x).features,
        ),
    )


class Mnist(NamedTuple):
    """A denoiser (rectified flow, pixels in [0, 1], null label 10), the classifier's params, and the data."""

    denoise: Denoise
    classifier: dict
    train: data.Labelled
    test: data.Labelled


def load(model, classifier, folder) -> Mnist:
    """Reads the three paths of the config: problem.model, problem.classifier, problem.data.

    Raises ConfigError, in one line, naming the field, the path and what was expected there.
    """
    with refusing(f"problem.model = {model}"):
        denoise = flow_vit.denoiser(flow_vit.from_torch(tensors.read_weights(model)))
    with refusing(f"problem.classifier = {classifier}"):
        params = lenet.from_torch(tensors.read_weights(classifier))
    with refusing(f"problem.data = {folder}"):
        train, test = data.mnist(folder)
        if train.images.shape[1:] != IMAGE_SHAPE or test.images.shape[1:] != IMAGE_SHAPE:
            raise ValueError(f"images of shape {train.images.shape[1:]}, expected {IMAGE_SHAPE}")
    return Mnist(denoise, params, train, test)

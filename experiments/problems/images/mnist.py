"""MNIST with a published denoiser, a published classifier, whose 84 features the metrics use, and the four data files.

The config names the files.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from experiments import data
from experiments.files import tensors
from experiments.problems.images import judge
from experiments.problems.interface import Data, Instrument, Model, Problem
from guidance import pools, predictions, schedules
from guidance.nets import flow_vit, lenet
from guidance.types import Denoise

CLASSES = 10
NULL = CLASSES
IMAGE_SHAPE = (28, 28, 1)
CHUNK = 160  # evaluations at a time: about 0.13 ms of a core each, a quarter more in batches of thousands


def build(config, folder) -> Problem:
    """Returns the problem of a config. Raises FileNotFoundError or ValueError as `load` does."""
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

    Raises FileNotFoundError or ValueError, in one line, naming the field, the path and what was expected there.
    """
    read = tensors.read_weights
    model_params = _field("problem.model", lambda: flow_vit.from_torch(read(model)), model)
    classifier_params = _field("problem.classifier", lambda: lenet.from_torch(read(classifier)), classifier)
    train, test = _field("problem.data", lambda: data.mnist(folder), folder)
    if train.images.shape[1:] != IMAGE_SHAPE or test.images.shape[1:] != IMAGE_SHAPE:
        raise ValueError(f"problem.data = {folder}: images of shape {train.images.shape[1:]}, expected {IMAGE_SHAPE}")
    return Mnist(flow_vit.denoiser(model_params), classifier_params, train, test)


def _field(name: str, load_it: Callable[[], Any], path) -> Any:
    """Returns what `load_it` returns; its errors get the name of the config field in front."""
    try:
        return load_it()
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{name} = {path}: {error}") from None

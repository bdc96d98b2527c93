"""The problems by the names that configs use: the fields of their configs, and the modules that build them.

Imports nothing heavy until a problem is built.
"""

import importlib
import pathlib

from experiments.problems.images import fields as images
from experiments.problems.latents import fields as latents
from experiments.problems.mixtures import fields as mixtures

# name: (fields of its config, module that builds the problem; "" for job encode, which has no problem)
PROBLEMS = {
    "mixture": (mixtures.MIXTURE, "mixtures.mixture"),
    "digits": (images.DIGITS, "images.digits"),
    "labelled": (images.LABELLED, "images.labelled"),
    "mnist": (images.MNIST_MODEL, "images.mnist"),
    "imported": (latents.IMPORTED_NETWORK, "latents.imported"),
    "imported_latents": (latents.IMPORTED_LATENTS, "latents.imported_latents"),
    "trained_latents": (latents.TRAINED_LATENTS, "latents.trained_latents"),
    "latents": (latents.ENCODED, ""),
}
FORMS = {name: form for name, (form, _) in PROBLEMS.items()}


def build(config, folder: pathlib.Path | None = None):
    """Returns the `interface.Problem` of a config. If the problem trains a classifier, it is kept in `folder`."""
    _, module = PROBLEMS[config.problem.name]
    return importlib.import_module(f"experiments.problems.{module}").build(config, folder)

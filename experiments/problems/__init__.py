"""Problems by the names that configs have for them: what a config may hold, and the problem that it makes.

Imports nothing heavy until a problem is built.
"""

import importlib
import pathlib

from experiments.problems.images import fields as images
from experiments.problems.latents import fields as latents
from experiments.problems.mixtures import fields as mixtures

FORMS = {
    "mixture": mixtures.MIXTURE,
    "digits": images.DIGITS,
    "labelled": images.LABELLED,
    "mnist": images.MNIST_MODEL,
    "imported": latents.IMPORTED_NETWORK,
    "imported_latents": latents.IMPORTED_LATENTS,
    "trained_latents": latents.TRAINED_LATENTS,
    "latents": latents.ENCODED,
}
MODULES = {
    "mixture": "mixtures.mixture",
    "digits": "images.digits",
    "labelled": "images.labelled",
    "mnist": "images.mnist",
    "imported": "latents.imported",
    "imported_latents": "latents.imported_latents",
    "trained_latents": "latents.trained_latents",
}


def build(config, folder: pathlib.Path | None = None):
    """Builds the `interface.Problem` that the config names, with the classifier that it trains in `folder`."""
    return importlib.import_module(f"experiments.problems.{MODULES[config.problem.name]}").build(config, folder)

"""Reads training data as numpy arrays. No other package knows the formats of data or imports tensorflow_datasets.

`files` and `npz` read arrays that fit in memory. `open_source` opens a published set, a folder or zip of pictures, an
.npz or idx file, and reads its images by index. `Latents` reads the latents that an autoencoder made of images.
`Loader` makes batches of either, in an order that depends only on the seed and the step.

A missing file raises FileNotFoundError, a damaged or unsuitable one ValueError, each in one line that names the path
and what was expected. Nothing is unpickled. Only `published.prepare` imports TensorFlow.
"""

from experiments.data.files import Labelled, digits, mnist, read_idx, split, to_unit
from experiments.data.latents import Latents
from experiments.data.loader import Loader
from experiments.data.sources import Source, chosen, cropped, from_arrays, open_source, synthetic
from experiments.files.names import keep as keep_names
from experiments.files.names import kept as kept_names
from experiments.files.npz import read as read_npz

__all__ = [
    "Labelled",
    "Latents",
    "Loader",
    "Source",
    "chosen",
    "cropped",
    "digits",
    "from_arrays",
    "keep_names",
    "kept_names",
    "mnist",
    "open_source",
    "read_idx",
    "read_npz",
    "split",
    "synthetic",
    "to_unit",
]

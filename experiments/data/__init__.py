"""Data: the one package that knows data files and tensorflow_datasets. Everything comes back as numpy arrays.

`files` and `npz` read arrays that fit in memory. `open_source` opens images of any number by index: a published set, a
folder or zip of pictures, an .npz or idx file; `Latents` opens what an autoencoder made of them. `Loader` makes
batches of either, in an order that depends on the seed and the step alone.

Files are the user's: whatever is missing or not what it should be becomes FileNotFoundError or ValueError with a
one-line message that names the path and what was expected. Nothing is unpickled, and TensorFlow is never imported.
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

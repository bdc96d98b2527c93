"""Writes and reads reference files, in the .npz format of the ADM evaluation suite.

    mu, sigma       mean [d] and covariance [d, d] of the features, float64
    mu_s, sigma_s   of the spatial features, where the network has them
    arr_0           images, uint8 [n, H, W, C], for kid and prdc; optional, and often fewer than mu and sigma describe
    about           our addition: JSON with the network, the images and the versions; other readers ignore it

A file with only images, or a folder of images, is a reference too: its statistics are then computed when needed.
"""

import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.fid import BadInput
from experiments.fid.images import Images, open_images, refusing
from experiments.files import npz
from guidance import keeping
from guidance.metrics import Gaussian, GaussianStats
from guidance.words import listed

KEYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


class Reference(NamedTuple):
    """The content of a reference. `stats` are by the names of `KEYS`; a reference of images only has none."""

    path: str
    sha256: str | None  # of the file; None for a folder, whose pixels are hashed when they are read
    stats: dict[str, Gaussian]
    images: Images | None
    about: dict[str, Any]


def write_reference(path, stats: dict[str, GaussianStats], images: np.ndarray | None, about: dict) -> None:
    """Writes a reference file, as a whole or not at all."""
    arrays = {"about": np.asarray(json.dumps(about))}
    for name, (mu, sigma) in KEYS.items():
        if name in stats:
            arrays |= {mu: stats[name].mean, sigma: stats[name].covariance}
    if images is not None:
        arrays["arr_0"] = images
    keeping.write(pathlib.Path(path), arrays)


def read_reference(path) -> Reference:
    """Reads the reference at `path`: a file or a folder. Raises BadInput."""
    path = pathlib.Path(path)
    if not os.path.isfile(path):
        return Reference(str(path), None, {}, open_images(path), {})
    with refusing():
        found = npz.headers(path)
        arrays = npz.read(path, ("mu", "sigma", "mu_s", "sigma_s", "about").__contains__)
    stats = {name: _gaussian(path, arrays, *keys) for name, keys in KEYS.items() if keys[0] in arrays}
    if not stats and "arr_0" not in found:
        raise BadInput(f"{path} holds {listed(sorted(found)) or 'nothing'}; expected mu and sigma, or images as arr_0")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    images = open_images(path) if "arr_0" in found else None
    return Reference(str(path), digest, stats, images, _about(path, arrays))


def _gaussian(path, arrays, mu: str, sigma: str) -> Gaussian:
    mean, covariance = arrays[mu], arrays.get(sigma)
    if covariance is None or mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        shape = "missing" if covariance is None else f"of shape {covariance.shape}"
        raise BadInput(f"{path}: {mu} has shape {mean.shape} and {sigma} is {shape}; expected [d] and [d, d]")
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise BadInput(f"{path}: {mu} is {mean.dtype} and {sigma} {covariance.dtype}, expected floating point")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise BadInput(f"{path}: {mu} or {sigma} has entries that are not finite")
    return Gaussian(mean.astype(np.float64), covariance.astype(np.float64))


def _about(path, arrays) -> dict[str, Any]:
    if "about" not in arrays:
        return {}
    try:
        about = json.loads(str(arrays["about"]))
        if isinstance(about["network"], dict) and isinstance(about["images"]["count"], int):
            return about
    except (ValueError, KeyError, TypeError):
        pass
    raise BadInput(f"{path}: about is not what this program writes; expected JSON with network and images")

"""Bilinear resizing: linear functions are kept, and NumPy's interpolation of each axis agrees."""

import jax.numpy as jnp
import numpy as np
import pytest

from guidance.nets.resize import bilinear, bilinear_matrix


def test_enlarging_is_bilinear_between_pixel_centres():
    matrix = bilinear_matrix(28, 32)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert (matrix >= 0).all()
    assert ((matrix > 0).sum(1) <= 2).all()
    # linear functions of the centre's place are reproduced, except beyond the outermost centres
    centres, fine = (np.arange(28) + 0.5) / 28, (np.arange(32) + 0.5) / 32
    np.testing.assert_allclose(matrix @ centres, np.clip(fine, centres[0], centres[-1]), atol=1e-12)
    np.testing.assert_array_equal(bilinear_matrix(32, 32), np.eye(32))


@pytest.mark.parametrize(("size", "target"), [(5, 13), (32, 299), (13, 5), (320, 299)])
@pytest.mark.parametrize("centred", [True, False])
def test_equals_interpolation_at_the_stated_places(size, target, centred):
    signal = np.random.default_rng(size).normal(size=size)
    at = [((i + 0.5) * size / target - 0.5) if centred else i * size / target for i in range(target)]
    expected = np.interp(at, np.arange(size), signal)  # holds the end values beyond the ends
    np.testing.assert_allclose(bilinear_matrix(size, target, centred) @ signal, expected, atol=1e-12)


def test_images_are_resized_along_both_axes():
    images = np.random.default_rng(0).normal(size=(2, 6, 9, 3)).astype(np.float32)
    found = bilinear(jnp.asarray(images), 11, centred=False)
    places = [np.arange(11) * n / 11 for n in (6, 9)]
    tall = np.apply_along_axis(lambda column: np.interp(places[0], np.arange(6), column), 1, images)
    expected = np.apply_along_axis(lambda row: np.interp(places[1], np.arange(9), row), 2, tall)
    np.testing.assert_allclose(found, expected, atol=2e-6)

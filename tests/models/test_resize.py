"""Bilinear interpolation against NumPy's, axis by axis."""

import numpy as np
import pytest

from mtl_jax.models.resize import resize


def along(x, axis, size):
    """Linear interpolation between pixel centres along one axis."""
    length = x.shape[axis]
    places = (np.arange(size) + 0.5) * length / size - 0.5
    return np.apply_along_axis(lambda v: np.interp(places, np.arange(length), v), axis, x)


def test_two_pixels_become_four():
    row = np.array([0.0, 1.0], np.float32).reshape(1, 1, 2, 1)
    np.testing.assert_allclose(resize(row, (1, 4)).ravel(), [0, 0.25, 0.75, 1], atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (13, 7), (5, 6), (4, 3)])
def test_any_size(size):
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(resize(x, size), along(along(x, 1, size[0]), 2, size[1]), atol=1e-5)

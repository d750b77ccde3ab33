"""Against TensorFlow's resampling, and by hand."""

import numpy as np
import pytest
import tensorflow as tf

from mtl_jax.data import resample

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(6, 8), (3, 4), (4, 5), (9, 10)])
def test_against_tensorflow(size):
    colours = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    values = RNG.normal(size=(6, 8, 2)).astype(np.float32)
    nearest = tf.image.resize(values, size, "nearest")
    np.testing.assert_array_equal(resample.nearest(values, size), nearest)
    smooth = tf.image.resize(values, size, "bilinear", antialias=True)
    np.testing.assert_allclose(resample.smooth(values, size), smooth, atol=1e-5)
    smooth = tf.image.resize(colours, size, "bilinear", antialias=True)
    ours = resample.smooth(colours, size)
    np.testing.assert_allclose(ours, smooth, atol=1)
    assert ours.dtype == np.uint8 and ours.shape == (*size, 3)


def test_the_same_size_changes_nothing():
    colours = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    known = colours[..., :1] > 50
    np.testing.assert_array_equal(resample.smooth(colours, (6, 8)), colours)
    values = resample.smooth_known(colours.astype(np.float32), known, (6, 8), fill=-1)
    np.testing.assert_allclose(values, np.where(known, colours.astype(int), -1), rtol=1e-6)


def test_unknown_values_mix_with_none():
    row = np.float32([3, 65535, 65535, 5, np.nan, 7, 3, 65535])[None, :, None].repeat(2, axis=0)
    known = np.isfinite(row) & (row < 100)
    half = resample.smooth_known(row, known, (1, 4), fill=np.nan)[0, :, 0]
    # The nearest of each pair is the second one. Weights at distances 1/2 and 3/2 are as 3 to 1.
    np.testing.assert_allclose(half, [np.nan, (3 * 5 + 0) / 3, (3 * 7 + 5 + 3) / 5, np.nan], rtol=1e-6)

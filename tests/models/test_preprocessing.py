"""Images as networks want them, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.preprocessing import CAFFE, IMAGENET, PLAIN, SYMMETRIC, Preprocessing

IMAGE = np.random.default_rng(0).uniform(size=(2, 3, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "preprocessing,expected",
    [
        (IMAGENET, (IMAGE - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
        (SYMMETRIC, 2 * IMAGE - 1),
        (CAFFE, (255 * IMAGE - [123.68, 116.779, 103.939])[..., ::-1]),
        (Preprocessing(bgr=True), IMAGE[..., ::-1]),
        (Preprocessing(mean=(0.1, 0.2, 0.3)), IMAGE - [0.1, 0.2, 0.3]),
        (Preprocessing(std=(0.5, 1.0, 2.0)), IMAGE * [2, 1, 0.5]),
    ],
    ids=["imagenet", "symmetric", "caffe", "bgr", "mean", "std"],
)
def test_values(preprocessing, expected):
    np.testing.assert_allclose(preprocessing(jnp.asarray(IMAGE)), expected, rtol=1e-5, atol=3e-5)


def test_a_plain_one_does_nothing():
    image = jnp.asarray(IMAGE)
    assert PLAIN(image) is image


def test_the_size_of_the_classifiers_images_changes_no_value():
    np.testing.assert_array_equal(Preprocessing(size=300, crop=1.0)(jnp.asarray(IMAGE)), IMAGE)

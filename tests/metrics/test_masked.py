import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.metrics.masked import blank, labelled_mean, masked_mean


def test_mean_over_valid_places_of_each_example():
    value = np.array([[1.0, 2.0, 6.0], [5.0, np.nan, np.nan], [7.0, 8.0, 9.0]], np.float32)
    valid = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(masked_mean(value, valid), [1.5, 5.0, 0.0])


def test_channels_share_the_mask_and_weights_weigh():
    value = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    valid = np.array([1, 0, 0.5, 0], np.float32).reshape(1, 2, 2, 1)
    assert masked_mean(value, valid)[0] == pytest.approx((0 + 1 + 0.5 * (4 + 5)) / 3)


def test_labelled_mean_leaves_out_examples_without_a_label():
    valid = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]], np.float32)
    assert labelled_mean(jnp.array([1.0, 100.0, 3.0]), valid) == 2.0
    assert labelled_mean(jnp.array([1.0, 2.0, 3.0]), np.zeros_like(valid)) == 0.0


def test_blank_keeps_nan_out_of_gradients():
    label = np.array([[np.nan, 1.0]], np.float32)
    valid = np.array([[0.0, 1.0]], np.float32)
    gradient = jax.grad(lambda p: masked_mean((p - blank(label, valid)) ** 2, valid).sum())(jnp.zeros((1, 2)))
    np.testing.assert_array_equal(gradient, [[0.0, -2.0]])

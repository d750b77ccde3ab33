import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mtl_jax.errors import UserError
from mtl_jax.tasks import normals


def loss(kind, pred, label):
    pred, label = (jnp.asarray(x, jnp.float32).reshape(1, 1, -1, 3) for x in (pred, label))
    task = normals.build("normals", kind)
    return float(task.loss(pred, label, task.known(label).astype(jnp.float32))[0])


def test_losses_by_hand():
    pred, label = [(3, 0, 4), (5, 5, 5)], [(0, 0, 1), (0, 0, 0)]
    assert loss("l1", pred, label) == pytest.approx((0.6 + 0.2) / 3)
    label = [(0, 0, 1), (0, 0, 0), (1, 0, 0), (0, 0, -1)]
    pred = [(0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 0, 1)]
    assert loss("cosine", pred, label) == pytest.approx(1 - (1 + np.sqrt(0.5) - 1) / 3, abs=1e-6)


def test_a_normal_whose_components_cancel_is_known():
    label = np.float32([(1, -1, 0), (0, 0, 0), (0, 0, -1), (0, 1, 0)]) * np.float32(np.sqrt(0.5))
    np.testing.assert_array_equal(normals.build("n").known(label)[:, 0], [True, False, True, True])


def test_shortened_labels_are_stretched():
    assert loss("l1", [(0, 0, 1)], [(0, 0, 0.5)]) == pytest.approx(0)
    np.testing.assert_allclose(
        normals.build("n").encode(jnp.array([0.0, 0.3, 0.4])), [0, 0.6, 0.8], rtol=1e-6
    )


def test_flip_mirrors_x():
    np.testing.assert_array_equal(
        normals.build("n").flip(np.float32([0.6, 0.1, 0.8])), np.float32([-0.6, 0.1, 0.8])
    )


def test_rotation_turns_what_is_right_to_what_is_up():
    task = normals.build("n")
    np.testing.assert_allclose(task.rotate(np.float32([1, 0, 0]), np.pi / 2), [0, 1, 0], atol=1e-7)
    turned = task.rotate(np.float32([0.6, 0, 0.8]), np.deg2rad(20))
    np.testing.assert_allclose(turned, [0.563816, 0.205212, 0.8], atol=1e-6)
    vectors = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    expected = Rotation.from_euler("z", 0.7).apply(vectors)
    np.testing.assert_allclose(task.rotate(vectors, 0.7), expected, rtol=1e-5, atol=1e-6)


def test_each_image_of_a_batch_turns_by_its_own_angle():
    label = np.tile(np.float32([1, 0, 0]), (2, 1, 1, 1))
    turned = normals.build("n").rotate(jnp.asarray(label), jnp.array([0.0, np.pi / 2]).reshape(2, 1, 1, 1))
    np.testing.assert_allclose(turned[:, 0, 0], [[1, 0, 0], [0, 1, 0]], atol=1e-6)


def test_distance_is_the_angle():
    a, b = jnp.array([[1.0, 0, 0], [0, 0, 1]]), jnp.array([[0.0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(normals.build("n").distance(a, b), [np.pi / 2, 0], rtol=1e-6)


def test_a_normal_towards_the_camera_is_blue():
    np.testing.assert_array_equal(normals.build("n").colorize(np.float32([[[0, 0, 1]]])), [[[128, 128, 255]]])


def test_unknown_loss_is_named():
    with pytest.raises(UserError, match="'normals' has no loss 'l3': choose one of l1, cosine"):
        normals.build("normals", "l3")

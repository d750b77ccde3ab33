import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from mtl_jax.tasks import parts


def test_an_image_without_people_is_unknown_as_a_whole():
    label = np.zeros((3, 2, 2, 1), np.uint8)
    label[0, 0, 0] = 1
    label[0, 1, 1] = 255
    label[2, 0] = 255
    expected = np.array([[[1, 1], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]], bool)[..., None]
    for array in (label, jnp.asarray(label), tf.constant(label)):
        np.testing.assert_array_equal(parts.build("parts").known(array), expected)


def test_loss_and_metric_skip_it_even_if_it_is_marked_valid():
    task = parts.build("parts")
    label = np.zeros((2, 2, 2, 1), np.int32)
    label[0, 0, 0] = 3
    pred = np.random.default_rng(0).standard_normal((2, 2, 2, 7)).astype(np.float32)
    loss = task.loss(pred, label, np.ones((2, 2, 2, 1), np.float32))
    assert loss[0] > 0.1 and loss[1] == 0
    assert (
        task.loss(pred, label, (label == 0).astype(np.float32))[0] == 0
    )  # parts that are not valid are none
    valid = task.known(label).astype(np.float32)
    both = task.metric().update(pred, label, valid).compute()
    alone = task.metric().update(pred[:1], label[:1], valid[:1]).compute()
    np.testing.assert_equal(both, alone)

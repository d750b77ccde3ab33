import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.tasks import multilabel

TASK = multilabel.build("objects", 4)


def test_the_loss_is_summed_over_the_known_classes():
    raw = np.array([[2.0, -1.0, 0.5, 3.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    label = np.array([[1, 0, 255, 1], [255, 255, 255, 0]], np.float32)
    p = 1 / (1 + np.exp(-raw.astype(np.float64)))
    expected = [-np.log(p[0, 0]) - np.log(1 - p[0, 1]) - np.log(p[0, 3]), np.log(2)]
    batch = (jnp.asarray(x[:, None, None]) for x in (raw, label))
    loss = TASK.loss(*batch, jnp.ones((2, 1, 1, 1)))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_unknown_classes_get_no_gradient():
    label = jnp.array([1, 255, 0, 255], jnp.float32)[None, None, None]
    slope = jax.grad(lambda z: TASK.loss(z, label, jnp.ones((1, 1, 1, 1))).sum())(jnp.zeros((1, 1, 1, 4)))
    np.testing.assert_allclose(slope[0, 0, 0], [-0.5, 0, 0.5, 0], atol=1e-6)


def test_an_image_without_any_class_is_known_and_one_of_unknown_ones_is_not():
    label = np.array([[0, 0, 0, 0], [255, 255, 255, 255], [255, 1, 255, 255]], np.float32)[:, None, None]
    assert TASK.known(label)[:, 0, 0, 0].tolist() == [True, False, True]
    assert np.asarray(TASK.encode(jnp.asarray(label)))[:, 0, 0].tolist() == [[0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_classes_are_independent():
    raw = jnp.array([5.0, 5.0, -5.0, 0.0])[None, None, None]
    assert TASK.activate(raw)[0, 0, 0] == pytest.approx([0.993307, 0.993307, 0.006693, 0.5], abs=1e-6)
    assert np.asarray(TASK.to_label(TASK.activate(raw)))[0, 0, 0].tolist() == [1, 1, 0, 1]


def test_options():
    options = {"objects": {"kind": "multilabel", "num_classes": 2, "class_names": ["cat", "dog"]}}
    task = tasks.build({"objects": {}}, options)["objects"]
    assert task.class_names == ("cat", "dog") and task.channels == task.label_channels == 2
    with pytest.raises(UserError, match="'objects' has 1 class_names but num_classes 2"):
        multilabel.build("objects", 2, ["cat"])

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.tasks import semseg
from mtl_jax.tasks.colors import class_palette


def test_loss_by_hand():
    prob = np.array([[[0.7, 0.2, 0.1], [0.2, 0.6, 0.2]], [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]])
    label = np.array([[0, 1], [255, 2]])[None, ..., None]
    valid = (label != 255).astype(np.float32)
    loss = semseg.build("semseg", 3).loss(jnp.log(prob)[None], label, valid)
    assert loss[0] == pytest.approx(0.363548, abs=1e-6)  # -(ln .7 + ln .6 + ln .8) / 3


def test_loss_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, label = rng.standard_normal((1, 4, 5, 6)), rng.integers(0, 6, (1, 4, 5, 1))
    prob = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = log_loss(label.ravel(), prob.reshape(-1, 6), labels=range(6))
    loss = semseg.build("semseg", 6).loss(jnp.float32(logits), label, jnp.ones((1, 4, 5, 1)))
    assert loss[0] == pytest.approx(expected, rel=1e-5)


def test_distance_is_discrete():
    task = semseg.build("semseg", 3)
    a = jnp.array([[0.6, 0.3, 0.1], [0.0, 1.0, 0.0]])
    b = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(task.distance(a, b), [0, 1])


def test_palette_is_that_of_pascal_voc():
    palette = class_palette(256)
    assert palette[[0, 1, 2, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],  # aeroplane
        [0, 128, 0],  # bicycle
        [192, 128, 128],  # person
        [0, 64, 128],  # tv monitor
    ]
    assert len({tuple(color) for color in palette}) == 256


def test_picture_has_the_colours_of_the_classes():
    task = semseg.build("semseg", 4)
    picture = task.colorize(np.eye(4, dtype=np.float32)[None])
    np.testing.assert_array_equal(picture[0], class_palette(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 3, "class_names": ["a", "b"]}, "'seg' has 2 class_names but num_classes 3"),
        ({"num_classes": 1}, "'seg' has num_classes 1: give at least 2"),
    ],
)
@pytest.mark.parametrize("kind", ["semseg", "classification"])
def test_wrong_classes_are_named(kind, options, message):
    with pytest.raises(UserError, match=message):
        tasks.build({"seg": {}}, {"seg": {"kind": kind, **options}})


def test_results_name_the_classes():
    task = semseg.build("semseg", 2, ["wall", "floor"])
    assert {"IoU_wall", "IoU_floor"} < set(task.metric().compute())


@pytest.mark.parametrize("scored", [["floor", "lamp"], [1, 2], ["floor", 2]])
def test_scored_classes_by_name_or_id(scored):
    labels = {"seg": {"kind": "semseg", "num_classes": 3, "class_names": ("wall", "floor", "lamp")}}
    task = tasks.build({"seg": {"scored": scored}}, labels)["seg"]
    pred = task.encode(jnp.array([[[[1], [1], [2], [0]]]]))
    label = jnp.array([[[[1], [0], [2], [0]]]])
    found = task.metric().update(pred, label, jnp.ones(label.shape)).compute()
    assert found["mIoU"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["IoU_wall"] == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        (["roof"], "'seg' has no class 'roof' to score"),
        ([3], "'seg' has no class 3 to score"),
        ([-1], "'seg' has no class -1 to score"),
        ([0, 0], "name one class or more, each once"),
        ([], "name one class or more, each once"),
    ],
)
def test_wrong_scored_classes_are_named(scored, message):
    with pytest.raises(UserError, match=message):
        tasks.build({"seg": {}}, {"seg": {"kind": "semseg", "num_classes": 3, "scored": scored}})

"""How the losses of partly labelled images are averaged."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.methods import supervised
from mtl_jax.tasks import depth, normals, semseg

TASKS = {
    "semseg": semseg.build("semseg", 3),
    "depth": depth.build("depth"),
    "normals": normals.build("normals", loss="cosine"),
}
ROOT = 0.5**0.5


def maps(given):
    """Predictions and labels of 2x2 images; a row of `given` for each."""
    probabilities = [[[0.7, 0.2, 0.1], [0.2, 0.6, 0.2]], [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]
    outputs = {
        "semseg": np.log(probabilities),
        "depth": np.array([[[2.5], [3]], [[3], [1]]]),
        "normals": np.array([[[0, 0, 1], [1, 0, 0]], [[ROOT, 0, ROOT], [0, 0, 1]]]),
    }
    labels = {
        "semseg": np.array([[[0], [1]], [[255], [2]]], np.int32),
        "depth": np.array([[[2], [0]], [[4], [1]]], np.float32),
        "normals": np.array([[[0, 0, 1], [0, 0, 0]], [[1, 0, 0], [0, 0, -1]]], np.float32),
    }
    count = len(given)

    def repeat(x):
        return jnp.asarray(np.repeat(x[None], count, 0), jnp.int32 if x.dtype == np.int32 else jnp.float32)

    valid = {}
    for k, (name, task) in enumerate(TASKS.items()):
        known = np.asarray(task.known(labels[name]), np.float32)
        valid[name] = jnp.asarray(known * np.asarray(given, np.float32)[:, k, None, None, None])
    return {n: repeat(x) for n, x in outputs.items()}, {n: repeat(x) for n, x in labels.items()}, valid


def test_losses_of_one_image_by_value():
    found = supervised.task_losses(TASKS, *maps([[1, 1, 1]]), "task")
    for name, value in {"semseg": 0.363548, "depth": 0.5, "normals": 0.764298}.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "average", "total"),
    [
        ([[1, 0, 1]], "image", 0.563923),
        ([[1, 0, 1]], "batch", 1.127846),
        ([[1, 0, 1], [0, 1, 0]], "image", 0.531961),
        ([[1, 0, 1], [0, 1, 0]], "batch", 0.813923),
        ([[1, 0, 1], [0, 1, 0]], "task", 0.363548 + 0.5 + 0.764298),
        ([[1, 0, 1], [0, 0, 0]], "image", 0.563923 / 2),
        ([[0, 0, 0]], "image", 0.0),
    ],
)
def test_average(given, average, total):
    found = supervised.task_losses(TASKS, *maps(given), average)
    np.testing.assert_allclose(sum(found.values()), total, atol=1e-6)


def test_an_unknown_average_is_named():
    with pytest.raises(UserError, match="average is 'sum': choose one of task, image, batch"):
        supervised.build(None, {}, average="sum")

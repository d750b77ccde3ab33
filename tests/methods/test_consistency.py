"""Consistency between two colourings of an image, for the tasks whose label is missing."""

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.methods import consistency
from mtl_jax.tasks import classification, detection

SOME = [[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]


def forward(params, image, task):
    """Activated prediction of the pixel network, in float64."""

    def head(x, p):
        return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p["bias"], np.float64)

    raw = head(np.tanh(head(np.asarray(image, np.float64), params["trunk"])), params[f"head@{task}"])
    if task == "semseg":
        raw = np.exp(raw) / np.exp(raw).sum(-1, keepdims=True)
    return raw / np.linalg.norm(raw, axis=-1, keepdims=True) if task == "normals" else raw


def test_loss_by_hand(partial):
    method = consistency.build(partial.Pixels(partial.TASKS), partial.TASKS, weight=2.0)
    batch = partial.make_batch(SOME, views=method.views)
    params, state = partial.variables_of(method, batch)
    loss, metrics, _ = partial.loss_and_gradient(method, batch, params, state)
    expected = 0.0
    for i, given in enumerate(SOME):
        missing = [task for task, has in zip(partial.TASKS, given, strict=True) if not has]
        for task in missing:
            images = batch["image"][i], batch["views"]["strong"]["image"][i]
            weak, strong = (forward(params["model"], image, task) for image in images)
            expected += np.mean((weak - strong) ** 2) / len(missing) / len(SOME)
    np.testing.assert_allclose(metrics["all/consistency"], expected, rtol=1e-5)
    supervised = sum(metrics[f"{task}/loss"] for task in partial.TASKS)
    np.testing.assert_allclose(loss, supervised + 2.0 * expected, rtol=1e-5)


def test_the_first_view_takes_no_gradient(partial):
    method = consistency.build(partial.Pixels(partial.TASKS), partial.TASKS)
    batch = partial.make_batch([[0, 0, 0]], views=method.views)
    params, state = partial.variables_of(method, batch)

    def loss(own, other):
        return method.loss(
            params,
            state,
            {**batch, "image": own, "views": {"strong": {"image": other}}},
            jax.random.key(0),
            0,
        )[0]

    to_own, to_other = jax.grad(loss, (0, 1))(batch["image"], batch["views"]["strong"]["image"])
    assert (to_own == 0).all() and np.abs(to_other).max() > 0


def test_labels_that_are_not_given_have_no_influence(partial):
    method = consistency.build(partial.Pixels(partial.TASKS), partial.TASKS)
    batch = partial.make_batch(SOME, views=method.views)
    clean = partial.loss_and_gradient(method, batch)
    dirty = partial.loss_and_gradient(method, partial.spoilt(batch))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_a_task_of_one_label_per_image_is_refused(partial):
    for task in (classification.build("kind", 3), detection.build("kind", 3)):
        with pytest.raises(UserError, match="'consistency' works on dense tasks: task 'kind' is not dense"):
            consistency.build(partial.Pixels({"kind": task}), {"kind": task})

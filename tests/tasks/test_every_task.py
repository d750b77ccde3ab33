"""What holds for every task, whatever it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from mtl_jax import tasks

OPTIONS = {
    "semseg": {"num_classes": 5},
    "parts": {},
    "depth": {"smoothness": 1.0},
    "normals": {},
    "cosine": {"kind": "normals", "loss": "cosine"},
    "saliency": {},
    "edges": {},
    "mil": {"kind": "edges", "mil_radius": 1},
    "albedo": {},
    "disparity": {"smoothness": 1.0},
    "classification": {"num_classes": 12},
    "reshading": {"kind": "regression"},
    "multilabel": {"num_classes": 2},
    "detection": {"num_classes": 3, "max_boxes": 5},
}
TASKS = tasks.build(dict.fromkeys(OPTIONS, {}), OPTIONS)
jitted = jax.jit(lambda metric, *batch: metric.update(*batch))
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
ENCODED = {name: task for name, task in TASKS.items() if task.values != "boxes"}  # labels as predictions are
every_encoded_task = pytest.mark.parametrize("task", ENCODED.values(), ids=ENCODED.keys())


def update(metric, *batch):
    return metric.update(*batch) if getattr(metric, "on_host", False) else jitted(metric, *batch)


def make_labels(task, batch=4, height=7, width=6, seed=0):
    """Random canonical labels and where they are known; the last example is unknown as a whole."""
    rng = np.random.default_rng(seed)
    shape = (batch, *task.label_size((height, width)))
    if task.values == "boxes":
        corners = np.sort(rng.uniform(0, [height, width], (2, *shape, 2)), axis=0)
        classes = np.where(rng.random(shape) < 0.7, rng.integers(0, len(task.class_names), shape), -1)
        label = np.stack(
            [*np.moveaxis(corners, -1, 1).reshape(4, *shape), classes, rng.random(shape) < 0.2], -1
        )
        shape, label = (batch, 1, 1), label.astype(np.float32)
    elif task.label_dtype == "int32":
        label = rng.integers(0, task.channels, (*shape, 1)).astype(np.int32)
    elif task.headline == "mErr":
        label = rng.standard_normal((*shape, 3)).astype(np.float32)
        label /= np.linalg.norm(label, axis=-1, keepdims=True)
    elif task.headline in ("maxF", "mAP"):
        label = rng.integers(0, 2, (*shape, task.label_channels)).astype(np.float32)
    else:
        label = rng.uniform(0.1, 1, (*shape, task.label_channels)).astype(np.float32)
    known = rng.random((*shape, 1)) < (0.7 if task.label_is_map else 2)
    known[-1] = False
    return np.where(known, label, np.asarray(task.fill, label.dtype)), known


def make_pred(task, label, seed=1):
    shape = (*(label.shape[:3] if task.label_is_map or not task.dense else (len(label), 7, 6)), task.channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@every_task
def test_known_is_not_fill(task):
    label, known = make_labels(task)
    np.testing.assert_array_equal(task.known(label), known)


@every_encoded_task
def test_encoding_lives_in_the_space_of_predictions(task):
    label, known = make_labels(task)
    encoded = task.encode(jnp.asarray(label))
    activated = task.activate(jnp.asarray(make_pred(task, label), jnp.bfloat16))
    assert encoded.shape == activated.shape == (*label.shape[:3], task.channels)
    assert encoded.dtype == activated.dtype == jnp.float32
    assert not np.asarray(encoded)[~known[..., 0]].any()
    results = update(task.metric(), encoded, label, known.astype(np.float32)).compute()
    perfect = 1 if task.better > 0 else 0
    assert results[task.headline] == pytest.approx(perfect, abs=1e-4)


@every_encoded_task
@pytest.mark.parametrize("library", [np, jnp], ids=["NumPy", "JAX"])
def test_an_encoded_label_is_itself_as_a_prediction(task, library):
    label, known = make_labels(task)
    again = task.to_label(library.asarray(task.encode(jnp.asarray(label))))
    assert again.shape == label.shape and again.dtype == task.label_dtype
    known = np.broadcast_to(known, label.shape)
    np.testing.assert_allclose(np.asarray(again)[known], label[known], rtol=1e-6)


@every_encoded_task
def test_what_is_predicted_is_known_as_a_label(task):
    label, _ = make_labels(task)
    pred = make_pred(task, label)
    if task.name == "parts":  # no part at all would mean unknown
        pred[..., 0] = -9
    predict = jax.jit(lambda raw: task.to_label(task.activate(raw)))
    for raw in (pred, -abs(pred), 0 * pred - 10 * (pred == -9)):
        with_jax = predict(raw)
        with_numpy = np.asarray(task.to_label(np.asarray(task.activate(jnp.asarray(raw)))))
        np.testing.assert_allclose(with_jax, with_numpy, rtol=1e-5, atol=1e-6)
        as_stored = with_numpy if task.discrete else with_numpy.astype(np.float16)
        for labels in (with_numpy, as_stored):
            assert np.asarray(task.known(labels)).all()
        if task.headline == "mErr":
            np.testing.assert_allclose(np.linalg.norm(with_numpy, axis=-1), 1, rtol=1e-6)


def test_predictions_become_labels_of_the_tasks_range():
    def to_label(name, values):
        return np.asarray(TASKS[name].to_label(np.float32(values)))

    assert to_label("depth", [[-2.0], [0.0], [2.5]]) == pytest.approx(np.float32([[1e-3], [1e-3], [2.5]]))
    assert to_label("disparity", [[-2.0], [30.0]]) == pytest.approx(np.float32([[1e-3], [30.0]]))
    assert to_label("albedo", [[-0.5, 0.3, 1.2]]) == pytest.approx(np.float32([[0, 0.3, 1]]))
    assert to_label("reshading", [[-0.5], [1.2]]) == pytest.approx(np.float32([[-0.5], [1.2]]))
    assert to_label("saliency", [[0.49], [0.5]]).tolist() == [[0], [1]]
    assert to_label("normals", [[0, 3, 4], [0, 0, 0]]) == pytest.approx(
        np.float32([[0, 0.6, 0.8], [0, 0, 1]])
    )
    assert to_label("semseg", [[0.1, 0.2, 0.3, 0.3, 0.1]]).tolist() == [[2]]


def test_a_predicted_boundary_is_drawn_by_all_annotators():
    (task,) = tasks.build({"edges": {}}, {"edges": {"annotators": 3, "positive_from": 3}}).values()
    label = task.to_label(np.float32([[[[0.4], [0.6]]]]))
    assert label.tolist() == [[[[0, 0, 0], [1, 1, 1]]]]
    assert (task.loss(np.float32([[[[-9], [9]]]]), label, np.ones((1, 1, 2, 1), np.float32)) < 1e-3).all()


@every_encoded_task
def test_loss_falls_towards_the_label(task):
    label, known = make_labels(task)
    valid = known.astype(np.float32)
    target = jnp.asarray(task.encode(jnp.asarray(label)))
    good = 20 * (target - 0.5) if task.better > 0 else target  # logits of classes
    assert (task.loss(good, label, valid) < 1e-4).all()
    assert (task.loss(make_pred(task, label), label, valid)[:-1] > 0.1).all()


@every_encoded_task
def test_what_is_not_valid_has_no_influence(task):
    label, _ = make_labels(task, seed=0)
    pred = make_pred(task, label)
    valid = np.ones((*label.shape[:3], 1), np.float32)
    valid[:, :2, 1:] = 0
    if task.label_dtype != "int32":
        label = np.nan_to_num(label, nan=0.5)
    garbage = np.asarray(200 if task.label_dtype == "int32" else np.nan, label.dtype)
    other = np.where(valid > 0, label, garbage)

    @jax.jit
    def loss_and_gradient(label):
        return task.loss(pred, label, valid), jax.grad(lambda p: task.loss(p, label, valid).sum())(pred)

    for a, b in zip(loss_and_gradient(label), loss_and_gradient(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()
    results, again = (update(task.metric(), task.activate(pred), x, valid).compute() for x in (label, other))
    np.testing.assert_equal(results, again)


@every_task
def test_nothing_valid_costs_nothing(task):
    label, known = make_labels(task)
    valid = np.zeros_like(known, np.float32)
    step = jax.jit(jax.value_and_grad(lambda p: task.loss(p, label, valid).sum()))
    loss, gradient = step(make_pred(task, label))
    assert loss == 0
    assert not np.asarray(gradient).any()


@every_task
def test_the_loss_of_an_example_is_its_own(task):
    label, known = make_labels(task)
    pred, valid = make_pred(task, label), known.astype(np.float32)
    loss = jax.jit(task.loss)
    whole = loss(pred, label, valid)
    assert whole.shape == (4,) and whole.dtype == jnp.float32
    for i in range(4):
        alone = loss(pred[i : i + 1], label[i : i + 1], valid[i : i + 1])
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-6)


@every_task
def test_gradients_are_those_of_finite_differences(task):
    label, known = make_labels(task, batch=2, height=3, width=3)
    pred, valid = make_pred(task, label), known.astype(np.float32)
    direction = np.random.default_rng(2).standard_normal(pred.shape).astype(np.float32)

    @jax.jit
    def along(t):
        return task.loss(pred + t * direction, label, valid).sum()

    step = 1e-2 if task.better > 0 or task.headline == "mErr" else 1e-3
    numeric = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(along)(0.0), numeric, rtol=1e-2, atol=1e-3)


@every_task
def test_results_do_not_depend_on_the_batches(task):
    label, known = make_labels(task)
    batch = [task.decode(task.activate(make_pred(task, label))), label, known.astype(np.float32)]
    whole = update(task.metric(), *batch).compute()
    parts = task.metric()
    for rows, real in (([0, 1], [1, 1]), ([2, 0], [1, 0]), ([1, 3], [0, 1])):  # two rows only pad
        pred, labels, valid = (np.asarray(x)[rows] for x in batch)
        parts = update(parts, pred, labels, valid * np.float32(real)[:, None, None, None])
    assert parts.compute() == pytest.approx(whole, rel=1e-12, nan_ok=True)
    assert task.headline in whole
    assert all(type(value) is float for value in whole.values())


@every_encoded_task
def test_distance_is_zero_to_itself_and_symmetric(task):
    a, _ = make_labels(task, seed=0)
    b, _ = make_labels(task, seed=1)
    a, b = task.encode(jnp.asarray(a[:-1])), task.encode(jnp.asarray(b[:-1]))
    distance = np.asarray(task.distance(a, b))
    assert distance.shape == a.shape[:-1] and distance.dtype == np.float32
    assert not np.asarray(task.distance(a, a)).any()
    np.testing.assert_allclose(distance, task.distance(b, a), rtol=1e-6)
    assert distance.max() > 0.1


@every_task
def test_geometry_is_the_same_on_all_arrays(task):
    label, _ = make_labels(task)
    changes = [
        lambda x, s: task.known(x),
        lambda x, s: task.flip(x),
        lambda x, s: task.rescale(x, s),
        lambda x, s: task.rotate(x, s),
    ]
    for change in changes:
        with_numpy = change(label, np.float32(1.2))
        with_jax = jax.jit(change)(label, jnp.float32(1.2))
        in_graph = tf.function(change)(tf.constant(label), tf.constant(1.2))
        with_float = change(label, 1.2)
        assert with_numpy.dtype == with_jax.dtype == in_graph.numpy().dtype == with_float.dtype
        for other in (with_jax, in_graph.numpy(), with_float):
            np.testing.assert_allclose(with_numpy, other, rtol=1e-6, atol=1e-7)
    # In the input pipeline there is no batch axis.
    np.testing.assert_array_equal(task.known(tf.constant(label[0])), task.known(label)[0])
    np.testing.assert_array_equal(task.flip(task.flip(label)), label)


@every_task
def test_unknown_stays_unknown(task):
    label, known = make_labels(task)
    for changed in (task.flip(label), task.rescale(label, 1.5), task.rotate(label, 0.3)):
        np.testing.assert_array_equal(task.known(changed), known)


@every_encoded_task
def test_pictures(task):
    label, known = make_labels(task)
    encoded = np.array(task.encode(jnp.asarray(label)))[0]
    encoded[~known[0, ..., 0]] = np.nan
    picture = task.colorize(encoded)
    assert picture.dtype == np.uint8 and picture.shape == (*encoded.shape[:2], 3)
    if task.dense:
        colors = set(map(tuple, picture[~known[0, ..., 0]]))
        assert colors == {(89, 89, 89), (166, 166, 166)}
        assert len(set(map(tuple, picture[known[0, ..., 0]]))) >= 2

"""Classifier of regions: the head, its losses against sums by hand, and what it detects against a loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.metrics.average_precision import AveragePrecision
from mtl_jax.models import cost
from mtl_jax.models.detection.boxes import REGION_WEIGHTS
from mtl_jax.models.detection.fast_rcnn import FastRCNNHead, detect, losses
from mtl_jax.models.detection.matching import RegionTargets
from mtl_jax.tasks.boxes import NOTHING
from tests.models.detection import reference

SIZE = (60, 80)
run_detect = jax.jit(functools.partial(detect, size=SIZE), static_argnames=("before", "limit"))


def test_as_many_parameters_as_published():
    head = FastRCNNHead(365)
    regions = jnp.zeros((1, 2, 7, 7, 256))
    (logits, deltas), variables = jax.eval_shape(
        lambda: head.init_with_output(jax.random.key(0), regions, False)
    )
    assert cost.parameters(variables["params"]) == 17_086_246
    assert logits.shape == (1, 2, 366) and deltas.shape == (1, 2, 366, 4)


def test_head_is_what_its_formula_says(random_variables):
    regions = np.random.default_rng(0).normal(size=(2, 3, 1, 1, 5)).astype(np.float32)
    head = FastRCNNHead(2, features=6, convs=2, hidden=7)
    variables = random_variables(head, regions, False)
    params, stats = variables["params"], variables["batch_stats"]
    x = np.float64(regions).reshape(6, 5)

    def norm(x, params, stats):
        (mine,), (running,) = params.values(), stats.values()
        return (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) * mine["scale"] + mine["bias"]

    for name in ("conv0", "conv1"):
        unit = params[name]
        x = x @ unit["conv"]["kernel"][1, 1] + unit["conv"]["bias"]
        x = np.maximum(norm(x, unit["norm"], stats[name]["norm"]), 0)
    x = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    x = np.maximum(norm(x, params["norm"], stats["norm"]), 0)
    expected = {name: x @ params[name]["kernel"] + params[name]["bias"] for name in ("classes", "deltas")}
    logits, deltas = jax.jit(lambda v: head.apply(v, regions, False))(variables)
    np.testing.assert_allclose(logits, expected["classes"].reshape(2, 3, 3), atol=1e-4)
    np.testing.assert_allclose(deltas, expected["deltas"].reshape(2, 3, 3, 4), atol=1e-4)


def test_outputs_are_float32():
    head = FastRCNNHead(2, features=4, hidden=4, dtype=jnp.bfloat16)
    outputs, variables = jax.eval_shape(
        lambda: head.init_with_output(jax.random.key(0), jnp.zeros((1, 2, 3, 3, 4), jnp.bfloat16), True)
    )
    assert {x.dtype for x in jax.tree.leaves((outputs, variables))} == {jnp.dtype("float32")}


def make_pred(batch=3, count=7, classes=3, seed=1):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, count, classes + 1)).astype(np.float32)
    deltas = rng.normal(size=(batch, count, classes + 1, 4)).astype(np.float32)
    targets = RegionTargets(
        boxes=np.zeros((batch, count, 4), np.float32),
        valid=rng.random((batch, count)) < 0.7,
        classes=rng.integers(0, classes + 1, (batch, count)),
        deltas=2 * rng.normal(size=(batch, count, 4)).astype(np.float32),
    )
    return logits, deltas, targets


def test_losses_are_means_by_hand():
    logits, deltas, targets = make_pred()
    known = np.array([True, True, False])
    entropy, errors = [], []
    for b in (0, 1):
        for n in np.flatnonzero(targets.valid[b]):
            class_id = targets.classes[b, n]
            z = np.float64(logits[b, n])
            entropy.append(np.log(np.sum(np.exp(z))) - z[class_id])
            if class_id > 0:
                errors.extend(reference.huber(deltas[b, n, class_id] - targets.deltas[b, n], 1))
    class_loss, box_loss = losses(logits, deltas, targets, known)
    assert class_loss == pytest.approx(np.mean(entropy), rel=1e-5)
    assert box_loss == pytest.approx(np.mean(errors), rel=1e-5)
    assert max(errors) > 1.5 > min(errors)


def test_only_the_deltas_of_the_own_class_learn():
    logits, deltas, targets = make_pred()
    known = np.array([True, True, False])
    gradient = jax.grad(lambda deltas: losses(logits, deltas, targets, known)[1])(deltas)
    learns = np.any(np.asarray(gradient) != 0, axis=-1)
    own = np.arange(4) == targets.classes[..., None]
    expected = own & (targets.valid & (targets.classes > 0) & known[:, None])[..., None]
    np.testing.assert_array_equal(learns, expected)


@pytest.mark.parametrize("what", ["no objects", "no regions", "no label"])
def test_without_objects_there_is_no_loss_of_boxes_and_no_nan(what):
    logits, deltas, targets = make_pred()
    known = np.full(3, what != "no label")
    if what == "no objects":
        targets = targets._replace(classes=0 * targets.classes, deltas=0 * targets.deltas)
    if what == "no regions":
        targets = targets._replace(valid=np.zeros_like(targets.valid))

    def loss(pred):
        return losses(*pred, targets, known)

    gradient = jax.jit(jax.grad(lambda pred: sum(loss(pred))))
    (class_loss, box_loss), (to_logits, to_deltas) = loss((logits, deltas)), gradient((logits, deltas))
    assert box_loss == 0 and not np.any(to_deltas)
    assert np.all(np.isfinite(to_logits))
    assert (class_loss > 0) == np.any(to_logits) == (what == "no objects")


def make_regions(count=40, classes=4, seed=0, confident=2.0):
    rng = np.random.default_rng(seed)
    low = rng.uniform(-5, 45, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 30, (count, 2))], axis=1).astype(np.float32)
    logits = confident * rng.normal(size=(count, classes + 1)).astype(np.float32)
    deltas = rng.normal(size=(count, classes + 1, 4)).astype(np.float32)
    return logits, deltas, boxes, rng.random(count) < 0.9


@pytest.mark.parametrize("limit", [10, 200])
def test_detections_are_those_of_a_loop_over_classes(limit):
    logits, deltas, boxes, valid = make_regions()
    exp = np.exp(np.float64(logits))
    probability = exp / exp.sum(1, keepdims=True)
    found, candidates = [], 0
    for k in range(4):
        decoded = [
            reference.clip(reference.decode(d[k + 1], box, REGION_WEIGHTS), SIZE)
            for d, box in zip(deltas, boxes, strict=True)
        ]
        scores = probability[:, k + 1]
        possible = valid & (scores > 0.05) & [reference.area(box) > 0 for box in decoded]
        candidates += possible.sum()
        for i in reference.nms(decoded, scores, possible, 0.5):
            found.append([*decoded[i], k, scores[i]])
    found = sorted(found, key=lambda row: -row[5])[:limit]
    rows = np.asarray(run_detect(logits, deltas, boxes, valid, limit=limit))
    assert rows.shape == (limit, 1, 6) and len(found) < candidates
    np.testing.assert_allclose(rows[: len(found), 0], found, atol=1e-3)
    assert np.all(rows[len(found) :] == np.float32(NOTHING))


def test_boxes_of_different_classes_do_not_remove_each_other():
    boxes = np.float32([[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16], [0, 30, 10, 40]])
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    deltas, valid = np.zeros((4, 3, 4), np.float32), np.ones(4, bool)

    def kept(classes):
        """Class and left edge."""
        probability = np.full((4, 3), 1e-6)
        probability[np.arange(4), classes] = scores
        probability[:, 0] = 1 - scores
        rows = np.asarray(run_detect(np.log(probability).astype(np.float32), deltas, boxes, valid))[:, 0]
        return [(int(row[4]), round(float(row[1]))) for row in rows if row[4] >= 0]

    assert kept([1, 1, 1, 1]) == [(0, 0), (0, 6), (0, 30)]
    assert kept([1, 2, 1, 2]) == [(0, 0), (1, 3), (0, 6), (1, 30)]


def test_few_candidates_and_few_regions():
    logits, deltas, boxes, valid = make_regions(count=3)
    rows = np.asarray(run_detect(logits, deltas, boxes, valid, before=2))[:, 0]
    assert rows.shape == (100, 6) and np.sum(rows[:, 4] >= 0) <= 2
    none = np.asarray(run_detect(logits, deltas, boxes, np.zeros(3, bool), before=2))[:, 0]
    assert np.all(none == np.float32(NOTHING))


def test_the_metric_reads_detections():
    logits = np.float32([[[-9, 9, -9], [9, -9, -9]]])
    boxes = np.float32([[[2, 3, 20, 30], [4, 4, 9, 9]]])
    rows = jax.vmap(run_detect)(logits, np.zeros((1, 2, 3, 4), np.float32), boxes, np.ones((1, 2), bool))
    label = np.float32([[[[2, 3, 20, 30, 0, 0]], [[0, 0, 0, 0, -1, 0]]]])
    metric = AveragePrecision.empty(("a", "b")).update(rows, label, np.ones((1, 1, 1, 1)))
    assert metric.compute()["AP"] == pytest.approx(1)

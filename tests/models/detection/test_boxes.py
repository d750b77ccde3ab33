"""Overlaps and the coder of boxes, against loops, torchvision and numbers worked out by hand."""

import jax
import numpy as np
import pytest

from mtl_jax.models.detection import boxes
from tests.models.detection import reference
from tests.weights import conftest

torch, torchvision = conftest.torch, conftest.torchvision


def pairs(seed=0):
    rng = np.random.default_rng(seed)
    return reference.random_boxes(rng, 40), reference.random_boxes(rng, 30)


@pytest.mark.parametrize("name", ["iou", "within"])
def test_overlaps_are_those_of_a_loop(name):
    a, b = pairs()
    expected = [[getattr(reference, name)(x, y) for y in b] for x in a]
    ours = jax.jit(getattr(boxes, name))(a, b)
    assert 0 < np.mean(np.array(expected) > 0) < 1 and any(reference.area(x) == 0 for x in a)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_torchvision_has_the_same_iou(torch, torchvision):
    rng = np.random.default_rng(1)
    low = rng.uniform(-10, 100, (2, 25, 2))
    a, b = np.concatenate([low, low + rng.uniform(1, 60, (2, 25, 2))], axis=-1).astype(np.float32)
    theirs = torchvision.ops.box_iou(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(boxes.iou(a, b), theirs, atol=1e-6)


def test_nothing_is_added_to_a_length():
    assert boxes.iou(np.float32([[0, 0, 10, 10]]), np.float32([[0, 3, 10, 13]]))[0, 0] == pytest.approx(
        7 / 13
    )
    # Two boxes that only touch.
    assert boxes.iou(np.float32([[0, 0, 10, 10]]), np.float32([[0, 10, 10, 20]]))[0, 0] == 0
    assert boxes.area(np.float32([5, 5, 4, 3])) == 0


def test_coder_by_hand():
    anchor, box = np.float32([0, 0, 10, 10]), np.float32([2, 1, 12, 9])
    weights = boxes.REGION_WEIGHTS
    np.testing.assert_allclose(boxes.encode(box, anchor), [0.2, 0, 0, -0.223144], atol=1e-6)
    np.testing.assert_allclose(boxes.encode(box, anchor, weights), [2, 0, 0, -1.115718], atol=1e-5)
    np.testing.assert_allclose(boxes.decode(np.float32([0.2, 0, 0, -0.223144]), anchor), box, atol=1e-4)
    np.testing.assert_allclose(
        boxes.decode(np.float32([2, 0, 0, -1.115718]), anchor, weights), box, atol=1e-4
    )


def test_sides_grow_625_fold_at_most():
    grown = boxes.decode(np.float32([0, 0, 10, 4.2]), np.float32([0, 0, 10, 10]))
    np.testing.assert_allclose(grown, [5 - 312.5, 5 - 312.5, 5 + 312.5, 5 + 312.5], rtol=1e-5)
    # With weights the limit holds of the log of the ratio, not of the delta.
    free = boxes.decode(np.float32([0, 0, 5 * np.log(3), 0]), np.float32([0, 0, 10, 10]), (10, 10, 5, 5))
    np.testing.assert_allclose(free, [-10, 0, 20, 10], atol=1e-4)


@pytest.mark.parametrize("weights", [(1.0,) * 4, (10.0, 10.0, 5.0, 5.0)])
def test_decoding_inverts_encoding(weights):
    rng = np.random.default_rng(2)
    low = rng.uniform(-50, 800, (2, 200, 2))
    box, anchor = np.concatenate([low, low + rng.uniform(4, 200, (2, 200, 2))], axis=-1).astype(np.float32)
    deltas = boxes.encode(box, anchor, weights)
    expected = [reference.encode(b, a, weights) for b, a in zip(box, anchor, strict=True)]
    np.testing.assert_allclose(deltas, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(boxes.decode(deltas, anchor, weights), box, atol=5e-4)
    # Of one size that is exact to 1e-4 pixels.
    near = anchor + np.float32([0.3, -0.2, 1.1, 0.7])
    np.testing.assert_allclose(boxes.decode(boxes.encode(near, anchor), anchor), near, atol=2e-4)


def test_clipping_to_the_image_itself():
    box = np.float32([[-3, 5, 20, 99], [30, 50, 31, 60]])
    np.testing.assert_array_equal(boxes.clip(box, (30, 40)), [[0, 5, 20, 40], [30, 40, 30, 40]])
    np.testing.assert_array_equal(jax.jit(boxes.clip)(box, np.float32([30, 40])), boxes.clip(box, (30, 40)))

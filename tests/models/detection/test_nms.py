"""Suppression of all boxes at once against the sequential algorithm."""

import functools

import jax
import numpy as np
import pytest

from mtl_jax.models.detection.nms import nms
from tests.models.detection import reference
from tests.weights import conftest

torch, torchvision = conftest.torch, conftest.torchvision

CASES, COUNT = 1200, 24
FOUR = np.float32([[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16], [0, 30, 10, 40]])
SCORES = np.float32([0.9, 0.8, 0.7, 0.6])


def kept(boxes, scores, threshold, classes=None, valid=None):
    valid = np.ones(len(boxes), bool) if valid is None else valid
    run = jax.jit(nms, static_argnames=("before", "after"))
    index, stays = run(boxes, scores, valid, threshold, len(boxes), len(boxes), classes)
    return np.asarray(index)[np.asarray(stays)].tolist()


@functools.cache
def cases():
    rng = np.random.default_rng(0)
    boxes = np.stack([reference.random_boxes(rng, COUNT, 8) for _ in range(CASES)])
    scores = rng.integers(0, 8, (CASES, COUNT)).astype(np.float32) / 8  # many are equal
    scores[::10] = 0.5
    valid = rng.random((CASES, COUNT)) < 0.85
    valid[7::100] = False
    some = rng.choice([0.1, 0.25, 0.3, 0.5, 0.7, 0.9], CASES)  # 1/4 and 1/2 are hit exactly
    threshold = np.where(rng.random(CASES) < 0.8, some, rng.uniform(0.01, 0.99, CASES))
    classes = rng.integers(0, 3, (CASES, COUNT))
    return boxes, scores, valid, threshold, classes


@pytest.mark.parametrize("before,after,per_class", [(24, 24, False), (24, 24, True), (15, 6, True)])
def test_what_stays_is_what_the_sequential_algorithm_keeps(before, after, per_class):
    def run(boxes, scores, valid, threshold, classes):
        return nms(boxes, scores, valid, threshold, before, after, classes if per_class else None)

    index, stays = map(np.asarray, jax.jit(jax.vmap(run))(*cases()))
    assert index.shape == (CASES, min(before, after))
    removed = 0
    for k, (boxes, scores, valid, threshold, classes) in enumerate(zip(*cases(), strict=True)):
        classes = classes if per_class else None
        expected = reference.nms(boxes, scores, valid, threshold, before, None, classes)
        assert index[k][stays[k]].tolist() == expected[:after], k
        assert stays[k].tolist() == sorted(stays[k], reverse=True)
        removed += min(valid.sum(), before) - len(expected)
    assert removed > CASES / 2


def test_a_removed_box_removes_none():
    assert kept(FOUR, SCORES, 0.5) == [0, 2, 3]
    assert kept(FOUR, SCORES, 0.6) == [0, 1, 2, 3]
    assert kept(FOUR, SCORES, 0.5, np.array([1, 2, 1, 2])) == [0, 1, 2, 3]
    assert kept(FOUR, SCORES, 0.5, valid=np.array([False, True, True, True])) == [1, 3]


def test_a_chain_as_long_as_there_are_boxes():
    start = 3 * np.arange(200, dtype=np.float32)
    boxes = np.stack([0 * start, start, 0 * start + 10, start + 10], axis=1)
    order = np.random.default_rng(0).permutation(200)
    expected = [int(np.flatnonzero(order == i)[0]) for i in range(0, 200, 2)]
    assert kept(boxes[order], -start[order], 0.5) == expected


def test_an_overlap_of_the_threshold_itself_is_no_reason():
    boxes = np.float32([[0, 0, 4, 2], [0, 0, 4, 1]])
    assert kept(boxes, np.float32([1, 1]), 0.5) == [0, 1]
    assert kept(boxes, np.float32([1, 1]), 0.499) == [0]
    assert kept(boxes, np.float32([1, 2]), 0.499) == [1]


def test_large_images_with_many_classes_lose_no_precision():
    boxes = np.float32([[0, 1300, 10, 1310], [0, 1300.02, 10, 1310], [0, 1300, 10, 1310]])
    classes = np.array([364, 364, 363])
    assert kept(boxes, np.float32([3, 2, 1]), 0.9979, classes) == [0, 2]
    assert kept(boxes, np.float32([3, 2, 1]), 0.9981, classes) == [0, 1, 2]


def test_torchvision_keeps_the_same(torch, torchvision):
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 60, (120, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 40, (120, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(120).astype(np.float32)
    for threshold in (0.2, 0.5, 0.8):
        try:
            theirs = torchvision.ops.nms(torch.tensor(boxes), torch.tensor(scores), threshold)
        except (RuntimeError, NotImplementedError):
            pytest.skip("torchvision's own operators are not built for this torch")
        assert kept(boxes, scores, threshold) == theirs.tolist()

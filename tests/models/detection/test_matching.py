"""Targets of anchors and regions against loops over boxes, and what is drawn of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.detection import matching
from mtl_jax.models.detection.boxes import REGION_WEIGHTS
from tests.models.detection import reference

CASES, ANCHORS, ROWS = 150, 50, 6
anchor_targets = jax.jit(matching.anchor_targets, static_argnames="samples")
region_targets = jax.jit(matching.region_targets, static_argnames="samples")
EMPTY = np.float32([[0, 0, 0, 0, -1, 0]] * ROWS)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def cases():
    rng = np.random.default_rng(0)
    anchors = np.stack([reference.random_boxes(rng, ANCHORS) + [0, 0, 1, 1] for _ in range(CASES)])
    rows = np.stack([reference.random_rows(rng, ROWS) for _ in range(CASES)])
    rows[0] = EMPTY
    rows[1], rows[1, 2] = EMPTY, [3, 3, 9, 9, 1, 1]  # a hard one alone
    rows[2] = np.nan  # an unknown label
    rows[3, 1] = rows[3, 0] = [0, 0, 8, 20, 0, 0]  # twice the same, at the border
    rows[4], rows[4, 0] = EMPTY, [3, 3, 3, 12, 0, 0]  # an object without area
    return anchors.astype(np.float32), rows


def anchor_labels(anchors, rows, positive=0.7, negative=0.3):
    """Of each anchor: the object's row, -1 for negative, -2 for neither."""
    labels = []
    objects = [k for k, row in enumerate(rows) if reference.is_object(row)]
    for anchor in anchors:
        overlaps = [reference.iou(anchor, rows[k]) for k in objects]
        hidden = max((reference.within(anchor, row) for row in rows if reference.is_hard(row)), default=0)
        best = max(overlaps, default=0)
        if best >= positive:
            labels.append(objects[overlaps.index(best)])
        else:
            labels.append(-1 if best < negative and hidden < negative else -2)
    for k in reversed(objects):  # so that the first has the last word
        overlaps = [reference.iou(anchor, rows[k]) for anchor in anchors]
        if max(overlaps) > 0:
            labels[int(np.argmax(overlaps))] = k
    return labels


def test_anchors_learn_what_a_loop_says():
    anchors, rows = cases()
    targets = jax.jit(jax.vmap(functools.partial(matching.anchor_targets, samples=8)))(
        keys(CASES), anchors, rows
    )
    seen = set()
    for k in range(CASES):
        labels = np.array(anchor_labels(anchors[k], rows[k]))
        positive, negative = labels >= 0, labels == -1
        seen |= {(bool(positive.sum() > 4), bool((labels == -2).any()))}
        np.testing.assert_array_equal(targets.positive[k], positive, err_msg=str(k))
        sampled = np.asarray(targets.sampled[k])
        assert not np.any(sampled & ~positive & ~negative)
        count = min(4, positive.sum())
        assert np.sum(sampled & positive) == count
        assert np.sum(sampled & negative) == min(8 - count, negative.sum())
        expected = [
            reference.encode(rows[k, label], anchor) if label >= 0 else np.zeros(4)
            for label, anchor in zip(labels, anchors[k], strict=True)
        ]
        np.testing.assert_allclose(targets.deltas[k], expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 4
    for k in (0, 1, 2, 4):
        assert not np.any(targets.positive[k])
    assert np.sum(targets.sampled[0]) == 8


def test_best_anchor_of_an_object_is_positive_however_small_the_overlap():
    anchors = np.float32([[0, 0, 10, 10], [20, 20, 30, 30], [0, 20, 10, 30], [40, 40, 50, 50]])
    rows = EMPTY.copy()
    rows[1] = [24, 24, 26, 26, 0, 0]
    rows[3] = [25, 25, 28, 28, 1, 0]  # overlaps the same anchor more
    rows[4] = [5, 18, 8, 22, 1, 0]
    targets = anchor_targets(jax.random.key(0), anchors, rows)
    np.testing.assert_array_equal(targets.positive, [False, True, True, False])
    np.testing.assert_allclose(targets.deltas[1], reference.encode(rows[1], anchors[1]), atol=1e-6)
    np.testing.assert_array_equal(targets.sampled, [True] * 4)


def test_overlaps_of_the_thresholds_themselves():
    anchors = np.float32([[0, 0, 10, 10], [0, 0, 7, 10], [0, 0, 6.9, 10], [0, 0, 3, 10], [0, 0, 2.9, 10]])
    rows = EMPTY.copy()
    rows[0] = [0, 0, 10, 10, 0, 0]
    targets = anchor_targets(jax.random.key(0), anchors, rows)
    np.testing.assert_array_equal(targets.positive, [True, True, False, False, False])
    np.testing.assert_array_equal(targets.sampled, [True, True, False, False, True])
    halves = np.float32([[0, 0, 5, 10], [0, 0, 5.1, 10], [0, 0, 4.9, 10]])
    drawn = region_targets(jax.random.key(0), halves, np.ones(3, bool), rows, samples=8)
    found = {tuple(box): int(k) for box, k in zip(np.asarray(drawn.boxes), drawn.classes, strict=True)}
    assert found == {tuple(rows[0, :4]): 1, tuple(halves[1]): 1, tuple(halves[2]): 0}


def test_hard_objects_are_neither_positive_nor_negative():
    anchors = np.float32([[0, 0, 10, 10], [0, 0, 10, 100], [50, 50, 60, 60]])
    rows = EMPTY.copy()
    rows[0] = [0, 0, 10, 10, 2, 1]
    targets = anchor_targets(jax.random.key(0), anchors, rows)
    assert not np.any(targets.positive)
    np.testing.assert_array_equal(targets.sampled, [False, True, True])
    drawn = region_targets(jax.random.key(0), anchors, np.ones(3, bool), rows, samples=4)
    assert np.sum(drawn.valid) == 2 and not np.any(drawn.classes)
    # The hard row's own box is no region.
    assert not any(np.array_equal(box, rows[0, :4]) for box in np.asarray(drawn.boxes))


def test_regions_learn_what_a_loop_says():
    proposals, rows = cases()
    valid = np.random.default_rng(1).random((CASES, ANCHORS)) < 0.9
    run = functools.partial(matching.region_targets, samples=24)
    targets = jax.jit(jax.vmap(run))(keys(CASES), proposals, valid, rows)
    positives = 0
    for k in range(CASES):
        objects = [row for row in rows[k] if reference.is_object(row)]
        possible = [*proposals[k][valid[k]], *(row[:4] for row in objects)]
        labels = {}
        for box in possible:
            overlaps = [reference.iou(box, row) for row in objects]
            best = max(overlaps, default=0)
            hidden = max((reference.within(box, r) for r in rows[k] if reference.is_hard(r)), default=0)
            if best > 0.5:
                row = objects[overlaps.index(best)]
                labels[tuple(box)] = int(row[4]) + 1, reference.encode(row, box, REGION_WEIGHTS)
            elif best < 0.5 and hidden < 0.5:
                labels[tuple(box)] = 0, np.zeros(4)
        in_all = [labels[tuple(box)][0] > 0 for box in possible if tuple(box) in labels]
        count = min(6, sum(in_all))
        drawn = np.asarray(targets.valid[k])
        assert drawn.sum() == min(count + len(in_all) - sum(in_all), count + 24 - count, 24)
        assert np.sum(np.asarray(targets.classes[k])[drawn] > 0) == count
        positives += count
        for box, class_id, deltas in zip(
            targets.boxes[k], targets.classes[k], targets.deltas[k], strict=True
        ):
            expected = labels[tuple(np.asarray(box))]
            assert class_id == expected[0]
            np.testing.assert_allclose(deltas, expected[1], rtol=1e-4, atol=1e-4)
    assert positives > CASES


def test_padding_is_no_region_and_too_few_are_repeated():
    proposals = np.float32([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 0, 0], [0, 0, 9, 10]])
    valid = np.array([True, True, False, True])
    rows = EMPTY.copy()
    rows[2] = [0, 1, 10, 10, 4, 0]
    drawn = region_targets(jax.random.key(1), proposals, valid, rows, samples=16)
    boxes = np.asarray(drawn.boxes)
    assert np.sum(drawn.valid) == 4
    assert {tuple(b) for b in boxes[:4]} == {tuple(b) for b in [*proposals[valid], rows[2, :4]]}
    np.testing.assert_array_equal(boxes, np.tile(boxes[:4], (4, 1)))
    assert sorted(np.asarray(drawn.classes)[:4]) == [0, 5, 5, 5]
    none = region_targets(jax.random.key(1), proposals, np.zeros(4, bool), EMPTY, samples=16)
    assert not np.any(none.valid) and np.all(np.isfinite(none.deltas))


def test_enough_regions_leave_none_without_area():
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 80, (600, 2))
    proposals = np.concatenate([low, low + rng.uniform(2, 20, (600, 2))], axis=1).astype(np.float32)
    proposals[::40] = 0
    rows = np.tile(np.float32([-1, -1, -1, -1, -1, 0]), (100, 1))
    rows[:2] = [[10, 10, 40, 40, 0, 0], [50, 20, 70, 90, 3, 0]]
    drawn = region_targets(jax.random.key(0), proposals, proposals[:, 2] > 0, rows)
    boxes = np.asarray(drawn.boxes)
    assert np.all(drawn.valid) and len(boxes) == 512
    assert np.all(boxes >= 0) and np.all(boxes[:, 2:] > boxes[:, :2])
    assert len(np.unique(boxes, axis=0)) == 512


def test_equal_keys_draw_the_same_and_others_do_not():
    anchors = np.random.default_rng(0).uniform(0, 50, (400, 2))
    anchors = np.concatenate([anchors, anchors + 9], axis=1).astype(np.float32)
    draw = functools.partial(anchor_targets, samples=40)
    of = [np.asarray(draw(key, anchors, EMPTY).sampled) for key in (*keys(6), keys(6)[0])]
    np.testing.assert_array_equal(of[0], of[-1])
    assert len({mask.tobytes() for mask in of}) == 6
    assert all(mask.sum() == 40 for mask in of)


def test_all_are_drawn_equally_often():
    positive = np.arange(30) % 3 == 0  # 10, of which 4 are drawn
    negative = np.arange(30) % 3 == 1  # 10, of which 4 are drawn
    draws = 3000
    index, drawn = jax.vmap(lambda key: matching.sample(key, positive, negative, 8, 0.5))(keys(draws))
    assert np.all(drawn) and np.all(positive[index[:, :4]]) and np.all(negative[index[:, 4:]])
    often = np.bincount(np.asarray(index).ravel(), minlength=30)
    expected = np.where(positive | negative, 0.4, 0)
    assert np.all(np.abs(often / draws - expected) <= 5 * np.sqrt(0.24 / draws))
    together = np.mean(np.any(index == 0, axis=1) & np.any(index == 3, axis=1))
    assert together == pytest.approx(4 / 10 * 3 / 9, abs=0.03)


def test_one_program_for_any_number_of_objects():
    traced = []

    @jax.jit
    def run(key, anchors, rows):
        traced.append(1)
        return (
            matching.anchor_targets(key, anchors, rows, samples=8),
            matching.region_targets(key, anchors, jnp.ones(ANCHORS, bool), rows, samples=8),
        )

    anchors, rows = cases()
    for k in (0, 5, 6, 7):
        run(jax.random.key(k), anchors[k], rows[k])
    assert len(traced) == 1

"""Centres: targets, loss and detections against plain loops, and a detector that learns."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from mtl_jax import tasks
from mtl_jax.errors import UserError
from mtl_jax.metrics.average_precision import overlaps
from mtl_jax.tasks import detection

CLASSES = ["cat", "dog", "cow"]
TASK = detection.build("boxes", 3, CLASSES, max_boxes=6)
SIZE = (24, 30)


def make_label(*images, rows=6):
    """f32[B,rows,1,6] of lists of (ymin, xmin, ymax, xmax, class, hard)."""
    label = np.tile(np.float32([0, 0, 0, 0, -1, 0]), (len(images), rows, 1))
    for i, image in enumerate(images):
        label[i, : len(image)] = np.float32(image).reshape(-1, 6)
    return label[:, :, None]


LABEL = make_label(
    [(2, 3, 9, 14, 0, 0), (5, 7, 20, 12, 0, 0), (10.5, 14.25, 23, 30, 2, 0), (1, 16, 12, 28, 0, 1)],
    [],
    [(0, 0, 24, 30, 1, 0), (11, 14, 13, 16, 1, 0), (4, 4, 4.5, 4.25, 2, 0)],
)
KNOWN = np.ones((3, 1, 1, 1), np.float32)


def make_pred(seed=0, batch=3):
    return np.random.default_rng(seed).standard_normal((batch, *SIZE, 5)).astype(np.float32)


def plain_loss(pred, rows):
    """Of one image in float64, pixel by pixel, with probabilities as they stand in the paper."""
    pred, total, count = np.float64(pred), 0.0, 0
    target, hard = np.zeros((*SIZE, 3)), np.zeros((*SIZE, 3), bool)
    for y0, x0, y1, x1, class_id, is_hard in np.float64(rows):
        if class_id < 0:
            continue
        h, w, k = y1 - y0, x1 - x0, int(class_id)
        y, x = int((y0 + y1) / 2), int((x0 + x1) / 2)
        if is_hard:
            for place in itertools.product(range(SIZE[0]), range(SIZE[1])):
                hard[(*place, k)] |= y0 <= place[0] + 0.5 <= y1 and x0 <= place[1] + 0.5 <= x1
            continue
        count += 1
        r = min(np.roots([4, -2 * (h + w), 0.3 * h * w]).real)
        sigma = (2 * r + 1) / 6
        for place in itertools.product(range(SIZE[0]), range(SIZE[1])):
            value = np.exp(-((place[0] - y) ** 2 + (place[1] - x) ** 2) / (2 * sigma**2))
            target[(*place, k)] = max(target[(*place, k)], value)
        total += 0.1 * (abs(pred[y, x, 3] - h) + abs(pred[y, x, 4] - w))
    p = 1 / (1 + np.exp(2.19 - pred[..., :3]))
    positive = -((1 - p) ** 2) * np.log(p)
    negative = -((1 - target) ** 4) * p**2 * np.log(1 - p)
    total += np.where(target == 1, positive, np.where(hard, 0, negative)).sum()
    return total / max(count, 1)


loss = jax.jit(TASK.loss)
gradient = jax.jit(jax.grad(lambda pred, label, valid: TASK.loss(pred, label, valid).sum()))


def test_the_loss_is_that_of_the_paper():
    pred = make_pred()
    expected = [plain_loss(p, rows[:, 0]) for p, rows in zip(pred, LABEL, strict=True)]
    np.testing.assert_allclose(loss(pred, LABEL, KNOWN), expected, rtol=2e-4)


def test_beside_the_middle_of_a_large_box_nothing_is_an_object():
    """However close to 1 its target is there."""
    label = np.array(LABEL)
    y, x = SIZE[0] // 2, SIZE[1] // 2
    label[1, 0, 0] = [y - 200, x - 200, y + 200, x + 200, 1, 0]
    pred = make_pred()
    expected = plain_loss(pred[1], label[1, :, 0])
    np.testing.assert_allclose(loss(pred, label, KNOWN)[1], expected, rtol=2e-4)


def test_the_radius_keeps_the_overlap_and_a_larger_one_does_not():
    """Of any box whose corners are off by no more, and of those at the greatest distance."""
    rng = np.random.default_rng(0)
    for height, width in [(10, 10), (3, 40), (17.5, 60), (200, 150), *rng.uniform(1, 100, (20, 2))]:
        r = float(detection.radius(jnp.float32(height), jnp.float32(width)))
        assert 0 < r < min(height, width) / 2
        box = np.array([[0, 0, height, width]])
        far = r * np.array(list(itertools.product((-1, 0, 1), repeat=4)))
        some = rng.uniform(-r, r, (300, 4))
        assert overlaps(box, box + np.concatenate([far, some])).min() >= 0.7 - 1e-5
        assert overlaps(box, box + 1.02 * far).min() < 0.7
    assert detection.radius(jnp.float32(0), jnp.float32(0)) == 0


def test_an_image_without_boxes_learns_that_there_are_none():
    pred = make_pred()
    slope = np.asarray(gradient(pred, LABEL, KNOWN))
    assert np.isfinite(slope).all()
    assert (slope[1, ..., :3] > 0).all() and not slope[1, ..., 3:].any()
    assert loss(pred, LABEL, KNOWN)[1] > 0


def test_nothing_is_learnt_from_a_label_that_is_not_valid():
    pred, valid = make_pred(), KNOWN * [[[[0]]], [[[1]]], [[[0]]]]
    garbage = np.where(valid > 0, LABEL, np.nan)
    for label in (LABEL, garbage, np.where(valid > 0, LABEL, 7e8)):
        np.testing.assert_array_equal(
            loss(pred, label, valid), np.float32([0, 1, 0]) * loss(pred, LABEL, KNOWN)
        )
        slope = np.asarray(gradient(pred, label, valid))
        assert not slope[[0, 2]].any() and np.isfinite(slope).all() and slope[1].any()


def test_rows_that_fill_up_and_their_order_make_no_difference():
    pred = make_pred()
    other = np.concatenate([LABEL, make_label([], [], [], rows=3)], axis=1)[:, [5, 2, 6, 0, 3, 7, 1, 4, 8]]
    np.testing.assert_allclose(loss(pred, other, KNOWN), loss(pred, LABEL, KNOWN), rtol=1e-6)


def test_a_hard_box_is_neither_an_object_nor_none():
    """Within it, its class has no gradient but at the centre of an object; other classes do."""
    label = make_label([(4, 4, 12, 14, 0, 1), (6, 6, 9, 9, 0, 0)])
    slope = np.asarray(gradient(make_pred(batch=1), label, KNOWN[:1]))[0]
    inside = np.zeros((*SIZE, 3), bool)
    inside[4:12, 4:14, 0] = True
    inside[7, 7, 0] = False
    np.testing.assert_array_equal(slope[..., :3] == 0, inside)
    assert slope[7, 7, 0] < 0
    assert (slope[..., 3:] != 0).sum() == 2  # the size is learnt at the centre alone


def as_activated(label):
    """f32[B,*SIZE,5] in which the rows of a label are peaks, with scores 0.9, 0.85, ..."""
    maps = np.zeros((len(label), *SIZE, 5), np.float32)
    for i, rows in enumerate(label[:, :, 0]):
        for k, (y0, x0, y1, x1, class_id, _) in enumerate(rows):
            if class_id >= 0:
                y, x = int((y0 + y1) / 2), int((x0 + x1) / 2)
                maps[i, y, x, int(class_id)] = 0.9 - 0.05 * k
                maps[i, y, x, 3:] = y1 - y0, x1 - x0
    return maps


def test_detections_are_boxes_about_the_peaks():
    boxes = [
        (2, 3, 9, 14, 0, 0),
        (5, 7, 20, 12, 0, 0),
        (9, 14, 24, 29, 2, 0),
    ]  # odd sizes: centred on a pixel
    maps = as_activated(make_label(boxes, []))
    maps[0, 5, 9, 0] = 0.89  # beside the first peak: no peak
    maps[0, 6, 9, 0] = 0.0
    found = np.asarray(jax.jit(TASK.decode)(maps))
    assert found.shape == (2, 100, 1, 6)
    expected = [(*box[:5], 0.9 - 0.05 * k) for k, box in enumerate(boxes)]
    np.testing.assert_allclose(found[0, :3, 0], expected, atol=1e-6)
    assert (found[0, 3:, 0] == [0, 0, 0, 0, -1, 0]).all() and (found[1, :, 0, 4] == -1).all()


def test_detections_stay_within_the_image_and_are_the_best_hundred():
    maps = np.random.default_rng(0).uniform(0.1, 1, (2, *SIZE, 5)).astype(np.float32)
    maps[..., 3:] *= 30
    found = np.asarray(TASK.decode(maps))[:, :, 0]
    assert (found[..., :4] >= 0).all() and (found[..., 2:4] <= SIZE).all()
    scores = maps[..., :3]
    around = np.pad(scores, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(around, (3, 3), (1, 2)).max((-2, -1))
    for i in range(2):
        peaks = np.sort(scores[i][scores[i] == windows[i]])[::-1]
        assert len(peaks) > 100
        np.testing.assert_array_equal(found[i, :, 5], peaks[:100])


def test_activated_are_probabilities_and_sizes():
    raw = np.float32([[[[0, 2.19, 50, -3, 7]]]])
    np.testing.assert_allclose(TASK.activate(raw), [[[[0.1007, 0.5, 1, 0, 7]]]], atol=1e-3)
    assert TASK.activate(jnp.asarray(raw, jnp.bfloat16)).dtype == jnp.float32


def test_a_perfect_detector_has_a_perfect_score_and_one_that_finds_nothing_none():
    label = make_label([(2, 3, 9, 14, 0, 0), (1, 16, 12, 27, 0, 1)], [], [(0, 0, 23, 29, 1, 0)])
    for scale, expected in ((1, 1), (0, 0)):
        results = TASK.metric().update(TASK.decode(scale * as_activated(label)), label, KNOWN).compute()
        assert results["AP50"] == results["AP"] == pytest.approx(expected)


def test_a_few_images_are_learnt_by_heart():
    label = make_label(
        [(2, 3, 9, 14, 0, 0), (5, 15, 20, 22, 1, 0)], [(10, 10, 23, 30, 2, 0)], [], [(0, 0, 24, 30, 1, 0)]
    )
    optimizer = optax.adam(0.3)

    @jax.jit
    def learn(pred):
        def step(_, carry):
            pred, state = carry
            slope = jax.grad(lambda p: TASK.loss(p, label, jnp.ones((4, 1, 1, 1))).sum())(pred)
            updates, state = optimizer.update(slope, state)
            return optax.apply_updates(pred, updates), state

        return jax.lax.fori_loop(0, 150, step, (pred, optimizer.init(pred)))[0]

    def score(pred):
        found = TASK.decode(TASK.activate(pred))
        return TASK.metric().update(found, label, np.ones((4, 1, 1, 1))).compute()["AP50"]

    start = jnp.asarray(make_pred(batch=4))
    assert score(start) < 0.1
    assert score(learn(start)) > 0.9


def test_more_boxes_than_rows_leave_the_largest():
    rows = np.float32([[0, 0, k, k, 0, 0] for k in (3, 9, 1, 8, 7, 2, 6, 5, 4)])[:, None]
    placed = TASK.place(rows, np.eye(2, 3, dtype=np.float32), SIZE)
    assert placed[:, 0, 2].tolist() == [9, 8, 7, 6, 5, 4]
    line = np.float32([[[3, 5, 3, 9, 1, 0]]])  # some annotators' boxes have no area
    placed = TASK.place(np.concatenate([line, rows[:2]]), np.eye(2, 3, dtype=np.float32), SIZE)
    assert placed[:, 0, 4].tolist() == [0, 0, 1, -1, -1, -1]


def test_boxes_that_a_crop_leaves_little_of_go_unless_they_are_hard():
    rows = np.float32([
        [0, 0, 20, 20, 0, 0], [0, 0, 20, 20, 1, 1], [0, 0, 11, 40, 2, 0], [10, 10, 10.5, 10.5, 0, 0],
        [0, 0, 30, 2, 1, 0], [40, 40, 50, 50, 2, 0], [40, 40, 40, 50, 2, 0],
    ])[:, None]  # fmt: skip
    crop = np.float32([[1, 0, -5], [0, 1, -18.6]])
    placed = TASK.place(rows, crop, (8, 9))[:, 0]
    expected = [[0, 0, 6, 9, 2, 0], [0, 0, 8, 1.4, 1, 1]] + 4 * [[0, 0, 0, 0, -1, 0]]
    np.testing.assert_allclose(placed, expected, atol=1e-5)
    # A box that is smaller than a pixel stays, if it is not made smaller.
    kept = TASK.place(rows[3:4], np.eye(2, 3, dtype=np.float32), SIZE)[0]
    np.testing.assert_array_equal(kept, rows[3])
    halved = TASK.place(rows[3:4], np.eye(2, 3, dtype=np.float32) / 2, SIZE)[0, 0]
    assert halved[4] == -1


def test_boxes_are_placed_alike_on_all_arrays():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 15, (9, 2))
    rows = np.concatenate(
        [corner, corner + rng.uniform(1, 9, (9, 2)), rng.integers(0, 3, (9, 1)), 0 * corner[:, :1]], 1
    )
    rows, matrix = rows[:, None].astype(np.float32), np.float32([[0.9, 0.3, -2], [-0.3, 0.9, 4]])
    place = lambda label, matrix: TASK.place(label, matrix, (16, 18))  # noqa: E731
    for label in (rows, rows[:2], rows[:0], np.full((1, 1, 6), np.nan, np.float32)):
        with_numpy = place(label, matrix)
        assert with_numpy.shape == (6, 1, 6) and with_numpy.dtype == np.float32
        for other in (
            jax.jit(place)(label, matrix),
            tf.function(place)(tf.constant(label), tf.constant(matrix)),
        ):
            np.testing.assert_allclose(with_numpy, other, atol=1e-5)
        assert (
            TASK.known(with_numpy).item()
            == bool(TASK.known(tf.constant(label)))
            == (label is not None and not np.isnan(label).any())
        )


def test_options_that_make_no_sense_are_named():
    def build(**options):
        return tasks.build({"boxes": {}}, {"boxes": {"kind": "detection", **options}})["boxes"]

    assert build(num_classes=1).class_names == ("0",) and build(num_classes=1).channels == 3
    assert build(num_classes=2).max_boxes == 100
    for options, message in [
        ({"num_classes": 0}, "task 'boxes' has num_classes 0: give at least 1"),
        ({"num_classes": 2, "class_names": ["a"]}, "1 class_names but num_classes 2"),
        ({"num_classes": 2, "max_boxes": 0}, "max_boxes 0: give at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            build(**options)

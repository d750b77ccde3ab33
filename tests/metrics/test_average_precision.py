"""Against pycocotools, and against VOC's rule written down a second time, one detection after another."""

import contextlib
import io
from fractions import Fraction

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mtl_jax.metrics import average_precision as ap

NAMES = ("cat", "dog", "cow", "emu")  # no emu is in any image


def random_split(seed, images=25, decimals=1, hard=0.15):
    """Detections near objects, and strays, with many equal scores; some images have neither, or too many."""
    rng = np.random.default_rng(seed)
    pred, label = np.zeros((images, 320, 1, 6), np.float32), np.zeros((images, 12, 1, 6), np.float32)
    pred[..., 4] = label[..., 4] = -1
    for i in range(images):
        objects = rng.integers(0, 12) * (i % 7 != 3)
        corner, side = rng.integers(0, 40, (objects, 2)), rng.integers(1, 40, (objects, 2))
        label[i, :objects, 0, :4] = np.concatenate([corner, corner + side], axis=1)
        label[i, :objects, 0, 4] = rng.integers(0, 3, objects)
        label[i, :objects, 0, 5] = rng.random(objects) < hard
        found = 310 if i == 5 else rng.integers(0, 30) * (i % 5 != 2)
        near = rng.integers(0, max(objects, 1), found)
        box = (
            label[i, near, 0, :4] + rng.integers(-4, 5, (found, 4))
            if objects
            else rng.integers(0, 9, (found, 4))
        )
        box = np.concatenate(
            [np.minimum(box[:, :2], box[:, 2:]), np.maximum(box[:, :2], box[:, 2:]) + 1], axis=1
        )
        stray = rng.random(found) < 0.2
        pred[i, :found, 0, :4] = box
        pred[i, :found, 0, 4] = np.where(
            stray | (objects == 0), rng.integers(0, 4, found), label[i, near, 0, 4]
        )
        pred[i, :found, 0, 5] = np.round(rng.uniform(0.01, 1, found), decimals)
    return pred, label


def row(box, class_id, last):
    return [[*box, class_id, last]]


def measure(pred, label, valid=None):
    valid = np.ones((len(pred), 1, 1, 1), np.float32) if valid is None else valid
    return ap.AveragePrecision.empty(NAMES).update(pred, label, valid).compute()


def by_pycocotools(pred, label):
    def boxes(rows):
        ymin, xmin, ymax, xmax = np.float64(rows[:4])
        return [xmin, ymin, xmax - xmin, ymax - ymin]

    labels, found = [], []
    for image in range(len(pred)):
        for row in label[image, :, 0]:
            if row[4] >= 0:
                box = boxes(row)
                labels.append({"id": len(labels) + 1, "image_id": image, "category_id": int(row[4]),
                               "bbox": box, "area": box[2] * box[3], "iscrowd": int(row[5])})  # fmt: skip
        for row in pred[image, :, 0]:
            if row[4] >= 0:
                found.append({"image_id": image, "category_id": int(row[4]), "bbox": boxes(row),
                              "score": float(row[5])})  # fmt: skip
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": i} for i in range(len(pred))],
        "categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)],
        "annotations": labels,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize("decimals", [1, 7], ids=["ties", "distinct"])
@pytest.mark.parametrize("seed", range(4))
def test_coco_is_that_of_pycocotools(seed, decimals):
    pred, label = random_split(seed, decimals=decimals, hard=[0, 0.15, 0.5, 0.15][seed])
    got = measure(pred, label)["AP"]
    assert 0.02 < got < 0.9
    assert got == pytest.approx(by_pycocotools(pred, label), abs=1e-9)


def test_of_equally_near_objects_coco_takes_the_last():
    """So the second detection, which is that one's very box, finds it taken."""
    label = np.float32([[row((0, 0, 10, 10), 0, 0), row((0, 4, 10, 14), 0, 0)]])
    pred = np.float32([[row((0, 2, 10, 12), 0, 0.9), row((0, 4, 10, 14), 0, 0.8)]])
    got = measure(pred, label)["AP"]
    assert got == pytest.approx(by_pycocotools(pred, label), abs=1e-9)
    assert got == pytest.approx(np.mean([51 / 101] * 4 + [51 / 2 / 101] * 6))


def by_voc(pred, label, class_id):
    """(11-point AP, area) with one loop over all detections of the split and sets of claimed objects."""
    detections = sorted(
        (
            (-row[5], image, k)
            for image in range(len(pred))
            for k, row in enumerate(pred[image, :, 0])
            if row[4] == class_id
        )
    )
    objects = {
        (image, k): row
        for image in range(len(label))
        for k, row in enumerate(label[image, :, 0])
        if row[4] == class_id
    }
    total = sum(row[5] == 0 for row in objects.values())
    claimed, hits, misses, curve = set(), 0, 0, []
    for _, image, k in detections:
        # VOC's corners are the first and the last pixel of a box, and its widths have 1 added.
        y0, x0, y1, x1 = pred[image, k, 0, :4].astype(int) - [0, 0, 1, 1]
        best, key = Fraction(0), None
        for (where, index), row in objects.items():
            a0, b0, a1, b1 = row[:4].astype(int) - [0, 0, 1, 1]
            h, w = min(y1, a1) - max(y0, a0) + 1, min(x1, b1) - max(x0, b0) + 1
            if where == image and h > 0 and w > 0:
                areas = int((y1 - y0 + 1) * (x1 - x0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1))
                iou = Fraction(int(h * w), areas - int(h * w))
                if iou > best:
                    best, key = iou, (where, index)
        if best > Fraction(1, 2):
            if objects[key][5]:
                continue
            hits, misses = hits + (key not in claimed), misses + (key in claimed)
            claimed.add(key)
        else:
            misses += 1
        curve.append((Fraction(hits, int(total)), Fraction(hits, hits + misses)))
    levels = [Fraction(k, 10) for k in range(11)]
    points = [max((p for r, p in curve if r >= level), default=0) for level in levels]
    area, last = Fraction(0), Fraction(0)
    for recall in sorted({r for r, _ in curve}):
        area += (recall - last) * max(p for r, p in curve if r >= recall)
        last = recall
    return float(sum(points) / 11), float(area)


@pytest.mark.parametrize("seed", range(3))
def test_voc_is_that_of_a_plain_loop(seed):
    pred, label = random_split(seed, images=12, decimals=6)
    got = measure(pred, label)
    expected = np.array([by_voc(pred, label, class_id) for class_id in range(3)])
    assert 0.05 < got["AP50"] < 0.95 and abs(got["AP50"] - got["AP50area"]) > 1e-4
    assert [got[f"AP50_{name}"] for name in NAMES[:3]] == pytest.approx(expected[:, 0], abs=1e-12)
    assert got["AP50"] == pytest.approx(expected[:, 0].mean(), abs=1e-12)
    assert got["AP50area"] == pytest.approx(expected[:, 1].mean(), abs=1e-12)
    assert np.isnan(got["AP50_emu"])


def test_average_precisions_by_hand():
    """4 objects; the detections from the highest score on are right, wrong, right, right, wrong."""
    outcomes = np.int8([1, 0, 1, ap.NEITHER, 1, 0])
    assert ap.eleven_point(outcomes, 4) == pytest.approx((3 * 1 + 5 * 0.75) / 11)
    assert ap.area_below(outcomes, 4) == pytest.approx(0.625)
    assert ap.coco_points(outcomes, 4) == pytest.approx((26 * 1 + 50 * 0.75) / 101)
    for measured in (ap.eleven_point, ap.area_below, ap.coco_points):
        assert measured(np.ones(3, np.int8), 3) == 1
        assert measured(np.zeros(0, np.int8), 3) == measured(np.zeros(5, np.int8), 3) == 0
    # 3 hits of 10 reach the recall 0.3, though 3 * 0.1 > 0.3 in floating point.
    assert ap.eleven_point(np.ones(3, np.int8), 10) == pytest.approx(4 / 11)


def test_an_overlap_of_one_half_hits_for_coco_and_not_for_voc():
    """VOC's boxes 1, 1, 4, 4 and 1, 1, 2, 4 share 8 of 16 pixels; as edges, 0, 0, 4, 4 and 0, 0, 2, 4."""
    pred, label = np.float32([[row((0, 0, 4, 4), 0, 0.9)]]), np.float32([[row((0, 0, 2, 4), 0, 0)]])
    assert ap.overlaps(pred[0, :, 0], label[0, :, 0]) == 0.5
    got = measure(pred, label)
    assert got["AP50"] == got["AP50area"] == 0 and got["AP"] == pytest.approx(0.1)


def test_a_second_detection_of_an_object_misses_and_one_of_a_hard_object_does_not_count():
    label = np.float32([[row((0, 0, 10, 10), 0, 0), row((0, 20, 10, 30), 0, 1), row((0, 40, 10, 50), 0, 0)]])
    twice = [row((0, 0, 10, 10), 0, 0.9), row((0, 0, 10, 9), 0, 0.8), row((0, 40, 10, 50), 0, 0.7)]
    hard = [row((0, 20, 10, 30), 0, 0.95), row((0, 20, 5, 30), 0, 0.94)]
    assert measure(np.float32([twice]), label)["AP50area"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    # For VOC, the half of a hard object is a miss; for COCO, it lies within.
    assert measure(np.float32([twice + hard[:1]]), label)["AP50area"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert measure(np.float32([twice + hard]), label)["AP50area"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.5)
    once = [twice[0], twice[2], *hard]
    assert measure(np.float32([once]), label)["AP"] == pytest.approx(1)


def test_only_images_with_a_label_count_in_batches_of_any_size():
    pred, label = random_split(0, images=9)
    valid = (np.arange(9) != 4).astype(np.float32).reshape(9, 1, 1, 1)
    kept = np.arange(9) != 4
    expected = measure(pred[kept], label[kept])
    metric = ap.AveragePrecision.empty(NAMES)
    for start in (0, 2, 6):
        rows = slice(start, {0: 2, 2: 6, 6: 9}[start])
        metric = metric.update(pred[rows], np.where(valid[rows] > 0, label[rows], 0), valid[rows])
    np.testing.assert_equal(metric.compute(), expected)
    assert np.isnan(list(measure(pred, label, 0 * valid).values())).all()
    assert np.isnan(list(ap.AveragePrecision.empty(NAMES).compute().values())).all()

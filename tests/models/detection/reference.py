"""What the detector's tests compare with: one box after another, in float64."""

import numpy as np


def area(box):
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def common(a, b):
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou(a, b):
    a, b = np.float64(a), np.float64(b)
    union = area(a) + area(b) - common(a, b)
    return common(a, b) / union if union > 0 else 0.0


def within(a, b):
    return common(a, b) / area(a) if area(a) > 0 else 0.0


def nms(boxes, scores, valid, threshold, before=None, after=None, classes=None):
    """Places of the boxes that stay, from the highest score down."""
    order = [i for i in np.argsort(-np.float64(scores), kind="stable") if valid[i]][:before]
    kept = []
    for i in order:
        rivals = [j for j in kept if classes is None or classes[j] == classes[i]]
        if all(iou(boxes[i], boxes[j]) <= threshold for j in rivals):
            kept.append(i)
    return kept[:after]


def encode(box, reference, weights=(1, 1, 1, 1)):
    box, reference = np.float64(box), np.float64(reference)
    height, width = reference[2] - reference[0], reference[3] - reference[1]
    return np.multiply(
        weights,
        [
            (box[0] + box[2] - reference[0] - reference[2]) / 2 / height,
            (box[1] + box[3] - reference[1] - reference[3]) / 2 / width,
            np.log((box[2] - box[0]) / height),
            np.log((box[3] - box[1]) / width),
        ],
    )


def decode(deltas, reference, weights=(1, 1, 1, 1)):
    dy, dx, dh, dw = np.float64(deltas) / weights
    ymin, xmin, ymax, xmax = np.float64(reference)
    y, x = (ymin + ymax) / 2 + dy * (ymax - ymin), (xmin + xmax) / 2 + dx * (xmax - xmin)
    height = np.exp(min(dh, np.log(62.5))) * (ymax - ymin)
    width = np.exp(min(dw, np.log(62.5))) * (xmax - xmin)
    return np.array([y - height / 2, x - width / 2, y + height / 2, x + width / 2])


def clip(box, size):
    return np.clip(box, 0, [*size, *size])


def huber(error, delta):
    error = np.abs(error)
    return np.where(error <= delta, error**2 / 2, delta * (error - delta / 2))


def is_object(row):
    return row[4] >= 0 and row[5] == 0 and area(row) > 0


def is_hard(row):
    return row[4] >= 0 and row[5] > 0


def random_boxes(rng, count, size=20):
    """Whole numbers, so that equal overlaps are equal in any precision; a few without area, a few twice."""
    low = rng.integers(0, size, (count, 2))
    side = rng.integers(0, size // 2, (count, 2))
    boxes = np.concatenate([low, low + side], axis=1).astype(np.float32)
    twice = rng.random(count) < 0.2
    return np.where(twice[:, None], boxes[rng.integers(0, count, count)], boxes)


def random_rows(rng, count, size=20):
    """Rows of a label: objects, hard ones, padding, in any order."""
    boxes = random_boxes(rng, count, size)
    classes = rng.integers(-1, 3, count).astype(np.float32)
    hard = (rng.random(count) < 0.2).astype(np.float32) * (classes >= 0)
    rows = np.concatenate([boxes, classes[:, None], hard[:, None]], axis=1).astype(np.float32)
    rows[classes < 0] = [0, 0, 0, 0, -1, 0]
    return rows

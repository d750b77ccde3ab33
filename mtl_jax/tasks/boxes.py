"""What detectors of every kind share: the label, a box per object, and how it moves and is measured."""

import dataclasses

import numpy as np

from mtl_jax.metrics.average_precision import AveragePrecision
from mtl_jax.tasks.base import Task, namespace
from mtl_jax.tasks.colors import class_palette

NOTHING = (0.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # a row that only fills up, of a label or of a detection
LEAST_SHARE = 0.1  # of a box's area that must stay within the canvas


@dataclasses.dataclass(frozen=True)
class Boxes(Task):
    """Canonical label: f32[n, 1, 6], a row (ymin, xmin, ymax, xmax, class, hard) per object, in any order.

    Places are in pixels, as edges: a box over the first pixel alone is 0, 0, 1, 1. Classes count from 0.
    `hard` is 1 for what is neither learnt as an object nor counted as missed: VOC's difficult objects and
    COCO's crowds. No row at all is an image without objects; one row of NaN is an unknown label.

    In a batch, f32[B, max_boxes, 1, 6], rows of NOTHING fill up; of more boxes the largest are kept.

    Subclasses decode predictions to detections f32[B, k, 1, 6], rows (ymin, xmin, ymax, xmax, class, score),
    among them rows of NOTHING.

    Attributes:
      class_names: one per class.
      max_boxes: rows of a label in a batch.
    """

    class_names: tuple[str, ...] = ()
    max_boxes: int = 100

    label_channels = 6
    headline = "AP50"
    better = 1
    unit = "%"
    values = "boxes"

    def label_size(self, size):
        return self.max_boxes, 1

    def known(self, label):
        """bool[..., 1, 1, 1]: one answer for all rows."""
        xp = namespace(label)
        return ~xp.any(xp.isnan(label), axis=(-3, -2, -1), keepdims=True)

    def place(self, label, matrix, size):
        """Bounding boxes of the moved corners, cut at the canvas, from the largest to the smallest.

        A box goes if less than LEAST_SHARE of its area is left (a hard one may stay: what is not labelled
        there is not known either), or if it shrinks to less than a pixel's height or width.
        """
        xp = namespace(label)
        rows = label[:, 0]
        ymin, xmin, ymax, xmax, class_id, hard = (rows[:, k] for k in range(6))
        corners = xp.stack(
            [xp.concatenate([ymin, ymin, ymax, ymax]), xp.concatenate([xmin, xmax, xmin, xmax])]
        )
        moved = xp.reshape(matrix[:, :2] @ corners + matrix[:, 2:], (2, 4, -1))
        low, high = xp.min(moved, axis=1), xp.max(moved, axis=1)
        end = xp.stack([xp.asarray(length, label.dtype) for length in size])[:, None]
        start = xp.zeros_like(end)
        meets = xp.all((low <= end) & (high >= start), axis=0)
        area = xp.prod(high - low, axis=0)
        low, high = (xp.minimum(xp.maximum(v, start), end) for v in (low, high))
        left, shorter = xp.prod(high - low, axis=0), xp.min(high - low, axis=0)
        before = xp.minimum(ymax - ymin, xmax - xmin)
        stays = (class_id >= 0) & meets & (shorter >= xp.minimum(before, 1) - 1e-3)
        stays = stays & ((left >= LEAST_SHARE * area) | (hard > 0))

        nothing = xp.asarray([NOTHING] * self.max_boxes, label.dtype)
        rows = xp.stack([low[0], low[1], high[0], high[1], class_id, hard], axis=1)
        rows = xp.concatenate([xp.where(stays[:, None], rows, nothing[:1]), nothing])
        rank = -xp.prod(rows[:, 2:4] - rows[:, :2], axis=1) - xp.minimum(rows[:, 4], 0)  # NOTHING comes last
        order = xp.argsort(rank)
        rows = xp.take(rows, order[: self.max_boxes], axis=0)[:, None]
        return xp.where(self.known(label), rows, self.fill)

    def metric(self):
        return AveragePrecision.empty(self.class_names)


def palette(num_classes: int) -> np.ndarray:
    """uint8[num_classes,3]: colours of boxes; VOC's own for its 20 classes, which follow the background."""
    return class_palette(num_classes + 1)[1:]

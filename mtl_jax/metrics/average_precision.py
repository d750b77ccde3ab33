"""Average precision of detectors, by the rules of PASCAL VOC 2007 and of COCO.

Sources: Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge" (IJCV 2010), section 4.2, and
its development kit; Lin et al., "Microsoft COCO" (ECCV 2014), and pycocotools, whose choices are kept.

* VOC: in the order of their scores over the whole split, each detection looks at the object of its class and
  image that it overlaps most. At IoU > 0.5 it hits, if that is the first time, and misses if not; a hard
  object makes it count neither way. Precision p is the highest at any recall >= r, and AP its mean over r =
  0, 0.1, ..., 1 (VOC 2007), or the area below it (since VOC 2010). VOC counts a width as xmax - xmin + 1,
  since its corners are the numbers of the first and the last pixel; of boxes as edges that is the difference.
* COCO: in each image, the 100 best detections of a class take, one after another, the free object that they
  overlap most, if IoU >= t; else a hard one, which any number may take, and do not count then. The IoU with a
  hard object is the share of the detection that lies within. AP is the mean of p over r = 0, 0.01, ..., 1 and
  t = 0.5, 0.55, ..., 0.95.

Both are means over the classes that have objects which are not hard.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np

COCO_THRESHOLDS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0, 1, 101)
COCO_LIMIT = 100  # detections of a class in an image
HIT, MISS, NEITHER = 1, 0, -1  # what a detection counts as


def overlaps(detections: np.ndarray, objects: np.ndarray, hard: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union f64[D,G] of boxes [D,4] and [G,4] (ymin, xmin, ymax, xmax, as edges).

    Of `hard` objects, bool[G], the union is the detection alone. Without any area it is 0.
    """
    low = np.maximum(detections[:, None, :2], objects[None, :, :2])
    high = np.minimum(detections[:, None, 2:4], objects[None, :, 2:4])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    own, other = (np.prod(boxes[:, 2:4] - boxes[:, :2], axis=-1) for boxes in (detections, objects))
    union = own[:, None] + other - common
    if hard is not None:
        union = np.where(hard, own[:, None], union)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def voc_outcomes(iou: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """i8[D] of one image and class: HIT, MISS or NEITHER.

    Args:
      iou: f64[D,G], detections from the highest score down.
      hard: bool[G].
    """
    outcome = np.full(len(iou), MISS, np.int8)
    if iou.size:
        nearest = iou.argmax(1)
        near = iou.max(1) > 0.5
        outcome[near & hard[nearest]] = NEITHER
        claims = np.flatnonzero(near & ~hard[nearest])
        _, first = np.unique(nearest[claims], return_index=True)
        outcome[claims[first]] = HIT
    return outcome


def coco_outcomes(iou: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """i8[D,10] of one image and class at COCO_THRESHOLDS: HIT, MISS or NEITHER.

    Args:
      iou: f64[D,G] by COCO's rule for hard objects, detections from the highest score down.
      hard: bool[G].
    """
    least = np.minimum(COCO_THRESHOLDS, 1 - 1e-10)
    within = iou[:, hard].max(1, initial=0)[:, None] >= least
    outcome = np.where(within, NEITHER, MISS).astype(np.int8)
    iou = iou[:, ~hard][:, ::-1]  # of equal ones the last is taken
    free = np.ones((len(least), iou.shape[1]), bool)
    for d in np.flatnonzero((iou >= least[0]).any(1)):
        possible = free & (iou[d] >= least[:, None])
        found = np.flatnonzero(possible.any(1))
        taken = np.where(possible, iou[d], -1)[found].argmax(1)
        free[found, taken] = False
        outcome[d, found] = HIT
    outcome[COCO_LIMIT:] = NEITHER
    return outcome


def precision_recall(outcomes: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of outcomes i8[D], from the highest score down, of a class with so many `objects`.

    Returns:
      hits i64[D'], recall f64[D'] and precision f64[D'] (the highest from there on) after each that counts.
    """
    counts = outcomes[outcomes != NEITHER]
    hits = np.cumsum(counts == HIT)
    precision = hits / np.arange(1, len(hits) + 1)
    return hits, hits / objects, np.maximum.accumulate(precision[::-1])[::-1]


def eleven_point(outcomes: np.ndarray, objects: int) -> float:
    """AP by VOC 2007; see `precision_recall` for the arguments."""
    hits, _, precision = precision_recall(outcomes, objects)
    # In whole numbers: 3 of 10 are a recall of 0.3, whatever 3 x 0.1 is in floating point.
    first = np.searchsorted(10 * hits, objects * np.arange(11))
    return float(np.append(precision, 0)[first].mean())


def area_below(outcomes: np.ndarray, objects: int) -> float:
    """AP by VOC 2010 and later."""
    _, recall, precision = precision_recall(outcomes, objects)
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def coco_points(outcomes: np.ndarray, objects: int) -> float:
    """AP by COCO, at one threshold."""
    _, recall, precision = precision_recall(outcomes, objects)
    return float(np.append(precision, 0)[np.searchsorted(recall, COCO_RECALLS)].mean())


class Image(NamedTuple):
    """Detections of one image, with what they count as, and the classes of its objects that are not hard."""

    classes: np.ndarray  # i64[D]
    scores: np.ndarray  # f64[D]
    voc: np.ndarray  # i8[D]
    coco: np.ndarray  # i8[D,10]
    objects: np.ndarray  # i64[G']


def compare(detections: np.ndarray, objects: np.ndarray) -> Image:
    """Detections f[k,6] (ymin, xmin, ymax, xmax, class, score) with objects f[n,6] (..., class, hard).

    Class -1 is no row, in both.
    """
    detections, objects = (rows[rows[:, 4] >= 0].astype(np.float64) for rows in (detections, objects))
    detections = detections[np.argsort(-detections[:, 5], stable=True)]
    classes, of_objects = detections[:, 4].astype(int), objects[:, 4].astype(int)
    voc = np.empty(len(detections), np.int8)
    coco = np.empty((len(detections), len(COCO_THRESHOLDS)), np.int8)
    for class_id in np.unique(classes):
        mine, theirs = classes == class_id, objects[of_objects == class_id]
        hard = theirs[:, 5] > 0
        voc[mine] = voc_outcomes(overlaps(detections[mine], theirs), hard)
        coco[mine] = coco_outcomes(overlaps(detections[mine], theirs, hard), hard)
    return Image(classes, detections[:, 5], voc, coco, of_objects[objects[:, 5] == 0])


@dataclasses.dataclass(frozen=True)
class AveragePrecision:
    """AP of a split by VOC's and COCO's rules, exact whatever the batches.

    Attributes:
      names: of the classes, for the results `AP50_<name>`.
      images: those so far.
    """

    on_host: ClassVar[bool] = True

    names: tuple[str, ...]
    images: tuple[Image, ...] = ()

    @classmethod
    def empty(cls, names: Sequence[str]) -> "AveragePrecision":
        return cls(tuple(names))

    def update(self, pred: np.ndarray, label: np.ndarray, valid: np.ndarray) -> "AveragePrecision":
        """Adds a batch.

        Args:
          pred: f32[B,k,1,6], rows (ymin, xmin, ymax, xmax, class, score).
          label: f32[B,n,1,6], rows (ymin, xmin, ymax, xmax, class, hard); class -1 is no row, in both.
          valid: f32[B,1,1,1].
        """
        known = np.flatnonzero(np.asarray(valid).ravel() > 0)
        pred, label = np.asarray(pred)[known, :, 0], np.asarray(label)[known, :, 0]
        return dataclasses.replace(self, images=(*self.images, *map(compare, pred, label)))

    def compute(self) -> dict[str, float]:
        """Fractions; NaN where no class, or not that one, has objects.

        Returns:
          AP50: by VOC 2007; AP50_<class>: of each class.
          AP50area: by VOC 2010.
          AP: by COCO.
        """
        nan = float("nan")
        each = np.full((len(self.names), 3), nan)
        if self.images:
            joined = Image(*map(np.concatenate, zip(*self.images, strict=True)))
            order = np.argsort(-joined.scores, stable=True)
            for class_id, objects in enumerate(np.bincount(joined.objects, minlength=len(self.names))):
                if objects:
                    mine = order[joined.classes[order] == class_id]
                    coco = [coco_points(outcomes, objects) for outcomes in joined.coco[mine].T]
                    voc = joined.voc[mine]
                    each[class_id] = eleven_point(voc, objects), area_below(voc, objects), np.mean(coco)
        there = ~np.isnan(each[:, 0])
        means = each[there].mean(0) if there.any() else [nan] * 3
        results = dict(zip(("AP50", "AP50area", "AP"), map(float, means), strict=True))
        return results | {f"AP50_{name}": float(v) for name, v in zip(self.names, each[:, 0], strict=True)}

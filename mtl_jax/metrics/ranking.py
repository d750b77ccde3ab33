"""How well scores rank images: average precision."""

import dataclasses
from typing import ClassVar

import numpy as np

UNKNOWN = 255  # label of a class of which nobody knows whether the image has it


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision:
    """Mean over the classes of the average precision with which scores find their images, over a whole split.

    AP = sum_k (R_k - R_k-1) P_k over the distinct scores k of the class from the highest down, R_k and P_k
    being recall and precision of the images with at least that score: no interpolation, and images with equal
    scores come in together (`sklearn.metrics.average_precision_score`). Classes that no image of the split is
    known to have do not count. Exact, for which all scores are kept: 5 bytes per image and class.

    Attributes:
      scores: f32[images,classes] of each batch.
      labels: uint8[images,classes] of each batch: 0, 1 or UNKNOWN.
    """

    on_host: ClassVar[bool] = True

    scores: tuple[np.ndarray, ...] = ()
    labels: tuple[np.ndarray, ...] = ()

    def update(self, pred: np.ndarray, label: np.ndarray, valid: np.ndarray) -> "MeanAveragePrecision":
        """pred f32[B,1,1,classes], label [B,1,1,classes], valid f32[B,1,1,1]."""
        known = np.asarray(valid)[:, 0, 0, 0] > 0
        scores = np.asarray(pred, np.float32)[known, 0, 0]
        labels = np.asarray(label)[known, 0, 0].astype(np.uint8)
        return MeanAveragePrecision((*self.scores, scores), (*self.labels, labels))

    def compute(self) -> dict[str, float]:
        """{"mAP"}, a fraction; NaN if no image is known to have any class."""
        from sklearn.metrics import average_precision_score  # slow to import, and only this task needs it

        if not self.scores:
            return {"mAP": float("nan")}
        scores, labels = np.concatenate(self.scores), np.concatenate(self.labels)
        found = []
        for c in np.flatnonzero((labels == 1).any(0)):
            known = labels[:, c] != UNKNOWN
            found.append(average_precision_score(labels[known, c], scores[known, c]))
        return {"mAP": float(np.mean(found)) if found else float("nan")}

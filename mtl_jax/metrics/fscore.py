"""F-measures of probability maps against binary labels, the best over thresholds."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.confusion import histogram
from mtl_jax.metrics.totals import Total, ratio

SALIENCY_BETA2 = 0.3  # weighs precision above recall: Achanta et al., CVPR 2009


def _at_thresholds(counts: Any) -> Any:
    """[..., bins] counts by number of thresholds reached -> [..., bins - 1] that reach each of them."""
    return counts[..., ::-1].cumsum(-1)[..., ::-1][..., 1:]


def _counts_by_label(reached: jax.Array, bins: int, label: jax.Array, valid: jax.Array) -> jax.Array:
    """i32[B, 2, bins]: places of each example by label {0, 1} and number of thresholds reached."""
    index = jnp.where(label > 0, bins, 0) + reached
    return histogram(index, 2 * bins, valid).reshape(-1, 2, bins)


@flax.struct.dataclass
class MaxF:
    """max over thresholds t of F = (1 + b2) P R / (b2 P + R), P and R pooled over the split.

    A pixel is predicted positive where its probability is >= t, for t = k / (thresholds + 1),
    k = 1 ... thresholds. With 255 of them the comparison is exact, as multiples of 1/256 are floats.

    Attributes:
      counts: pixels by [label, number of thresholds reached].
    """

    counts: Total
    beta2: float = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, beta2: float, thresholds: int = 255) -> "MaxF":
        return cls(Total.zeros(2, thresholds + 1), beta2)

    def update(self, prob: jax.Array, label: jax.Array, valid: jax.Array) -> "MaxF":
        """prob f32[B,H,W,1] in [0, 1], label {0, 1} [B,H,W,1], valid f32[B,H,W,1]."""
        bins = self.counts.high.shape[1]
        reached = jnp.clip((prob * bins).astype(jnp.int32), 0, bins - 1)
        counts = _counts_by_label(reached, bins, label, valid)
        return self.replace(counts=self.counts.add(jnp.sum(counts, axis=0)))

    def compute(self) -> dict[str, float]:
        """{"maxF"}, a fraction; 0 if no pixel is positive, NaN if none is valid."""
        counts = self.counts.numpy()
        if not counts.any():
            return {"maxF": float("nan")}
        false, hits = _at_thresholds(counts)
        f = (1 + self.beta2) * hits / np.maximum(self.beta2 * counts[1].sum() + hits + false, 1e-9)
        return {"maxF": float(f.max())}


_IMAGE_THRESHOLDS = np.linspace(0.2, 0.9, 15, dtype=np.float32)


@flax.struct.dataclass
class Saliency:
    """Pooled `MaxF`, and the older measures that are averaged over images before the maximum.

    maxF: beta^2 = 0.3. mIoU: the best over 15 thresholds in [0.2, 0.9] (probability > t) of the
    images' mean IoU, where an image with neither truth nor prediction has IoU 1. maxF1_image: the best
    harmonic mean of the images' mean precision and mean recall at these thresholds, where a precision
    without prediction, or a recall without truth, is 0 (Maninis et al., CVPR 2019, evaluation).
    """

    pooled: MaxF
    images: Total
    scores: Total  # [IoU, precision, recall; threshold], summed over images

    @classmethod
    def empty(cls) -> "Saliency":
        return cls(MaxF.empty(SALIENCY_BETA2), Total.zeros(), Total.zeros(3, len(_IMAGE_THRESHOLDS)))

    def update(self, prob: jax.Array, label: jax.Array, valid: jax.Array) -> "Saliency":
        """prob f32[B,H,W,1] in [0, 1], label {0, 1} [B,H,W,1], valid f32[B,H,W,1]."""
        reached = sum((prob > t).astype(jnp.int32) for t in _IMAGE_THRESHOLDS)
        counts = _counts_by_label(reached, len(_IMAGE_THRESHOLDS) + 1, label, valid)
        false, hits = jnp.moveaxis(_at_thresholds(counts), 1, 0)  # i32[B, thresholds]
        truth = jnp.sum(counts[:, 1], axis=-1, keepdims=True)
        has_label = jnp.any(counts > 0, axis=(1, 2))
        union = truth + false
        iou = jnp.where(union > 0, hits / jnp.maximum(union, 1), 1.0)
        precision, recall = hits / jnp.maximum(hits + false, 1), hits / jnp.maximum(truth, 1)
        scores = jnp.where(has_label[:, None], jnp.stack([iou, precision, recall]), 0.0)
        return Saliency(
            self.pooled.update(prob, label, valid),
            self.images.add(jnp.sum(has_label, dtype=jnp.int32)),
            self.scores.add(Total.of(jnp.swapaxes(scores, 1, 2)).sum()),
        )

    def compute(self) -> dict[str, float]:
        """{"maxF", "mIoU", "maxF1_image"}, fractions."""
        iou, precision, recall = ratio(self.scores.numpy(), self.images.numpy())
        f = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        return self.pooled.compute() | {"mIoU": float(iou.max()), "maxF1_image": float(f.max())}

"""Fast R-CNN: which class of object a region holds, if any, and where exactly.

Source: Girshick, "Fast R-CNN" (ICCV 2015), with four convolutions and one linear layer as in Ghiasi et al.,
"Multi-Task Self-Training" (ICCV 2021); initial weights, losses and numbers are those of its authors' earlier
detectors.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mtl_jax.metrics.masked import masked_mean
from mtl_jax.models.detection.boxes import REGION_WEIGHTS, area, clip, decode
from mtl_jax.models.detection.matching import RegionTargets
from mtl_jax.models.detection.nms import nms
from mtl_jax.models.norm import ConvNorm, Norm
from mtl_jax.tasks.boxes import NOTHING


class FastRCNNHead(nn.Module):
    """3x3 convolutions, a linear layer, and one each for the classes and for the deltas of each class.

    Attributes:
      num_classes: K, without the background.
      features: of the convolutions.
      convs: how many convolutions.
      hidden: of the linear layer.
      norm: "batch" or "group", after each convolution and the linear layer.
    """

    num_classes: int
    features: int = 256
    convs: int = 4
    hidden: int = 1024
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, regions: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """f[B,N,h,w,C] -> logits f32[B,N,K+1], the background's first, and deltas f32[B,N,K+1,4]."""
        batch, count = regions.shape[:2]
        x = regions.reshape(-1, *regions.shape[2:])
        start = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
        for i in range(self.convs):
            x = ConvNorm(
                self.features,
                use_bias=True,
                kernel_init=start,
                norm=self.norm,
                activation=nn.relu,
                dtype=self.dtype,
                name=f"conv{i}",
            )(x, train)
        x = self._linear(self.hidden, nn.initializers.xavier_uniform(), "hidden")(x.reshape(len(x), -1))
        x = nn.relu(Norm(self.norm, self.dtype, name="norm")(x, train))
        outputs = self.num_classes + 1
        logits = self._linear(outputs, nn.initializers.normal(0.01), "classes")(x)
        deltas = self._linear(4 * outputs, nn.initializers.normal(0.001), "deltas")(x)
        return (
            logits.astype(jnp.float32).reshape(batch, count, outputs),
            deltas.astype(jnp.float32).reshape(batch, count, outputs, 4),
        )

    def _linear(self, features, start, name):
        return nn.Dense(features, kernel_init=start, dtype=self.dtype, name=name)


def losses(
    logits: jax.Array, deltas: jax.Array, targets: RegionTargets, known: jax.Array, huber: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Losses f32[] of the classes and of the deltas, for a batch.

    The first is the mean cross entropy of all regions, the second the mean of Huber's over the deltas of
    those that are not background, each for its own class.

    Args:
      logits: f32[B,S,K+1].
      deltas: f32[B,S,K+1,4].
      targets: of the regions, with a leading B.
      known: bool[B]: which images have a label; the others have no influence.
      huber: error from which on the loss is linear.
    """
    counts = targets.valid & known[:, None]
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets.classes)
    own = jnp.take_along_axis(deltas.astype(jnp.float32), targets.classes[..., None, None], axis=2)[:, :, 0]
    error = optax.huber_loss(own, targets.deltas, delta=huber)
    objects = (counts & (targets.classes > 0))[..., None]
    return masked_mean(entropy[None], counts[None])[0], masked_mean(error[None], objects[None])[0]


def detect(
    logits: jax.Array,
    deltas: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    size: jax.Array | tuple[float, float],
    least_score: float = 0.05,
    iou: float = 0.5,
    before: int = 5000,
    limit: int = 100,
) -> jax.Array:
    """Detections of one image, from the highest score down.

    Args:
      logits: f32[N,K+1] of its regions.
      deltas: f32[N,K+1,4].
      boxes: f32[N,4], the regions.
      valid: bool[N].
      size: (height, width) of the image, in pixels.
      least_score: a detection's probability is above that.
      iou: above which a detection removes one of its class with a lower score.
      before: so many pairs of a region and a class are looked at, those of the highest scores.
      limit: of detections.

    Returns:
      f32[limit,1,6], rows (ymin, xmin, ymax, xmax, class, score), the rest NOTHING.
    """
    scores = jax.nn.softmax(logits.astype(jnp.float32))[:, 1:]
    decoded = clip(decode(deltas[:, 1:], boxes[:, None], REGION_WEIGHTS), size)
    possible = valid[:, None] & (scores > least_score) & (area(decoded) > 0)
    classes = jnp.broadcast_to(jnp.arange(scores.shape[1]), scores.shape)
    decoded, scores, classes = decoded.reshape(-1, 4), scores.ravel(), classes.ravel()
    index, kept = nms(decoded, scores, possible.ravel(), iou, before, limit, classes)
    rows = jnp.concatenate([decoded, classes[:, None], scores[:, None]], axis=1)[index]
    rows = jnp.where(kept[:, None], rows, jnp.array(NOTHING))
    padding = jnp.tile(jnp.array(NOTHING), (limit - len(rows), 1))
    return jnp.concatenate([rows, padding])[:, None]

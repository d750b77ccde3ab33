"""Region proposal network: where in the image any object may be.

Source: Ren et al., "Faster R-CNN" (NeurIPS 2015), on a pyramid as in Lin et al., "Feature pyramid networks"
(CVPR 2017), with two hidden convolutions as in Ghiasi et al., "Multi-Task Self-Training" (ICCV 2021);
normalisation, losses and numbers are those of its authors' earlier detectors.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mtl_jax.metrics.masked import masked_mean
from mtl_jax.models.conv import Conv
from mtl_jax.models.detection.boxes import area, clip, decode
from mtl_jax.models.detection.matching import AnchorTargets
from mtl_jax.models.detection.nms import nms
from mtl_jax.models.norm import Norm


class RPNHead(nn.Module):
    """3x3 convolutions, and 1x1 ones for scores and deltas, the same for all levels but for normalisation.

    Attributes:
      anchors: A, of each cell.
      features: of the hidden convolutions.
      convs: how many hidden convolutions.
      first_level: of the pyramid.
      norm: "batch" or "group", after each hidden convolution.
    """

    anchors: int = 3
    features: int = 256
    convs: int = 2
    first_level: int = 3
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, levels: list[jax.Array], train: bool) -> tuple[list[jax.Array], list[jax.Array]]:
        """f[B,h,w,C] of each level -> logits f32[B,h*w*A] and deltas f32[B,h*w*A,4] of each."""

        def conv(features, size, name):
            start = nn.initializers.normal(0.01)
            return Conv(features, size, use_bias=True, kernel_init=start, dtype=self.dtype, name=name)

        hidden = [conv(self.features, 3, f"conv{i}") for i in range(self.convs)]
        to_scores, to_deltas = conv(self.anchors, 1, "scores"), conv(4 * self.anchors, 1, "deltas")
        scores, deltas = [], []
        for level, x in enumerate(levels, self.first_level):
            for i, shared in enumerate(hidden):
                x = nn.relu(Norm(self.norm, self.dtype, name=f"norm{i}_level{level}")(shared(x), train))
            scores.append(to_scores(x).astype(jnp.float32).reshape(len(x), -1))
            deltas.append(to_deltas(x).astype(jnp.float32).reshape(len(x), -1, 4))
        return scores, deltas


def losses(
    scores: list[jax.Array],
    deltas: list[jax.Array],
    targets: AnchorTargets,
    known: jax.Array,
    samples: int = 256,
    huber: float = 1 / 9,
) -> tuple[jax.Array, jax.Array]:
    """Losses f32[] of the scores and of the deltas, for a batch.

    The first is the cross entropy of the sampled anchors, summed, over `samples` times the number of images.
    The second is Huber's of all positive anchors: the mean on each level, summed.

    Args:
      scores: logits f32[B,N_l] of each level.
      deltas: f32[B,N_l,4] of each level.
      targets: of all levels' anchors, one after another, with a leading B.
      known: bool[B]: which images have a label; the others have no influence.
      samples: as many as were drawn for an image.
      huber: error from which on the loss is linear.
    """
    entropy = optax.sigmoid_binary_cross_entropy(
        jnp.concatenate(scores, axis=1).astype(jnp.float32), targets.positive.astype(jnp.float32)
    )
    entropy = jnp.sum(jnp.where(targets.sampled & known[:, None], entropy, 0))
    score_loss = entropy / (samples * jnp.maximum(jnp.sum(known), 1))

    box_loss, start = jnp.zeros(()), 0
    for pred in deltas:
        here = slice(start, start := start + pred.shape[1])
        error = optax.huber_loss(pred.astype(jnp.float32), targets.deltas[:, here], delta=huber)
        counts = (targets.positive[:, here] & known[:, None])[..., None]
        box_loss += masked_mean(error[None], counts[None])[0]
    return score_loss, box_loss


def propose(
    scores: list[jax.Array],
    deltas: list[jax.Array],
    anchors: list[jax.Array],
    size: jax.Array | tuple[float, float],
    before: int = 2000,
    after: int = 1000,
    iou: float = 0.7,
) -> tuple[jax.Array, jax.Array]:
    """The best regions of one image, from the highest score down; nothing flows back through them.

    Args:
      scores: logits f32[N_l] of each level.
      deltas: f32[N_l,4] of each level.
      anchors: f32[N_l,4] of each level.
      size: (height, width) of the image, in pixels.
      before: of each level, so many boxes are looked at: 2000 in training, 1000 in tests.
      after: so many may stay, of each level and of all.
      iou: above which a box removes one with a lower score, on each level.

    Returns:
      f32[P,4] and bool[P], which of them are regions: the first ones, the others are 0. P is `after`, or less
      if there are not that many anchors.
    """
    boxes, values = [], []
    for logits, moves, references in jax.lax.stop_gradient(list(zip(scores, deltas, anchors, strict=True))):
        decoded = clip(decode(moves, references), size)
        index, kept = nms(decoded, logits, area(decoded) > 0, iou, before, after)
        boxes.append(decoded[index])
        values.append(jnp.where(kept, logits[index], -jnp.inf))
    boxes, values = jnp.concatenate(boxes), jnp.concatenate(values)
    values, index = jax.lax.top_k(values, min(after, len(values)))
    valid = values > -jnp.inf
    return jnp.where(valid[:, None], boxes[index], 0), valid

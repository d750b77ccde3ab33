"""Which anchor or region learns which object, and which of them are drawn for a step; for one image.

Objects are rows f32[n,6] of a label (see tasks/boxes.py): ymin, xmin, ymax, xmax, class, hard. Rows of class
-1 or NaN are none. What lies in a hard row learns neither that it is an object nor that it is not.

Sources: Ren et al., "Faster R-CNN" (NeurIPS 2015), section 3.1; Girshick, "Fast R-CNN" (ICCV 2015), section
2.3; where they leave a choice, it is that of the authors of MuST (ICCV 2021) in their earlier detectors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.models.detection.boxes import REGION_WEIGHTS, area, encode, iou, within


class AnchorTargets(NamedTuple):
    """What each of N anchors learns."""

    positive: jax.Array  # bool[N]: that it is an object, and its deltas
    sampled: jax.Array  # bool[N]: whether it learns at this step if it is an object
    deltas: jax.Array  # f32[N,4]; 0 where not positive


class RegionTargets(NamedTuple):
    """Regions drawn for a step, and what they learn.

    Where an image has too few, drawn ones are repeated (so that batch statistics see regions alone).
    """

    boxes: jax.Array  # f32[S,4]
    valid: jax.Array  # bool[S]: whether it is one, and not such a repetition
    classes: jax.Array  # i32[S]: 0 is the background, k + 1 the label's class k
    deltas: jax.Array  # f32[S,4], times REGION_WEIGHTS; 0 for the background


def anchor_targets(
    key: jax.Array,
    anchors: jax.Array,
    rows: jax.Array,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    samples: int = 256,
    positive_share: float = 0.5,
) -> AnchorTargets:
    """Targets of the region proposal network.

    An anchor is positive if its IoU with an object is at least `positive_iou`, or if it is the first among
    the best of one (and learns that one then; of two such objects the first). It is negative below
    `negative_iou`, unless a hard row holds that much of it.

    Args:
      key: of the draw; another one for each image and step.
      anchors: f32[N,4].
      rows: f32[n,6].
      samples: drawn anchors, of which at most `positive_share` positive ones and for the rest negative ones.
    """
    overlap, match, in_hard = _overlaps(anchors, rows)
    best = jnp.max(overlap, axis=1)
    forced_by = _first_best(overlap)
    forced = forced_by < len(rows)
    match = jnp.where(forced, forced_by, match)
    positive = forced | (best >= positive_iou)
    negative = ~positive & (best < negative_iou) & (in_hard < negative_iou)
    index, drawn = sample(key, positive, negative, samples, positive_share)
    sampled = jnp.zeros(len(anchors), bool).at[index].max(drawn)
    deltas = encode(rows[match, :4], anchors)
    return AnchorTargets(positive, sampled, jnp.where(positive[:, None], deltas, 0))


def region_targets(
    key: jax.Array,
    proposals: jax.Array,
    valid: jax.Array,
    rows: jax.Array,
    positive_iou: float = 0.5,
    samples: int = 512,
    positive_share: float = 0.25,
) -> RegionTargets:
    """Regions for Fast R-CNN: proposals and the objects' own boxes.

    A region is positive if its IoU with an object is above `positive_iou`, and background if it is below that
    with all, unless a hard row holds that much of it.

    Args:
      key: of the draw; another one for each image and step.
      proposals: f32[P,4].
      valid: bool[P].
      rows: f32[n,6].
      samples: S, of which at most `positive_share` positive ones and for the rest background.
    """
    boxes = jnp.concatenate([proposals, rows[:, :4]])
    valid = jnp.concatenate([valid, _is_object(rows)])
    overlap, match, in_hard = _overlaps(boxes, rows)
    best = jnp.max(overlap, axis=1)
    positive = valid & (best > positive_iou)
    negative = valid & (best < positive_iou) & (in_hard < positive_iou)
    index, drawn = sample(key, positive, negative, samples, positive_share)

    boxes, positive, objects = boxes[index], positive[index], rows[match[index]]
    classes = jnp.where(positive, objects[:, 4] + 1, 0).astype(jnp.int32)
    deltas = jnp.where(positive[:, None], encode(objects[:, :4], boxes, REGION_WEIGHTS), 0)
    return RegionTargets(*jax.lax.stop_gradient((boxes, drawn, classes, deltas)))


def sample(
    key: jax.Array, positive: jax.Array, negative: jax.Array, size: int, positive_share: float
) -> tuple[jax.Array, jax.Array]:
    """Draws without replacement, all sets being equally likely: positive ones first, then negative ones.

    Args:
      positive, negative: bool[N], never both.
      size: how many, of which positive ones at most the share.

    Returns:
      Places i32[size] in 0 ... N - 1, and bool[size], which of them are drawn: the first ones. The others
      repeat them.
    """
    draw = jax.random.uniform(key, positive.shape)
    most = min(int(positive_share * size), len(draw))
    value, index = jax.lax.top_k(jnp.where(positive, draw, -1), most)
    chosen = jnp.zeros_like(positive).at[index].set(value >= 0)
    # Chosen positive ones come before all negative ones.
    rank = jnp.where(chosen, draw + 1, jnp.where(negative, draw, -1))
    value, index = jax.lax.top_k(rank, min(size, len(draw)))
    count = jnp.sum(value >= 0)
    slot = jnp.arange(size)
    return index[slot % jnp.maximum(count, 1)], slot < count


def _is_object(rows):
    return (rows[:, 4] >= 0) & (rows[:, 5] == 0) & (area(rows[:, :4]) > 0)


def _overlaps(boxes, rows):
    """IoU f32[N,n] with objects, 0 with other rows; the first best row i32[N]; share f32[N] in a hard row."""
    hard = (rows[:, 4] >= 0) & (rows[:, 5] > 0)
    overlap = jnp.where(_is_object(rows), iou(boxes, rows[:, :4]), 0)
    in_hard = jnp.max(jnp.where(hard, within(boxes, rows[:, :4]), 0), axis=1)
    return overlap, jnp.argmax(overlap, axis=1), in_hard


def _first_best(overlap):
    """i32[N] for f32[N,n]: the first object whose first best anchor this is; n if there is none."""
    count = overlap.shape[1]
    touched = jnp.max(overlap, axis=0) > 0
    objects = jnp.where(touched, jnp.arange(count), count)
    return jnp.full(len(overlap), count).at[jnp.argmax(overlap, axis=0)].min(objects)

"""Greedy non-maximum suppression without a loop over the boxes.

Box by box, from the highest score down, the sequential algorithm keeps what no kept box overlaps too much.
So whether a box stays depends on those before it alone, and the answer is the one fixed point of this rule. A
round of it, for all boxes at once, makes one more box right at least, and as many rounds are needed as the
longest chain of boxes that decide over one another has links, which are few.
"""

import jax
import jax.numpy as jnp

from mtl_jax.models.detection.boxes import iou


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    valid: jax.Array,
    threshold: float,
    before: int,
    after: int,
    classes: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Which boxes of one image stay, from the highest score down; of equal scores the first comes first.

    Args:
      boxes: f32[N,4].
      scores: f32[N].
      valid: bool[N]; the others neither stay nor remove any.
      threshold: IoU above which a box removes one with a lower score.
      before: only so many boxes, those of the highest scores, are looked at.
      after: how many may stay.
      classes: i32[N]: boxes of different classes do not remove one another; None if all are of one.

    Returns:
      Places i32[n] in `boxes` and bool[n], which of them are boxes that stay: the first ones. n is the least
      of N, `before` and `after`.
    """
    best, order = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), min(before, len(boxes)))
    boxes = boxes[order]
    removes = iou(boxes, boxes) > threshold
    if classes is not None:
        removes &= classes[order][:, None] == classes[order]
    rank = jnp.arange(len(order))
    kept = _kept(removes & (rank[:, None] < rank), best > -jnp.inf)
    first = jnp.argsort(~kept, stable=True)[:after]
    return order[first], kept[first]


def _kept(removes: jax.Array, valid: jax.Array) -> jax.Array:
    """bool[N] for bool[N,N], whether box i, if it stays, removes a later box j."""

    def again(state):
        kept, _ = state
        now = valid & ~jnp.any(kept[:, None] & removes, axis=0)
        return now, jnp.any(now != kept)

    return jax.lax.while_loop(lambda state: state[1], again, again((valid, True)))[0]

"""Detection: a box and a class for each object, found at its centre ("Objects as Points").

Source: Zhou, Wang, Kraehenbuehl, "Objects as Points" (arXiv 1904.07850), with one network output per pixel of
the image: the offsets, which the paper adds because its maps have a quarter of the image's size, are at most
half a pixel here, and left out. How wide a centre's Gaussian is: Law and Deng, "CornerNet" (ECCV 2018).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.metrics.masked import blank
from mtl_jax.tasks.boxes import NOTHING, Boxes
from mtl_jax.tasks.semseg import named_classes

START = -2.19  # logit of a centre where the network says 0: few pixels are one (the paper's initial bias)
LEAST_IOU = 0.7  # of a box with one whose corners are off by the radius
ALPHA, BETA = 2, 4  # exponents of the focal loss
SIZE_WEIGHT = 0.1
TOP_K = 100  # detections of an image


@dataclasses.dataclass(frozen=True)
class Detection(Boxes):
    """The network's output is a map per class of where centres are, and two of height and width, in pixels.

    Loss: of the centres, the focal loss with the penalty lowered by a Gaussian around each (eq. 1 of the
    paper); of the sizes, the absolute error at the centres, times 0.1 (eqs. 3 and 4); both over the number of
    objects. Within a hard box nothing is said about where centres of its class are not.
    """

    def activate(self, pred):
        """f32[..., channels]: probability of a centre by class; height and width in pixels."""
        centres, sizes = _split(pred.astype(jnp.float32))
        return jnp.concatenate([jax.nn.sigmoid(centres), jnp.maximum(sizes, 0)], axis=-1)

    def decode(self, activated):
        """f32[B,H,W,channels] -> f32[B,100,1,6]: boxes at the highest of the maxima among 3x3 pixels."""
        batch, height, width, channels = activated.shape
        scores, sizes = activated[..., :-2], activated[..., -2:]
        highest = jax.lax.reduce_window(scores, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        peaks = jnp.where(scores == highest, scores, 0.0).reshape(batch, -1)
        score, index = jax.lax.top_k(peaks, min(TOP_K, peaks.shape[1]))
        place, class_id = jnp.divmod(index, channels - 2)
        size = jnp.take_along_axis(sizes.reshape(batch, -1, 2), place[..., None], axis=1)
        centre = jnp.stack(jnp.divmod(place, width), axis=-1) + 0.5
        end = jnp.array([height, width], jnp.float32)
        low, high = (jnp.clip(centre + side * size / 2, 0, end) for side in (-1, 1))
        rows = jnp.concatenate([low, high, class_id[..., None], score[..., None]], axis=-1)
        return jnp.where(score[..., None] > 0, rows, jnp.array(NOTHING))[:, :, None]

    def loss(self, pred, label, valid):
        rows = blank(label, valid)[:, :, 0]
        centres, sizes = _split(pred.astype(jnp.float32))
        target, unsaid = self._targets(rows, pred.shape[1:3])
        false = (1 - target) ** BETA * jax.nn.sigmoid(centres) ** ALPHA * jax.nn.softplus(centres)
        missed = jax.nn.sigmoid(-centres) ** ALPHA * jax.nn.softplus(-centres)
        focal = jnp.sum(jnp.where(target == 1, missed, (1 - unsaid) * false), axis=(1, 2, 3))

        real = _real(rows)
        y, x = _centre_pixels(rows, pred.shape[1:3])
        found = jax.vmap(lambda size, y, x: size[y, x])(sizes, y, x)
        error = jnp.sum(jnp.abs(found - (rows[..., 2:4] - rows[..., :2])) * real[..., None], axis=(1, 2))
        loss = (focal + SIZE_WEIGHT * error) / jnp.maximum(jnp.sum(real, axis=1), 1)
        return jnp.where(valid[:, 0, 0, 0] > 0, loss, 0.0)

    def _targets(self, rows: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
        """Rows f32[B,n,6] -> two maps f32[B,H,W,classes].

        The first is 1 at centres, and less the farther from them; the second 1 within hard boxes, else 0.
        """
        y, x = jnp.arange(size[0]), jnp.arange(size[1])
        centre_y, centre_x = _centre_pixels(rows, size)
        spread = (2 * radius(rows[..., 2] - rows[..., 0], rows[..., 3] - rows[..., 1]) + 1) / 6
        real, hard = _real(rows), (rows[..., 4] >= 0) & (rows[..., 5] > 0)

        def add(i, maps):
            def bell(at, centre):
                return jnp.exp(-((at - centre[:, i, None]) ** 2) / (2 * spread[:, i, None] ** 2))

            def within(at, axis):
                return (at + 0.5 >= rows[:, i, axis, None]) & (at + 0.5 <= rows[:, i, axis + 2, None])

            drawn = (
                _outer(bell(y, centre_y), bell(x, centre_x)) * real[:, i, None, None],
                _outer(within(y, 0), within(x, 1)) * hard[:, i, None, None].astype(jnp.float32),
            )
            class_id = rows[:, i, 4].astype(jnp.int32)
            put = jax.vmap(lambda of_classes, k, one: of_classes.at[k].max(one))
            return tuple(put(old, class_id, new) for old, new in zip(maps, drawn, strict=True))

        nothing = jnp.zeros((len(rows), len(self.class_names), *size))
        # Batches rarely have images with as many objects as there are rows.
        count = jnp.max(jnp.where(rows[..., 4] >= 0, jnp.arange(rows.shape[1]) + 1, 0))
        maps = jax.lax.fori_loop(0, count, add, (nothing, nothing))
        return tuple(jnp.moveaxis(each, 1, -1) for each in maps)


def radius(height: jax.Array, width: jax.Array) -> jax.Array:
    """How far the corners of a box may be off, along each axis, while its IoU with the true one is LEAST_IOU.

    CornerNet's rule looks at three boxes: shifted, larger, smaller. The one that is smaller by r on all sides
    has the least IoU of all, so r is the smaller root of (h - 2 r) (w - 2 r) = LEAST_IOU h w.
    """
    return (height + width - jnp.sqrt((height - width) ** 2 + 4 * LEAST_IOU * height * width)) / 4


def _split(pred: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Raw output -> logits of the classes' centres, and heights and widths."""
    return pred[..., :-2] + START, pred[..., -2:]


def _real(rows: jax.Array) -> jax.Array:
    """bool[B,n]: which rows are objects to learn."""
    return (rows[..., 4] >= 0) & (rows[..., 5] == 0)


def _centre_pixels(rows: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """i32[B,n]: row and column of the pixel that the centre of a box lies in."""
    return tuple(
        jnp.clip((rows[..., axis] + rows[..., axis + 2]) / 2, 0, size[axis] - 1).astype(jnp.int32)
        for axis in (0, 1)
    )


def _outer(y: jax.Array, x: jax.Array) -> jax.Array:
    """[B,H] and [B,W] -> [B,H,W]."""
    return y[:, :, None] * x[:, None]


def build(
    name: str, num_classes: int, class_names: Sequence[str] | None = None, max_boxes: int = 100
) -> Detection:
    """See Detection.

    Args:
      num_classes: at least 1.
      class_names: one per class.
      max_boxes: objects per image of a batch; of more, the largest are kept.

    Raises:
      UserError: `num_classes` is not the number of `class_names`, or a number is below 1.
    """
    if max_boxes < 1:
        raise UserError(f"task {name!r} has max_boxes {max_boxes}: give at least 1")
    names = named_classes(name, num_classes, class_names, least=1)
    return Detection(name, channels=num_classes + 2, class_names=names, max_boxes=max_boxes)

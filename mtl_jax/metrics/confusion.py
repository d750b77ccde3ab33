"""Counting pairs of indices, the confusion matrix, and what follows from it (mIoU)."""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.totals import Total, ratio


def joint_counts(a: jax.Array, b: jax.Array, shape: tuple[int, int], valid: jax.Array) -> jax.Array:
    """How often each pair of indices occurs in each example: i32[B, *shape], exact.

    Args:
      a, b: integers [B, ...] in [0, shape[0]) and [0, shape[1]).
      valid: [B, ...], places with 0 or False do not count, whatever the indices there.
    """
    # An index behind the end counts nowhere.
    a = jnp.where(valid > 0, a, shape[0]).reshape(a.shape[0], -1)
    b = b.reshape(b.shape[0], -1)
    # Scatter-adds are slow on accelerators, where many places collide; on CPU they are 30 to 200 times
    # faster than the product (8 x 240 x 320 places, 13 to 150 classes).
    scatter, multiply = functools.partial(_scatter, shape), functools.partial(_multiply, shape)
    return jax.lax.platform_dependent(a, b, cpu=scatter, default=multiply)


def _scatter(shape: tuple[int, int], a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.vmap(lambda a, b: jnp.zeros(shape, jnp.int32).at[a, b].add(1, mode="drop"))(a, b)


def _multiply(shape: tuple[int, int], a: jax.Array, b: jax.Array) -> jax.Array:
    rows, columns = jax.nn.one_hot(a, shape[0]), jax.nn.one_hot(b, shape[1])
    # float32 holds the counts of one example exactly, below 2^24 places.
    return jnp.einsum("bnr,bnc->brc", rows, columns).astype(jnp.int32)


def histogram(index: jax.Array, bins: int, valid: jax.Array) -> jax.Array:
    """Exact counts i32[B, bins] of integers [B, ...] in [0, bins) at valid places, per example.

    The index is split into two digits, so that one-hot rows are only sqrt(bins) wide.
    """
    digits = int(np.ceil(np.sqrt(bins)))
    counts = joint_counts(index // digits, index % digits, (digits, digits), valid)
    return counts.reshape(counts.shape[0], -1)[:, :bins]


@flax.struct.dataclass
class Confusion:
    """mIoU and pixel accuracy from one confusion matrix over the whole split.

    IoU_c = TP / (TP + FP + FN). Classes that occur neither in the labels nor in the predictions have
    no IoU (NaN) and are left out of the mean.

    Attributes:
      counts: pixels by [label, prediction].
      names: of the classes, for the results `IoU_<name>`.
      scored: ids of the classes whose IoU mIoU is the mean of; pixels of the others still count, so that a
        scored class pays for being predicted there.
    """

    counts: Total
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)
    scored: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, names: Sequence[str], scored: Sequence[int] | None = None) -> "Confusion":
        """`scored` is all classes by default."""
        scored = range(len(names)) if scored is None else scored
        return cls(Total.zeros(len(names), len(names)), tuple(names), tuple(scored))

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "Confusion":
        """pred f32[B,H,W,classes] (arg max is taken), label i32[B,H,W,1], valid f32[B,H,W,1]."""
        shape = self.counts.high.shape
        counts = joint_counts(label[..., 0], jnp.argmax(pred, -1), shape, valid[..., 0])
        return self.replace(counts=self.counts.add(jnp.sum(counts, axis=0)))

    def compute(self) -> dict[str, float]:
        """{"mIoU", "pixAcc", "IoU_<class>"...}, fractions."""
        counts = self.counts.numpy()
        hits = np.diag(counts)
        iou = ratio(hits, counts.sum(0) + counts.sum(1) - hits)
        scored = iou[list(self.scored)]
        mean = np.nan if np.isnan(scored).all() else np.nanmean(scored)
        results = {"mIoU": float(mean), "pixAcc": float(ratio(hits.sum(), counts.sum()))}
        return results | {f"IoU_{name}": float(value) for name, value in zip(self.names, iou, strict=True)}

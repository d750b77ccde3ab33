"""Counting by matrix multiplication, the confusion matrix, and what follows from it (mIoU)."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.totals import Total, ratio


def joint_counts(a: jax.Array, b: jax.Array, shape: tuple[int, int], valid: jax.Array) -> jax.Array:
    """How often each pair of indices occurs: i32[shape], exact.

    A product of one-hot matrices, because scatter-adds are slow on accelerators. float32 holds the
    counts of each example exactly (below 2^24 places), integers those of the batch.

    Args:
      a, b: integers [B, ...] in [0, shape[0]) and [0, shape[1]).
      valid: [B, ...], places with 0 or False do not count, whatever the indices there.
    """
    batch = a.shape[0]
    a = jnp.where(valid > 0, a, -1).reshape(batch, -1)  # -1 is hot nowhere
    rows = jax.nn.one_hot(a, shape[0], dtype=jnp.float32)
    columns = jax.nn.one_hot(b.reshape(batch, -1), shape[1], dtype=jnp.float32)
    counts = jnp.einsum("bnr,bnc->brc", rows, columns, preferred_element_type=jnp.float32)
    return jnp.sum(counts.astype(jnp.int32), axis=0)


def histogram(index: jax.Array, bins: int, valid: jax.Array) -> jax.Array:
    """Exact counts i32[bins] of integers [B, ...] in [0, bins) at valid places.

    The index is split into two digits, so that the one-hot rows are sqrt(bins) wide.
    """
    digits = int(np.ceil(np.sqrt(bins)))
    return joint_counts(index // digits, index % digits, (digits, digits), valid).reshape(-1)[:bins]


@flax.struct.dataclass
class Confusion:
    """mIoU and pixel accuracy from one confusion matrix over the whole split.

    IoU_c = TP / (TP + FP + FN). Classes that occur neither in the labels nor in the predictions have
    no IoU (NaN) and are left out of the mean.

    Attributes:
      counts: pixels by [label, prediction].
      names: of the classes, for the results `IoU_<name>`.
    """

    counts: Total
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, names: Sequence[str]) -> "Confusion":
        return cls(Total.zeros(len(names), len(names)), tuple(names))

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "Confusion":
        """pred f32[B,H,W,classes] (arg max is taken), label i32[B,H,W,1], valid f32[B,H,W,1]."""
        shape = self.counts.high.shape
        counts = joint_counts(label[..., 0], jnp.argmax(pred, -1), shape, valid[..., 0])
        return self.replace(counts=self.counts.add(counts))

    def compute(self) -> dict[str, float]:
        """{"mIoU", "pixAcc", "IoU_<class>"...}, fractions."""
        counts = self.counts.numpy()
        hits = np.diag(counts)
        iou = ratio(hits, counts.sum(0) + counts.sum(1) - hits)
        mean = np.nanmean(iou) if counts.any() else np.nan
        results = {"mIoU": float(mean), "pixAcc": float(ratio(hits.sum(), counts.sum()))}
        return results | {f"IoU_{name}": float(value) for name, value in zip(self.names, iou, strict=True)}

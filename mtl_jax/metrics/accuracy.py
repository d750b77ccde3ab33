"""Accuracy of image classification."""

import flax.struct
import jax
import jax.numpy as jnp

from mtl_jax.metrics.totals import Total, ratio


@flax.struct.dataclass
class Accuracy:
    """Share of images whose class is among the k highest scores, k = 1 (and 5 from 10 classes on).

    Equal scores rank by class id, as arg max does, so that a constant score is no perfect score.
    """

    count: Total
    hits: Total
    ks: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, num_classes: int) -> "Accuracy":
        ks = (1, 5) if num_classes >= 10 else (1,)
        return cls(Total.zeros(), Total.zeros(len(ks)), ks)

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "Accuracy":
        """pred f32[B,1,1,classes], label i32[B,1,1,1], valid f32[B,1,1,1]."""
        known = valid[..., 0] > 0
        classes = jnp.arange(pred.shape[-1])
        score = jnp.sum(jnp.where(classes == label, pred, 0.0), axis=-1, keepdims=True)
        ahead = (pred > score) | ((pred == score) & (classes < label))
        rank = jnp.sum(ahead, axis=-1)
        hits = [jnp.sum(known & (rank < k), dtype=jnp.int32) for k in self.ks]
        return self.replace(
            count=self.count.add(jnp.sum(known, dtype=jnp.int32)), hits=self.hits.add(jnp.stack(hits))
        )

    def compute(self) -> dict[str, float]:
        """{"top1"} and from 10 classes on {"top5"}, fractions."""
        shares = ratio(self.hits.numpy(), self.count.numpy())
        return {f"top{k}": float(share) for k, share in zip(self.ks, shares, strict=True)}

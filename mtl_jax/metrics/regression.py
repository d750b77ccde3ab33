"""Errors of continuous maps: depth, disparity, albedo, and any scalar map."""

import math

import flax.struct
import jax
import jax.numpy as jnp

from mtl_jax.metrics.totals import Total, count_examples, ratio, sum_examples


@flax.struct.dataclass
class Errors:
    """Absolute and root mean square error in the label's unit, over all valid values of a split.

    `rmse` pools all values and takes one root; `rmse_image` is the mean of the images' own RMSE (images
    without a valid place left out). The field reports either under the one name RMSE.

    Attributes:
      low, high: predictions are clipped to this range first (what the label cannot be is no prediction).
    """

    count: Total
    absolute: Total
    square: Total
    images: Total
    image_rmse: Total
    low: float = flax.struct.field(pytree_node=False)
    high: float = flax.struct.field(pytree_node=False)

    @classmethod
    def empty(cls, low: float = -math.inf, high: float = math.inf) -> "Errors":
        zero = Total.zeros()
        return cls(zero, zero, zero, zero, zero, low, high)

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "Errors":
        """pred, label f32[B,H,W,C], valid f32[B,H,W,1]."""
        known = jnp.broadcast_to(valid > 0, pred.shape)
        error = jnp.where(known, jnp.clip(pred, self.low, self.high) - label, 0.0)
        count = count_examples(known)
        square = sum_examples(error**2)
        image_rmse = jnp.sqrt(square.high / jnp.maximum(count, 1))
        return self.replace(
            count=self.count.add(jnp.sum(count)),
            absolute=self.absolute.add(sum_examples(jnp.abs(error)).sum()),
            square=self.square.add(square.sum()),
            images=self.images.add(jnp.sum(count > 0, dtype=jnp.int32)),
            image_rmse=self.image_rmse.add(Total.of(image_rmse).sum()),
        )

    def compute(self) -> dict[str, float]:
        """{"absErr", "rmse", "rmse_image"} in the label's unit."""
        count = self.count.numpy()
        return {
            "absErr": float(ratio(self.absolute.numpy(), count)),
            "rmse": math.sqrt(ratio(self.square.numpy(), count)),
            "rmse_image": float(ratio(self.image_rmse.numpy(), self.images.numpy())),
        }


# Predictions of positive quantities are clipped to at least this, as the field's evaluations do.
SMALLEST = 1e-9
_DELTAS = (1.25, 1.25**2, 1.25**3)


@flax.struct.dataclass
class PositiveErrors:
    """`Errors` of a positive quantity (depth, disparity), and those relative to the label.

    absRel = mean |p - d| / d; deltaK = share of places with max(p/d, d/p) < 1.25^K, strictly
    (Eigen et al., NIPS 2014). Labels at valid places must be positive.
    """

    errors: Errors
    relative: Total
    within: Total

    @classmethod
    def empty(cls) -> "PositiveErrors":
        return cls(Errors.empty(low=SMALLEST), Total.zeros(), Total.zeros(len(_DELTAS)))

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "PositiveErrors":
        """pred, label f32[B,H,W,1], valid f32[B,H,W,1]."""
        known = valid > 0
        pred, label = jnp.maximum(pred, SMALLEST), jnp.where(known, label, 1.0)
        relative = jnp.where(known, jnp.abs(pred - label) / label, 0.0)
        # By products: a quotient's rounding would decide the ratios that are just 1.25.
        within = [known & (pred < k * label) & (label < k * pred) for k in _DELTAS]
        return PositiveErrors(
            self.errors.update(pred, label, valid),
            self.relative.add(sum_examples(relative).sum()),
            self.within.add(jnp.stack([jnp.sum(w, dtype=jnp.int32) for w in within])),
        )

    def compute(self) -> dict[str, float]:
        """{"absErr", "rmse", "rmse_image"} in the label's unit; {"absRel", "delta1", ...} fractions."""
        count = self.errors.count.numpy()
        within = ratio(self.within.numpy(), count)
        results = self.errors.compute() | {"absRel": float(ratio(self.relative.numpy(), count))}
        return results | {f"delta{k}": float(share) for k, share in enumerate(within, 1)}

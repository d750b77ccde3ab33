"""Angles between directions: the error of surface normals."""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.metrics.confusion import histogram
from mtl_jax.metrics.totals import Total, ratio, sum_examples

_LIMITS = (11.25, 22.5, 30.0)  # degrees
_BINS = 4096  # of 180/4096 = 0.044 degrees


def unit(vector: jax.Array) -> jax.Array:
    """f32[..., C] scaled to length 1; the zero vector stays 0, with a finite gradient."""
    square = jnp.sum(vector**2, axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(square, 1e-12))


def angle(a: jax.Array, b: jax.Array) -> jax.Array:
    """Radians between the directions of a and b, f32[..., C] -> f32[...].

    Two arcs of tangents (Kahan), which keep their digits near 0 and 180 degrees where arccos of the
    dot product loses half of them. A zero vector is at a right angle to everything but another.
    """
    a, b = unit(a), unit(b)
    return 2 * jnp.arctan2(jnp.linalg.norm(a - b, axis=-1), jnp.linalg.norm(a + b, axis=-1))


@flax.struct.dataclass
class Angular:
    """Angular errors in degrees over all valid pixels of a split.

    The median is read from a histogram of 4096 bins, linearly within a bin: it is off by less than
    0.044 degrees (the width of a bin), typically by far less. All other results are exact.
    """

    count: Total
    degrees: Total
    square: Total
    within: Total
    bins: Total

    @classmethod
    def empty(cls) -> "Angular":
        return cls(Total.zeros(), Total.zeros(), Total.zeros(), Total.zeros(len(_LIMITS)), Total.zeros(_BINS))

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "Angular":
        """pred, label f32[B,H,W,3] of any length, valid f32[B,H,W,1]."""
        known = valid[..., 0] > 0
        degrees = jnp.where(known, jnp.rad2deg(angle(pred, label)), 0.0)
        within = [jnp.sum(known & (degrees < limit), dtype=jnp.int32) for limit in _LIMITS]
        index = jnp.clip((degrees * (_BINS / 180)).astype(jnp.int32), 0, _BINS - 1)
        return Angular(
            self.count.add(jnp.sum(known, dtype=jnp.int32)),
            self.degrees.add(sum_examples(degrees).sum()),
            self.square.add(sum_examples(degrees**2).sum()),
            self.within.add(jnp.stack(within)),
            self.bins.add(jnp.sum(histogram(index, _BINS, known), axis=0)),
        )

    def compute(self) -> dict[str, float]:
        """{"mErr", "median", "rmse"} in degrees; {"within11.25", ...} fractions."""
        count = self.count.numpy()
        within = ratio(self.within.numpy(), count)
        return {
            "mErr": float(ratio(self.degrees.numpy(), count)),
            "median": _median(self.bins.numpy()),
            "rmse": math.sqrt(ratio(self.square.numpy(), count)),
        } | {f"within{limit:g}": float(share) for limit, share in zip(_LIMITS, within, strict=True)}


def _median(counts: np.ndarray) -> float:
    """Where half of the mass lies to the left, spreading each bin's mass evenly over the bin."""
    below = np.concatenate([[0], np.cumsum(counts)])
    if below[-1] == 0:
        return math.nan
    half = below[-1] / 2
    first = np.searchsorted(below, half) - 1  # the bin in which the cumulative sum reaches half
    return float((first + (half - below[first]) / counts[first]) * 180 / _BINS)

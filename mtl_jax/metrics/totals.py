"""Exact sums in single precision: what all streaming metrics are made of.

float32 counts stop at 2^24 = 16.8 million, which a few dozen images of 480x640 pass, and accelerators
have no fast float64. A `Total` therefore carries the rounding error of each addition along (Knuth's
TwoSum), which doubles the significant bits to 48.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_LOW_BITS = 16


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(s, e) with s = fl(a + b) and s + e = a + b exactly, elementwise (Knuth, TAOCP 2, 4.2.2 B)."""
    s = a + b
    part = s - a
    return s, (a - (s - part)) + (b - part)


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last axis in two; a zero makes up for an odd element."""
    half = (x.shape[-1] + 1) // 2
    pad = [(0, 0)] * (x.ndim - 1) + [(0, 2 * half - x.shape[-1])]
    return x[..., :half], jnp.pad(x[..., half:], pad)


@flax.struct.dataclass
class Total:
    """Running sums as unevaluated pairs high + low: integers are exact below 2^48.

    Attributes:
      high, low: f32[...], |low| at most half a unit in the last place of `high`.
    """

    high: jax.Array
    low: jax.Array

    @classmethod
    def zeros(cls, *shape: int) -> "Total":
        return cls(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))

    @classmethod
    def of(cls, value: jax.Array) -> "Total":
        """`value` (f32, or an integer type below 2^31 that f32 may not hold) without rounding."""
        if jnp.issubdtype(value.dtype, jnp.integer):
            high = (value >> _LOW_BITS) << _LOW_BITS
            return cls(*two_sum(high.astype(jnp.float32), (value - high).astype(jnp.float32)))
        return cls(value.astype(jnp.float32), jnp.zeros_like(value, jnp.float32))

    def add(self, value: "Total | jax.Array") -> "Total":
        """Elementwise sum with another total, f32[...] or integers."""
        other = value if isinstance(value, Total) else Total.of(value)
        high, error = two_sum(self.high, other.high)
        return Total(*two_sum(high, error + (self.low + other.low)))

    def sum(self) -> "Total":
        """Sum over the last axis, as a tree of pairwise additions (log2 N array operations)."""
        total = self
        while total.high.shape[-1] > 1:
            (high, other_high), (low, other_low) = _halves(total.high), _halves(total.low)
            total = Total(high, low).add(Total(other_high, other_low))
        return Total(total.high[..., 0], total.low[..., 0])

    def numpy(self) -> np.ndarray:
        """float64[...] on the host."""
        return np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64)


def sum_examples(value: jax.Array) -> Total:
    """Sums f32[B, ...] over all but the first axis, to about 48 bits: a Total of shape [B]."""
    return Total.of(value.reshape(value.shape[0], -1)).sum()


def count_examples(mask: jax.Array) -> jax.Array:
    """Counts bool[B, ...] over all but the first axis, exactly: i32[B]."""
    return jnp.sum(mask, axis=tuple(range(1, mask.ndim)), dtype=jnp.int32)


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64, NaN (silently) where `whole` is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) == 0, np.nan, np.divide(part, whole))

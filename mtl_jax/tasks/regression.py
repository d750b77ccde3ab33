"""Regression of a generic map: reshading, 2-D keypoints, texture and occlusion edges."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.metrics.masked import blank, masked_mean
from mtl_jax.metrics.regression import Errors
from mtl_jax.tasks.base import Task, namespace
from mtl_jax.tasks.colors import heat

HEADLINES = ("absErr", "rmse", "rmse_image")


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Canonical label: a scalar in the unit of its dataset; NaN is unknown. Loss: L1.

    Attributes:
      low, high: black and white in pictures.
    """

    headline: str = "absErr"
    low: float = 0.0
    high: float = 1.0

    fill = float("nan")
    interpolation = "bilinear"
    better = -1

    def known(self, label):
        xp = namespace(label)
        return xp.all(~xp.isnan(label), axis=-1, keepdims=True)

    def encode(self, label):
        return jnp.where(self.known(label), label, 0.0).astype(jnp.float32)

    def loss(self, pred, label, valid):
        return masked_mean(jnp.abs(pred - blank(label, valid)), valid)

    def metric(self):
        return Errors.empty()

    def distance(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Mean absolute difference over the channels, in the label's unit."""
        return jnp.mean(jnp.abs(a - b), axis=-1)

    def colorize(self, encoded):
        """Black to white from `low` to `high`; NaN is striped."""
        value = np.asarray(encoded)[..., 0]
        shade = (value - self.low) / (self.high - self.low)
        return heat(np.clip(shade, 0, 1), np.isnan(value), "gray")


def build(name: str, low: float = 0.0, high: float = 1.0) -> Regression:
    """Raises UserError if `high` is not above `low`."""
    if not low < high:
        raise UserError(f"task {name!r}: high is {high}, which is not above low = {low}")
    return Regression(name, low=float(low), high=float(high))

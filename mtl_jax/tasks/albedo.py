"""Albedo: the colour of surfaces without light and shadow."""

import dataclasses

import numpy as np

from mtl_jax.metrics.regression import Errors
from mtl_jax.tasks.colors import paint
from mtl_jax.tasks.regression import Regression


@dataclasses.dataclass(frozen=True)
class Albedo(Regression):
    """Canonical label: RGB in [0, 1]; NaN is unknown. Loss: L1, mean over pixels and channels."""

    channels: int = 3

    label_channels = 3
    headline = "rmse"

    def metric(self):
        return Errors.empty(low=0.0, high=1.0)

    def colorize(self, encoded):
        """The colours themselves; NaN is striped."""
        encoded = np.asarray(encoded)
        return paint(encoded, np.isnan(encoded).any(-1))


def build(name: str) -> Albedo:
    return Albedo(name)

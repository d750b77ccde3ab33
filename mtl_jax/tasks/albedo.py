"""Albedo: the colour of surfaces without light and shadow."""

import dataclasses

import numpy as np

from mtl_jax.metrics.regression import Errors
from mtl_jax.tasks.base import known_headline, namespace
from mtl_jax.tasks.colors import paint
from mtl_jax.tasks.regression import HEADLINES, Regression


@dataclasses.dataclass(frozen=True)
class Albedo(Regression):
    """Canonical label: RGB in [0, 1]; NaN is unknown. Loss: L1, mean over pixels and channels.

    Attributes:
      headline: "rmse" over all pixels, its mean over images "rmse_image", or "absErr".
    """

    channels: int = 3
    headline: str = "rmse"

    label_channels = 3

    def to_label(self, activated):
        return namespace(activated).clip(activated, 0, 1)

    def metric(self):
        return Errors.empty(low=0.0, high=1.0)

    def colorize(self, encoded):
        """The colours themselves; NaN is striped."""
        encoded = np.asarray(encoded)
        return paint(encoded, np.isnan(encoded).any(-1))


def build(name: str, headline: str = "rmse") -> Albedo:
    """Raises UserError for an unknown `headline`."""
    return Albedo(name, headline=known_headline(name, headline, HEADLINES))

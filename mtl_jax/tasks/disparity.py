"""Disparity: how far a point moves between the images of a stereo pair."""

import dataclasses

import numpy as np

from mtl_jax.metrics.regression import PositiveErrors
from mtl_jax.tasks.base import known_headline
from mtl_jax.tasks.colors import heat
from mtl_jax.tasks.depth import smooth_l1
from mtl_jax.tasks.regression import HEADLINES, Regression


@dataclasses.dataclass(frozen=True)
class Disparity(Regression):
    """Canonical label: proportional to 1 / depth, such as the pixels between the images; 0 is unknown.

    Loss: `smooth_l1` of depth.

    Attributes:
      smoothness: weight of the gradient term.
      max_disparity: at which pictures saturate.
      headline: "rmse" over all pixels, its mean over images "rmse_image", or "absErr".
      unit: of the label: pixels (focal length * baseline / depth), unless the dataset has another.
    """

    headline: str = "rmse"
    smoothness: float = 0.0
    max_disparity: float = 64.0
    unit: str = "px"

    fill = 0.0
    interpolation = "nearest"

    def known(self, label):
        return label > 0

    def rescale(self, label, factor):
        return label * factor

    def loss(self, pred, label, valid):
        return smooth_l1(pred, label, valid, self.smoothness)

    def metric(self):
        return PositiveErrors.empty()

    def colorize(self, encoded):
        """Near is bright, as in pictures of depth; 0 and NaN are striped."""
        disparity = np.asarray(encoded)[..., 0]
        return heat(np.clip(disparity / self.max_disparity, 0, 1), ~(disparity > 0), "magma")


def build(
    name: str,
    smoothness: float = 0.0,
    max_disparity: float = 64.0,
    headline: str = "rmse",
    unit: str = "px",
) -> Disparity:
    """Raises UserError for an unknown `headline`."""
    headline = known_headline(name, headline, HEADLINES)
    smoothness, max_disparity = float(smoothness), float(max_disparity)
    return Disparity(name, headline=headline, smoothness=smoothness, max_disparity=max_disparity, unit=unit)

"""Saliency: which pixels belong to what catches the eye."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.metrics import fscore
from mtl_jax.metrics.masked import blank, masked_mean
from mtl_jax.tasks.base import Task, known_headline
from mtl_jax.tasks.colors import heat

HEADLINES = ("maxF", "mIoU", "maxF1_image")


@dataclasses.dataclass(frozen=True)
class Saliency(Task):
    """Canonical label: 1 salient, 0 not; 255 is unknown.

    Loss: cross-entropy in which an image's salient pixels weigh as much as its others together: each
    class is weighted by the share of the other one (Maninis et al., CVPR 2019, released code). The
    share is taken per image rather than per batch, so that an example's loss does not depend on
    which others stand beside it, nor on padding or on the number of devices.

    Attributes:
      headline: one of HEADLINES, the largest over all thresholds (see metrics/fscore.py).
    """

    headline: str = "maxF"

    fill = 255.0
    better = 1
    unit = "%"
    discrete = True
    values = "unit"

    def known(self, label):
        return label != 255

    def activate(self, pred):
        return jax.nn.sigmoid(pred.astype(jnp.float32))

    def encode(self, label):
        return (label == 1).astype(jnp.float32)

    def to_label(self, activated):
        return (activated >= 0.5).astype(self.label_dtype)

    def loss(self, pred, label, valid):
        label = blank(label, valid).astype(jnp.float32)
        positive = masked_mean(label, valid)[:, None, None, None]
        weight = jnp.where(label > 0, 1 - positive, positive)
        return masked_mean(weight * optax.sigmoid_binary_cross_entropy(pred, label), valid)

    def metric(self):
        return fscore.Saliency.empty()

    def distance(self, a, b):
        """0 where both are salient or both are not, else 1."""
        return jnp.any((a >= 0.5) != (b >= 0.5), axis=-1).astype(jnp.float32)

    def colorize(self, encoded):
        """Black to white; NaN is striped."""
        value = np.asarray(encoded)[..., 0]
        return heat(value, np.isnan(value), "gray")


def build(name: str, headline: str = "maxF") -> Saliency:
    """Raises UserError for an unknown `headline`."""
    return Saliency(name, headline=known_headline(name, headline, HEADLINES))

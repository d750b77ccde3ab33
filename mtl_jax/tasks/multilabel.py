"""Multi-label classification: for each class, whether it holds for the image; any number of them may."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.metrics.ranking import UNKNOWN, MeanAveragePrecision
from mtl_jax.tasks.base import Task, namespace
from mtl_jax.tasks.colors import class_palette, paint
from mtl_jax.tasks.semseg import named_classes


@dataclasses.dataclass(frozen=True)
class Multilabel(Task):
    """Canonical label [1, 1, classes]: 1 the class holds, 0 it does not; 255 is unknown, of each class.

    Loss: sigmoid cross-entropy, summed over the known classes of an image (as for the large label sets of
    Kolesnikov et al., "Big Transfer (BiT): General Visual Representation Learning", ECCV 2020).

    Attributes:
      class_names: one per channel.
    """

    class_names: tuple[str, ...] = ()

    fill = float(UNKNOWN)
    dense = False
    headline = "mAP"
    better = 1
    unit = "%"
    discrete = True
    values = "unit"

    @property
    def label_channels(self) -> int:
        return self.channels

    def known(self, label):
        return namespace(label).any(label != UNKNOWN, axis=-1, keepdims=True)

    def activate(self, pred):
        return jax.nn.sigmoid(pred.astype(jnp.float32))

    def encode(self, label):
        return (label == 1).astype(jnp.float32)

    def to_label(self, activated):
        """The classes that are more probable than not."""
        return (activated >= 0.5).astype(self.label_dtype)

    def loss(self, pred, label, valid):
        target = (label == 1).astype(jnp.float32)
        counts = (valid > 0) & (label != UNKNOWN)
        each = optax.sigmoid_binary_cross_entropy(pred.astype(jnp.float32), target)
        return jnp.sum(jnp.where(counts, each * valid, 0.0), axis=(1, 2, 3))

    def metric(self):
        return MeanAveragePrecision()

    def distance(self, a, b):
        """Mean over the classes of the difference of probabilities."""
        return jnp.mean(jnp.abs(a - b), axis=-1)

    def colorize(self, encoded):
        """The colour of the most probable class, as bright as it is probable; NaN is striped."""
        encoded = np.asarray(encoded)
        colour = class_palette(self.channels)[encoded.argmax(-1)] / 255
        return paint(colour * encoded.max(-1, keepdims=True), np.isnan(encoded).any(-1))


def build(name: str, num_classes: int, class_names: Sequence[str] | None = None) -> Multilabel:
    """Raises UserError if `num_classes` is below 2 or is not the number of `class_names`."""
    return Multilabel(name, channels=num_classes, class_names=named_classes(name, num_classes, class_names))

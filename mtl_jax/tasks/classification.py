"""Classification: one class for the whole image."""

import dataclasses
from collections.abc import Sequence

from mtl_jax.metrics.accuracy import Accuracy
from mtl_jax.tasks.semseg import Semseg, named_classes


@dataclasses.dataclass(frozen=True)
class Classification(Semseg):
    """Canonical label: class id [1, 1, 1]; -1 is unknown. Loss: softmax cross-entropy."""

    fill = -1
    dense = False
    headline = "top1"

    def metric(self):
        return Accuracy.empty(self.channels)


def build(name: str, num_classes: int, class_names: Sequence[str] | None = None) -> Classification:
    """Raises UserError if `num_classes` is below 2 or is not the number of `class_names`."""
    return Classification(
        name, channels=num_classes, class_names=named_classes(name, num_classes, class_names)
    )

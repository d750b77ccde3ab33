"""Human parts: which limb a pixel belongs to."""

import dataclasses

from mtl_jax.tasks.base import namespace
from mtl_jax.tasks.semseg import Semseg

CLASSES = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")


@dataclasses.dataclass(frozen=True)
class Parts(Semseg):
    """Canonical label: index in CLASSES; 255 is unknown.

    An image without any part counts as unknown as a whole, so that neither loss nor metric sees it:
    most images show nobody, and their background would drown the parts (Maninis et al., CVPR 2019).
    """

    channels: int = len(CLASSES)
    class_names: tuple[str, ...] = CLASSES

    def known(self, label):
        known = label != self.fill
        # Over the image's height, width and channel.
        anybody = namespace(label).any(known & (label > 0), axis=(-3, -2, -1), keepdims=True)
        return known & anybody


def build(name: str) -> Parts:
    return Parts(name)

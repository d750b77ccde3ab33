"""Surface normals in the camera's frame."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.metrics.angular import Angular, angle, unit
from mtl_jax.metrics.masked import blank, masked_mean
from mtl_jax.tasks.base import Task, namespace
from mtl_jax.tasks.colors import paint

_LOSSES = ("l1", "cosine")


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Canonical label: unit vector, x right, y up, z towards the camera; the zero vector is unknown.

    Loss, on the prediction n' scaled to unit length: "l1", the mean of |n' - n| over pixels and
    components (Maninis et al., CVPR 2019), or "cosine", 1 - <n', n> (Nishi et al., CVPR 2024).
    """

    channels: int = 3
    objective: str = "l1"

    label_channels = 3
    fill = 0.0
    interpolation = "bilinear"
    headline = "mErr"
    better = -1
    unit = "°"
    values = "directions"

    def known(self, label):
        return (label[..., :1] != 0) | (label[..., 1:2] != 0) | (label[..., 2:] != 0)

    def flip(self, label):
        return label * np.array([-1, 1, 1], np.float32)

    def rotate(self, label, radians):
        circle = math if isinstance(radians, float) else namespace(radians)
        cos, sin = circle.cos(radians), circle.sin(radians)
        x, y, z = label[..., :1], label[..., 1:2], label[..., 2:]
        return namespace(label).concatenate([x * cos - y * sin, x * sin + y * cos, z], axis=-1)

    def activate(self, pred):
        return unit(pred.astype(jnp.float32))

    def encode(self, label):
        # Interpolation between neighbours has shortened it.
        return unit(label.astype(jnp.float32))

    def to_label(self, activated):
        facing = np.array([0, 0, 1], np.float32)  # in place of the zero vector, which has no direction
        return jnp.where(self.known(activated), unit(activated), facing)

    def loss(self, pred, label, valid):
        pred, label = self.activate(pred), self.encode(blank(label, valid))
        if self.objective == "cosine":
            return masked_mean(1 - jnp.sum(pred * label, axis=-1, keepdims=True), valid)
        return masked_mean(jnp.abs(pred - label), valid)

    def metric(self):
        return Angular.empty()

    def distance(self, a, b):
        """The angle between them, in radians."""
        return angle(a, b)

    def colorize(self, encoded):
        """(n + 1) / 2 as RGB; the zero vector and NaN are striped."""
        encoded = np.asarray(encoded)
        return paint((encoded + 1) / 2, ~(encoded != 0).any(-1) | np.isnan(encoded).any(-1))


def build(name: str, loss: str = "l1") -> Normals:
    """Raises UserError for an unknown `loss`."""
    if loss not in _LOSSES:
        raise UserError(f"task {name!r} has no loss {loss!r}: choose one of {', '.join(_LOSSES)}")
    return Normals(name, objective=loss)

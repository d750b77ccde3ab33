"""Boundaries: which pixels lie on the outline of something."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.errors import UserError
from mtl_jax.metrics.boundary import BoundaryBenchmark
from mtl_jax.metrics.fscore import MaxF
from mtl_jax.metrics.masked import masked_mean
from mtl_jax.tasks.base import Task, namespace
from mtl_jax.tasks.colors import heat


@dataclasses.dataclass(frozen=True)
class Edges(Task):
    """Canonical label: 1 boundary, 0 not, one channel per annotator; 255 is unknown.

    An image that fewer annotators drew than there are channels has 255 in the channels left over.

    Loss: binary cross-entropy, weighted `positive_weight` on boundaries and 1 - `positive_weight`
    elsewhere (Xie and Tu, ICCV 2015, eq. 2; constant 0.95 in Maninis et al., CVPR 2019), over the valid
    pixels.

    Attributes:
      annotators: number of channels of the label.
      positive_from: number of annotators from which a pixel is a boundary.
      ignore_doubtful: pixels that fewer annotators drew, but some, are left out (as in Liu et al., CVPR
        2017); else they are no boundary.
      positive_weight: weight of boundaries; None balances each example, by its share of other pixels.
      benchmark: measure with the BSDS benchmark, each annotator on its own; otherwise pixel by pixel
        against the loss's positives, which is fast and strict.
      nms: the benchmark thins predictions by non-maximum suppression first.
      max_distance: how far a pixel may be off in the benchmark, as a share of the image's diagonal.
    """

    annotators: int = 1
    positive_from: int = 1
    ignore_doubtful: bool = True
    positive_weight: float | None = 0.95
    benchmark: bool = False
    nms: bool = True
    max_distance: float = 0.0075

    fill = 255.0
    better = 1
    unit = "%"

    @property
    def label_channels(self) -> int:
        return self.annotators

    @property
    def headline(self) -> str:
        return "odsF" if self.benchmark else "maxF"

    def known(self, label):
        return namespace(label).any(label != 255, axis=-1, keepdims=True)

    def activate(self, pred):
        return jax.nn.sigmoid(pred.astype(jnp.float32))

    def encode(self, label):
        """f32[...,1]: share of the annotators who drew the pixel."""
        present = jnp.sum(label != 255, axis=-1, keepdims=True)
        return (jnp.sum(label == 1, axis=-1, keepdims=True) / jnp.maximum(present, 1)).astype(jnp.float32)

    def loss(self, pred, label, valid):
        positive, certain = decide(label, valid, self.positive_from, self.ignore_doubtful)
        weight = self.positive_weight
        if weight is None:
            weight = 1 - masked_mean(positive, certain)[:, None, None, None]
        weight = jnp.where(positive > 0, weight, 1 - weight)
        return masked_mean(weight * optax.sigmoid_binary_cross_entropy(pred, positive), certain)

    def metric(self):
        if self.benchmark:
            return BoundaryBenchmark.empty(self.max_distance, self.nms)
        return PixelF(MaxF.empty(beta2=1.0), self.positive_from, self.ignore_doubtful)

    def distance(self, a, b):
        """Difference of the shares of annotators, 0 to 1."""
        return jnp.abs(a - b)[..., 0]

    def colorize(self, encoded):
        """White to black; NaN is striped."""
        value = np.asarray(encoded)[..., 0]
        return heat(value, np.isnan(value), "gray_r")


def decide(
    label: jax.Array, valid: jax.Array, positive_from: int, ignore_doubtful: bool
) -> tuple[jax.Array, jax.Array]:
    """One truth from all annotators: f32[B,H,W,1] boundary or not, and `valid` without doubtful pixels."""
    votes = jnp.sum(label == 1, axis=-1, keepdims=True)
    positive = votes >= positive_from
    if ignore_doubtful:
        valid = jnp.where(positive | (votes == 0), valid, 0.0)
    return positive.astype(jnp.float32), valid


@flax.struct.dataclass
class PixelF:
    """maxF (beta 1) of the pixels themselves, against the same truth as the loss."""

    pixels: MaxF
    positive_from: int = flax.struct.field(pytree_node=False)
    ignore_doubtful: bool = flax.struct.field(pytree_node=False)

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "PixelF":
        """pred f32[B,H,W,1] probability, label [B,H,W,annotators], valid f32[B,H,W,1]."""
        truth = decide(label, valid, self.positive_from, self.ignore_doubtful)
        return self.replace(pixels=self.pixels.update(pred, *truth))

    def compute(self) -> dict[str, float]:
        """{"maxF"}, a fraction."""
        return self.pixels.compute()


def build(
    name: str,
    annotators: int = 1,
    positive_from: int = 1,
    ignore_doubtful: bool = True,
    positive_weight: float | None = 0.95,
    benchmark: bool = False,
    nms: bool = True,
    max_distance: float = 0.0075,
) -> Edges:
    """See Edges; raises UserError if no pixel could ever be a boundary."""
    if not 1 <= positive_from <= annotators:
        raise UserError(
            f"task {name!r}: positive_from is {positive_from}, but there are {annotators} annotators:"
            f" choose 1 to {annotators}"
        )
    return Edges(
        name,
        annotators=annotators,
        positive_from=positive_from,
        ignore_doubtful=ignore_doubtful,
        positive_weight=positive_weight,
        benchmark=benchmark,
        nms=nms,
        max_distance=max_distance,
    )

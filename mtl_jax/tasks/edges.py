"""Boundaries: which pixels lie on the outline of something."""

import dataclasses
import functools

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

    With `mil_radius` instead the loss of multiple instances, `bag_loss`, which takes each annotator's drawing
    as it is, displaced by up to so many pixels: `positive_from` and `ignore_doubtful` have no part in it.

    Attributes:
      annotators: number of channels of the label.
      positive_from: number of annotators from which a pixel is a boundary.
      ignore_doubtful: pixels that fewer annotators drew, but some, are left out (as in Liu et al., CVPR
        2017); else they are no boundary.
      positive_weight: weight of boundaries; None balances each example, by its share of other pixels.
      mil_radius: pixels by which an annotator may have missed the boundary, in the size at which the network
        is trained; None trusts them to the pixel.
      benchmark: measure with the BSDS benchmark, each annotator on its own; otherwise pixel by pixel
        against the truth that `positive_from` and `ignore_doubtful` make, which is fast and strict.
      nms: the benchmark thins predictions by non-maximum suppression first.
      max_distance: how far a pixel may be off in the benchmark, as a share of the image's diagonal.
    """

    annotators: int = 1
    positive_from: int = 1
    ignore_doubtful: bool = True
    positive_weight: float | None = 0.95
    mil_radius: int | None = None
    benchmark: bool = False
    nms: bool = True
    max_distance: float = 0.0075

    fill = 255.0
    better = 1
    unit = "%"
    discrete = True
    values = "unit"

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

    def to_label(self, activated):
        """What is more probable than not, drawn by every annotator."""
        drawn = (activated >= 0.5).astype(self.label_dtype)
        return namespace(activated).repeat(drawn, self.annotators, axis=-1)

    def loss(self, pred, label, valid):
        if self.mil_radius is not None:
            return bag_loss(pred, label, valid, self.mil_radius, self.positive_weight)
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


def bag_loss(
    logits: jax.Array, label: jax.Array, valid: jax.Array, radius: int, positive_weight: float | None
) -> jax.Array:
    """Boundary loss of multiple instances, one place per bag being enough (Kokkinos, ICLR 2016).

    Every boundary pixel of every annotator has a bag: the valid pixels within `radius` of it. With w the
    weight of positives (None: the share of pixels outside all bags),

        w mean_bags softplus(-max_bag z) + (1 - w) sum_outside_all_bags softplus(z) / number of valid pixels

    Args:
      logits: z, f32[B,H,W,1].
      label: [B,H,W,annotators]: 1 is a boundary; 255 marks an annotator who is not there.
      valid: f32[B,H,W,1]; pixels at 0 are in no bag, have no bag, and are no negatives.
      radius: of the bags, in pixels.
      positive_weight: w.

    Returns:
      f32[B]; an example without any bag has the second term alone.
    """
    bags = valid * jnp.sum(label == 1, axis=-1, keepdims=True)  # how many have their centre here
    highest = disk_max(jnp.where(valid > 0, logits, jnp.finfo(logits.dtype).min), radius)
    outside = disk_max(bags, radius) == 0
    weight = masked_mean(outside, valid) if positive_weight is None else positive_weight
    missed = masked_mean(jax.nn.softplus(-highest), bags)
    false = masked_mean(jnp.where(outside, jax.nn.softplus(logits), 0.0), valid)
    return weight * missed + (1 - weight) * false


def disk_max(x: jax.Array, radius: int) -> jax.Array:
    """The largest of the values within `radius` pixels of each place: f32[B,H,W,C]."""
    height, width = x.shape[1:3]
    reach = range(2 * radius + 1)
    inside = [(r, c) for r in reach for c in reach if (r - radius) ** 2 + (c - radius) ** 2 <= radius**2]
    x = jnp.pad(x, ((0, 0), (radius, radius), (radius, radius), (0, 0)), constant_values=-jnp.inf)
    return functools.reduce(jnp.maximum, (x[:, r : r + height, c : c + width] for r, c in inside))


@flax.struct.dataclass
class PixelF:
    """maxF (beta 1) of the pixels themselves, against the truth of `decide`."""

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
    mil_radius: int | None = None,
    benchmark: bool = False,
    nms: bool = True,
    max_distance: float = 0.0075,
) -> Edges:
    """See Edges; raises UserError if no pixel could ever be a boundary, or the radius is negative."""
    if not 1 <= positive_from <= annotators:
        raise UserError(
            f"task {name!r}: positive_from is {positive_from}, but there are {annotators} annotators:"
            f" choose 1 to {annotators}"
        )
    if mil_radius is not None and mil_radius < 0:
        raise UserError(f"task {name!r}: mil_radius is {mil_radius}: choose 0 or more pixels, or None")
    return Edges(
        name,
        annotators=annotators,
        positive_from=positive_from,
        ignore_doubtful=ignore_doubtful,
        positive_weight=positive_weight,
        mil_radius=mil_radius,
        benchmark=benchmark,
        nms=nms,
        max_distance=max_distance,
    )

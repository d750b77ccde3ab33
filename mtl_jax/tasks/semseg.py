"""Semantic segmentation: a class for each pixel."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax.errors import UserError
from mtl_jax.metrics.confusion import Confusion
from mtl_jax.metrics.masked import blank, masked_mean
from mtl_jax.tasks.base import Task, namespace
from mtl_jax.tasks.colors import class_palette, paint


def named_classes(
    name: str, num_classes: int, class_names: Sequence[str] | None, least: int = 2
) -> tuple[str, ...]:
    """One name per class (its id if none is given); UserError if fewer than `least`, or if they disagree."""
    if num_classes < least:
        raise UserError(f"task {name!r} has num_classes {num_classes}: give at least {least}")
    if class_names is None:
        return tuple(str(c) for c in range(num_classes))
    if len(class_names) != num_classes:
        raise UserError(
            f"task {name!r} has {len(class_names)} class_names but num_classes {num_classes}: make them agree"
        )
    return tuple(class_names)


def scored_classes(name: str, class_names: Sequence[str], scored: Sequence[str | int]) -> tuple[int, ...]:
    """The ids of classes given by name or id; UserError if there is no such class, or one twice, or none."""
    unknown = [c for c in scored if c not in (range(len(class_names)) if isinstance(c, int) else class_names)]
    if unknown:
        raise UserError(
            f"task {name!r} has no class {unknown[0]!r} to score: it has {len(class_names)} classes, which go"
            " by name or id"
        )
    ids = tuple(c if isinstance(c, int) else list(class_names).index(c) for c in scored)
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"task {name!r} has scored {list(scored)}: name one class or more, each once")
    return ids


@dataclasses.dataclass(frozen=True)
class Semseg(Task):
    """Canonical label: class id; 255 is unknown. Loss: softmax cross-entropy.

    Attributes:
      class_names: one per channel.
      scored: ids of the classes that mIoU is the mean over; None: all.
    """

    class_names: tuple[str, ...] = ()
    scored: tuple[int, ...] | None = None

    label_dtype = "int32"
    fill = 255
    headline = "mIoU"
    better = 1
    unit = "%"
    discrete = True
    values = "classes"

    def known(self, label):
        return label != self.fill

    def activate(self, pred):
        return jax.nn.softmax(pred.astype(jnp.float32))

    def encode(self, label):
        return jnp.where(self.known(label), jax.nn.one_hot(label[..., 0], self.channels), 0.0)

    def to_label(self, activated):
        return namespace(activated).argmax(activated, axis=-1)[..., None].astype(self.label_dtype)

    def loss(self, pred, label, valid):
        target = self.encode(blank(label, valid))
        return masked_mean(optax.softmax_cross_entropy(pred, target)[..., None], valid)

    def metric(self):
        return Confusion.empty(self.class_names, self.scored)

    def distance(self, a, b):
        """0 where the (most probable) classes agree, else 1."""
        return (jnp.argmax(a, axis=-1) != jnp.argmax(b, axis=-1)).astype(jnp.float32)

    def colorize(self, encoded):
        """The colour of the most probable class; NaN, and all zero, are striped."""
        encoded = np.asarray(encoded)
        unknown = ~(encoded > 0).any(-1)
        return paint(class_palette(self.channels)[encoded.argmax(-1)] / 255, unknown)


def build(
    name: str,
    num_classes: int,
    class_names: Sequence[str] | None = None,
    scored: Sequence[str | int] | None = None,
) -> Semseg:
    """The task; `scored` are names or ids of the classes that mIoU is the mean over (default: all).

    Raises:
      UserError: `num_classes` is below 2 or is not the number of `class_names`; `scored` names no class.
    """
    class_names = named_classes(name, num_classes, class_names)
    ids = None if scored is None else scored_classes(name, class_names, scored)
    return Semseg(name, channels=num_classes, class_names=class_names, scored=ids)

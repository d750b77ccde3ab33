"""Several views of each training example: what a method asks the input pipeline for, and how it runs them."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any  # of arrays


@dataclasses.dataclass(frozen=True)
class View:
    """A further view of every training example, in `batch["views"]` under the name that a method gives it.

    Attributes:
      of: the view that it is made from; None: the batch's own image.
      zoom: True: another random zoom crop, with "image", "labels" and "valid" of its own; False: the
        same place in other colours, with "image" alone.
    """

    of: str | None = None
    zoom: bool = True


@dataclasses.dataclass(frozen=True)
class Stream:
    """Further images of the training split, drawn on their own, in `batch["streams"]` under a name.

    They are {"image": f32[B,h,w,3], "id": i32[B]}, as many as the batch has examples, whole and unchanged but
    for their size: enlarged or reduced until they cover the canvas, whose middle is taken. No image comes
    again before all others but the last few, which do not fill a batch, have come.

    Attributes:
      size: (h, w) of the canvas.
      labelled: those images alone that training is given a label of; `id` counts the stream's images.
    """

    size: tuple[int, int]
    labelled: bool = False


def together(views: Sequence[jax.Array]) -> jax.Array:
    """n arrays [B, ...] -> [n B, ...]; an example's views stay together, on the device that holds it."""
    return jnp.stack(views, 1).reshape(-1, *views[0].shape[1:])


def apart(tree: Tree, views: int) -> list[Tree]:
    """A tree of arrays [n B, ...] -> n trees of arrays [B, ...]; undoes `together`."""
    tree = jax.tree.map(lambda array: array.reshape(-1, views, *array.shape[1:]), tree)
    return [jax.tree.map(operator.itemgetter((slice(None), index)), tree) for index in range(views)]

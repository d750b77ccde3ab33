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


def together(views: Sequence[jax.Array]) -> jax.Array:
    """n arrays [B, ...] -> [n B, ...]; an example's views stay together, on the device that holds it."""
    return jnp.stack(views, 1).reshape(-1, *views[0].shape[1:])


def apart(tree: Tree, views: int) -> list[Tree]:
    """A tree of arrays [n B, ...] -> n trees of arrays [B, ...]; undoes `together`."""
    tree = jax.tree.map(lambda array: array.reshape(-1, views, *array.shape[1:]), tree)
    return [jax.tree.map(operator.itemgetter((slice(None), index)), tree) for index in range(views)]

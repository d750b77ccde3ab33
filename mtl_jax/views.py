"""Several views of each training example: what a method asks the input pipeline for, and how it runs them."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp


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


def apart(array: jax.Array, views: int) -> list[jax.Array]:
    """[n B, ...] -> n arrays [B, ...]; undoes `together`."""
    array = array.reshape(-1, views, *array.shape[1:])
    return [array[:, index] for index in range(views)]

"""Boxes of objects on their way from files to the label "detection".

A row is (ymin, xmin, ymax, xmax, class, hard): places in pixels, as edges (a box over the first pixel alone
is 0, 0, 1, 1), classes from 0, and whether the object is neither to be learnt nor to be missed.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def fitted(rows: np.ndarray, size: Sequence[int] | np.ndarray) -> np.ndarray:
    """f64[n,6]: the rows cut at the borders of their images.

    Places are rounded to a thousandth of a pixel. TFDS has them as fractions of the image in single
    precision, and so they become the same numbers that the release has.

    Args:
      rows: f64[n,6].
      size: (height, width) of the image, or of each row's [n,2].
    """
    bounds = np.asarray(size, float)[..., [0, 1, 0, 1]]
    return np.concatenate([np.clip(np.round(rows[:, :4], 3), 0, bounds), rows[:, 4:]], axis=1)


def has_area(rows: np.ndarray) -> np.ndarray:
    """bool[n]: whether anything is within the box, of rows [n,6]."""
    return (rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])


def as_label(rows: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """f32[m,1,6], the label of an image (height, width): of rows f64[n,6] those with an area, `fitted`."""
    rows = fitted(rows, size)
    return rows[has_area(rows), None].astype(np.float32)


def of_tfds(objects: Mapping[str, np.ndarray], hard: str, size: Sequence[int]) -> np.ndarray:
    """f64[n,6]: rows of TFDS's objects, whose bbox is (ymin, xmin, ymax, xmax) as fractions of the image.

    Args:
      objects: "bbox" f32[n,4], "label" i64[n], and the feature below.
      hard: name of the feature bool[n] that tells which are hard.
      size: (height, width) of the image.
    """
    places = objects["bbox"].astype(float) * np.tile(size, 2)
    return np.column_stack([places, objects["label"], objects[hard]])

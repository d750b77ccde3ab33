"""Trees of numbered arrays, <folder>/<kind>/<i>.npy, the images in the kind `image`.

The numbers run from 0 without a gap. They count: row i of a table about the images, such as which labels are
given to training, is about i.npy. So the examples are in the order of the numbers, not of the names.

Channels may come last or first.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Example, Split
from mtl_jax.errors import UserError, reading

Reader = Callable[[Path], np.ndarray]


def read_split(folder: Path, readers: Mapping[str, tuple[str, Reader]]) -> Split:
    """The examples of one folder, ids 0, 1, ...

    Args:
      folder: holds the folder `image`, and one for each kind of label.
      readers: by task, the label's kind and the function that reads it into canonical form.

    Raises:
      UserError: a number is missing among the images or labels; while loading, a file that cannot be read,
        or a label of another size than its image.
    """
    photos = _numbered(folder / "image")
    paths = {
        task: files.find([[folder / kind / p.name] for p in photos]) for task, (kind, _) in readers.items()
    }

    def load(index: int) -> Example:
        image = read_photo(photos[index])
        labels = {task: read(paths[task][index]) for task, (_, read) in readers.items()}
        for task, label in labels.items():
            files.check_shape(label, (*image.shape[:2], label.shape[2]), paths[task][index])
        return {"image": image, "labels": labels}

    return Split([p.stem for p in photos], _sizes(photos), load)


def read_photo(path: Path) -> np.ndarray:
    """uint8[h,w,3] of floats in [0, 1], to the nearest of the 256 levels, or of uint8 as it is."""
    stored = read_channels(path, 3)
    if stored.dtype == np.uint8:
        return stored
    if not ((stored >= 0) & (stored <= 1)).all():
        raise UserError(f"{path} holds an image beyond 0 to 1: store floats in that range, or uint8")
    return np.rint(stored * 255).astype(np.uint8)


def read_classes(path: Path, count: int) -> np.ndarray:
    """uint8[h,w,1]: 0 to `count` - 1, of numbers of any type, in which -1 is unknown; here that is 255."""
    stored = read_channels(path, 1)
    files.check_classes(stored, range(-1, count), path)
    return np.where(stored < 0, 255, stored).astype(np.uint8)


def read_positive(path: Path, largest: float, unit: str) -> np.ndarray:
    """f32[h,w,1]: a positive quantity; else, as NaN, unknown: 0. UserError if too large for its `unit`."""
    return files.positive(read_channels(path, 1), largest, unit, path)


def read_channels(path: Path, channels: int) -> np.ndarray:
    """[h,w,channels] as stored, whether the channels come last or first, or a single one not at all."""
    array = files.read_array(path)
    if _first(array.shape, channels):
        array = np.moveaxis(array, 0, -1)
    if array.shape[2] != channels:
        raise UserError(
            f"{path} holds {array.shape[2]} channels instead of {channels}: unpack the release again"
        )
    return array


def _first(shape: tuple[int, ...], channels: int) -> bool:
    return shape[0] == channels and shape[-1] != channels


def _numbered(folder: Path) -> list[Path]:
    """0.npy, 1.npy, ...; UserError names the first that is missing."""
    there = {path.stem for path in folder.glob("*.npy")}
    count = sum(stem.isdecimal() for stem in there)
    paths = [folder / f"{i}.npy" for i in range(max(count, 1))]
    for path in paths:
        if path.stem not in there:
            raise UserError(f"there is no {path}, but its number counts: unpack the release again")
    return paths


def _sizes(photos: list[Path]) -> Callable[[], np.ndarray]:
    return functools.cache(lambda: np.array([_size(p) for p in photos], np.int32))


def _size(path: Path) -> tuple[int, int]:
    """Height and width, from the header alone."""
    with reading(path):
        shape = np.load(path, mmap_mode="r").shape
    return shape[1:3] if _first(shape, 3) else shape[:2]

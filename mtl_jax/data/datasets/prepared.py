"""What `python -m mtl_jax.data.prepare` converted: any dataset, decoded, as fast to read as memory is.

`data_dir` is the folder that the command wrote:

    prepared.json               the dataset's name, options, labels, and tasks by split
    <split>-<i>-of-<n>.bin      the arrays of a few hundred examples, one behind the other
    <split>-<i>-of-<n>.json     where they begin, their types and shapes, the examples' ids, and a summary

Splits, tasks and labels are those of the dataset that was converted. The files are mapped into memory: of an
image and its labels only the part that a training crop shows is read.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

MANIFEST = "prepared.json"
ALIGNED = 64  # bytes, at multiples of which arrays begin
OPEN = 256  # files that are mapped at a time

Place = tuple[int, str, Sequence[int]]
"""(first byte, dtype, shape) of an array"""


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir`; its splits are those that were converted.

    Raises:
      UserError: the folder holds no such dataset, or not all of its files.
    """
    root = Path(data_dir).expanduser()
    if not (root / MANIFEST).is_file():
        raise UserError(f"there is no {root / MANIFEST}: convert a dataset by python -m mtl_jax.data.prepare")
    with reading(root / MANIFEST):
        manifest = json.loads((root / MANIFEST).read_text())
        tasks, labels = manifest["tasks"], manifest["labels"]

    def split(name: str, wanted: Sequence[str]) -> Split:
        if name not in tasks:
            raise UserError(f"{root} has no split {name!r}: choose one of {', '.join(tasks)}")
        missing = [task for task in wanted if task not in tasks[name]]
        if missing:
            raise UserError(f"the split {name!r} of {root} has no labels of task {missing[0]!r}")
        ids, places = [], []
        for path in part_paths(root, name, manifest["parts"][name]):
            part = read_part(path)
            ids += part["ids"]
            places += [(_arrays(path, part), place) for place in part["places"]]

        def load(index: int) -> Example:
            path, place = places[index]
            arrays = {key: _view(path, place[key]) for key in ("image", *wanted)}
            return {"image": arrays.pop("image"), "labels": arrays}

        sizes = np.array([place["image"][2][:2] for _, place in places], np.int32)
        return Split(ids, lambda: sizes, load)

    return Dataset(labels, tuple(tasks), split)


def part_paths(root: Path, split: str, parts: int) -> list[Path]:
    """Where the descriptions of a split's parts are."""
    return [root / f"{split}-{i:05d}-of-{parts:05d}.json" for i in range(parts)]


def read_part(path: Path) -> dict[str, Any]:
    """The description of a part."""
    with reading(path):
        return json.loads(path.read_text())


def append(file: BinaryIO, example: Example) -> dict[str, Place]:
    """Writes an example's arrays -> where they are."""
    arrays = {"image": example["image"], **example["labels"]}
    return {key: _append(file, array) for key, array in arrays.items()}


def _append(file: BinaryIO, array: np.ndarray) -> Place:
    file.write(bytes(-file.tell() % ALIGNED))
    place = file.tell(), array.dtype.str, array.shape
    file.write(np.ascontiguousarray(array).data)
    return place


def _arrays(path: Path, part: Mapping[str, Any]) -> Path:
    """The file of a part's arrays; UserError if it is not whole."""
    path = path.with_suffix(".bin")
    if not path.is_file() or path.stat().st_size != part["bytes"]:
        raise UserError(f"{path} is missing or not whole: convert the dataset again")
    return path


@functools.lru_cache(OPEN)
def _mapped(path: Path) -> np.ndarray:
    with reading(path):
        return np.memmap(path, np.uint8, "r")


def _view(path: Path, place: Place) -> np.ndarray:
    start, dtype, shape = place
    end = start + np.dtype(dtype).itemsize * math.prod(shape)
    return np.asarray(_mapped(path)[start:end]).view(dtype).reshape(shape)

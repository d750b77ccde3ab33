"""What `python -m mtl_jax.data.prepare` converted: any dataset as records that are quick to read.

`data_dir` is the folder that the command wrote:

    prepared.json                            the dataset's name, options, labels, and tasks by split
    <split>-<i>-of-<n>.array_record          examples as msgpack of their arrays, decoded; zstd
    <split>-<i>-of-<n>.json                  their ids and sizes, and a summary of them

Splits, tasks and labels are those of the dataset that was converted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np

from mtl_jax.data import records
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

MANIFEST = "prepared.json"


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir`; its splits are those that were converted.

    Raises:
      UserError: the folder holds no such dataset, or not all of its records; while loading, a damaged record.
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
        paths = part_paths(root, name, manifest["parts"][name])
        parts = [read_part(path) for path in paths]
        shards = records.Shards([path.with_suffix(".array_record") for path in paths])
        ids = [i for part in parts for i in part["ids"]]
        if len(shards) != len(ids):
            raise UserError(
                f"{root} holds {len(shards)} records of {name!r} instead of {len(ids)}: convert it again"
            )

        def load(index: int) -> Example:
            example = unpack(shards[index])
            return {"image": example["image"], "labels": {task: example["labels"][task] for task in wanted}}

        return Split(ids, lambda: np.array([s for part in parts for s in part["sizes"]], np.int32), load)

    return Dataset(labels, tuple(tasks), split)


def part_paths(root: Path, split: str, parts: int) -> list[Path]:
    """Where the descriptions of a split's parts are."""
    return [root / f"{split}-{i:05d}-of-{parts:05d}.json" for i in range(parts)]


def read_part(path: Path) -> dict[str, Any]:
    """The description of a part."""
    with reading(path):
        return json.loads(path.read_text())


def pack(example: Example) -> bytes:
    return flax.serialization.msgpack_serialize(example)


def unpack(record: bytes) -> Example:
    """The arrays share the record's memory and cannot be written to."""
    return flax.serialization.msgpack_restore(record)

"""Which labels are given to training: the tables of partially labelled multi-task learning.

A table is uint8[N,K]: 1 where image n of the training split has the label of task k. It is read from a file,
or drawn by one of the schemes of Li, Liu, Bilen, CVPR 2022, and Nishi, Kim, Li, Pfister, "Joint-Task
Regularization for Partially Labeled Multi-Task Learning", CVPR 2024:

    fully           every label
    onelabel        one label per image, every task's as often as any other's, or once more
    randomlabels    1 to K-1 labels per image, each number equally likely, and then each choice of tasks
    halflabels      half of an image's labels: floor(K/2) or ceil(K/2), likewise

Then a share of the images may lose the label of a task, or of all; and images that the scheme does not reach,
such as the raw frames of NYU-v2, may follow with the label of one task alone.

The published tables, which PyTorch wrote, belong to the preprocessed data that are published with them, since
row i is image i.npy there. Their columns, labels per column, and SHA-256:

    nyuv2_settings/onelabel.pth        semseg, depth, normals: 265, 265, 265 of 795 images
        757b3a95e1bc5145c1e72a783a489539f4c52004de338cb9798d8e227df6f389
    nyuv2_settings/randomlabels.pth    semseg, depth, normals: 392, 408, 385 of 795 images
        54e7bcbb739bb071d097fd77e4654ab830daeea41730fadaf0a4741ac7436a12
    cityscapes_settings/onelabel.pth   semseg, disparity: 1487, 1488 of 2975 images
        3ded35572b875fc36865354418b7f3c1ef23628d00987f8b5d260de8f0aa90d0
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax import atomic
from mtl_jax.errors import UserError, reading
from mtl_jax.weights import torch_file

SCHEMES = ("fully", "onelabel", "randomlabels", "halflabels")
PUBLISHED = "labels_weights"  # name of the table in the published files
DRAW, UNLABELLED = 0, 1  # streams of random numbers


def draw(scheme: str, count: int, tasks: int, seed: int) -> np.ndarray:
    """The table of a scheme for `count` images: uint8[count,tasks], a function of the arguments alone.

    It rests on the raw numbers of PCG64, which no version of NumPy changes, and on stable sorting.

    Raises:
      UserError: an unknown scheme, or one that withholds labels with fewer than 2 tasks to choose from. (With
        2, halflabels gives one label of two, but does not balance them as onelabel does.)
    """
    if scheme not in SCHEMES:
        raise UserError(f"config.data.labels.scheme is {scheme!r}: choose one of {', '.join(SCHEMES)}")
    if scheme == "fully":
        return np.ones((count, tasks), np.uint8)
    if tasks < 2:
        raise UserError(
            f"config.data.labels.scheme={scheme!r} needs at least 2 tasks, not {tasks}:"
            " name all tasks of the study in config.data.labels.tasks"
        )
    if scheme == "onelabel":
        dealt = np.empty(count, int)
        dealt[_permutation(count, seed, DRAW)] = np.arange(count) % tasks
        return np.eye(tasks, dtype=np.uint8)[dealt]
    low, high = (1, tasks - 1) if scheme == "randomlabels" else (tasks // 2, (tasks + 1) // 2)
    first, *order = _random(count * (tasks + 1), seed, DRAW).reshape(count, tasks + 1).T
    given = low + (first % np.uint64(high - low + 1)).astype(int)  # labels per image
    rank = np.argsort(np.argsort(np.transpose(order), axis=1, kind="stable"), axis=1)
    return (rank < given[:, None]).astype(np.uint8)


def _permutation(count: int, seed: int, stream: int) -> np.ndarray:
    return np.argsort(_random(count, seed, stream), kind="stable")


def _random(count: int, seed: int, stream: int) -> np.ndarray:
    """u64[count], uniform."""
    return np.random.PCG64([seed % 2**64, stream]).random_raw(count)


def table(options: Any, tasks: Sequence[str], count: int) -> np.ndarray:
    """The table of a training split of `count` images: uint8[count,K].

    Args:
      options: config.data.labels. Its columns are `tasks`, or else the run's. Its scheme or file covers the
        images before number `base` (all, if that is None); of these, round(share * images) lose the label
        of a task in `unlabelled`. They are the first of one permutation, so that a larger share takes the
        label from the same images and from more, and "all" means every task. The images from number `base`
        on have the label of the task `extension` alone.
      tasks: the run's tasks.
      count: images of the split.

    Raises:
      UserError: a scheme, task, share or number of images that makes no sense, or a file that cannot be read
        or holds no such table; names it.
    """
    columns = _columns(options, tasks)
    base = _base(options, count, columns)
    if options.file:
        given = _read(options.file, (base, len(columns)))
    else:
        given = draw(options.scheme, base, len(columns), options.seed)
    order = _permutation(base, options.seed, UNLABELLED)
    for name, share in options.unlabelled.items():
        if name not in ("all", *columns):
            raise _no_column("unlabelled", name, columns)
        if not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"config.data.labels.unlabelled.{name} is {share!r}: give a share, from 0 to 1")
        lost = slice(None) if name == "all" else columns.index(name)
        given[order[: round(share * base)], lost] = 0
    alone = [name == options.extension for name in columns]
    return np.concatenate([given, np.tile(np.uint8(alone), (count - base, 1))])


def _columns(options: Any, tasks: Sequence[str]) -> tuple[str, ...]:
    columns = tuple(options.tasks) or tuple(tasks)
    for name in tasks:
        if name not in columns:
            raise UserError(
                f"config.data.labels.tasks lacks {name!r}, a task of the run: it has {', '.join(columns)}"
            )
    return columns


def _base(options: Any, count: int, columns: Sequence[str]) -> int:
    """Number of images that the scheme or file covers."""
    if (options.base is None) != (options.extension is None):
        raise UserError("config.data.labels.base and .extension go together: set both or none")
    if options.base is None:
        return count
    if options.extension not in columns:
        raise _no_column("extension", options.extension, columns)
    if not 0 <= options.base <= count:
        raise UserError(f"config.data.labels.base is {options.base}, but the split has {count} images")
    return options.base


def _no_column(key: str, name: str, columns: Sequence[str]) -> UserError:
    return UserError(f"config.data.labels.{key} names {name!r}: the table's tasks are {', '.join(columns)}")


def _read(name: str, shape: tuple[int, int]) -> np.ndarray:
    """The table in a file (.pth, .pt, .npy, or text: .csv, .txt), uint8 of this shape."""
    path = Path(name).expanduser()
    if path.suffix in (".pth", ".pt"):
        given = _only_table(torch_file.read(path), path)
    elif path.suffix == ".npy":
        with reading(path):
            given = np.load(path)
    elif path.suffix in (".csv", ".txt"):
        with reading(path):
            lines = path.read_text().replace(",", " ").splitlines()
            given = np.array([line.split() for line in lines if line.strip()], float)
    else:
        raise UserError(
            f"config.data.labels.file is {name!r}: a table is a .pth, .pt, .npy, .csv or .txt file"
        )
    if given.shape != shape:
        raise UserError(
            f"{path} holds {_by(given.shape)} values, but the images and tasks of config.data.labels ask for"
            f" {_by(shape)}: give it a row per image and a column per task"
        )
    if not np.isin(given, (0, 1)).all():
        other = given[~np.isin(given, (0, 1))][0]
        raise UserError(f"{path} holds the value {other:g}: a label is given, 1, or not, 0")
    return given.astype(np.uint8)


def _only_table(saved: Any, path: Path) -> np.ndarray:
    named = saved if isinstance(saved, dict) else {PUBLISHED: saved}
    arrays = {key: value for key, value in named.items() if isinstance(value, np.ndarray)}
    if PUBLISHED in arrays or len(arrays) == 1:
        return arrays.get(PUBLISHED, next(iter(arrays.values())))
    raise UserError(f"{path} holds {len(arrays)} tensors, none of them {PUBLISHED!r}: keep the table alone")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def by_task(table: np.ndarray, options: Any, tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """{task: bool[N]} of the run's tasks, from a table as `table` gives it for these arguments."""
    columns = _columns(options, tasks)
    return {name: table[:, columns.index(name)].astype(bool) for name in tasks}


def claim(workdir: str, options: Any, tasks: Sequence[str], count: int) -> dict[str, np.ndarray]:
    """The labels that a run is given: task -> bool[count], by `table`, of the run's tasks.

    Writes the table into a new working directory as labels.npy, described by labels.json; or checks that
    those that are there say the same, so that a resumed run learns from the labels that it began with.

    Raises:
      UserError: what `table` raises; labels.npy has been changed, or is another table than `options` give.
    """
    columns, given = _columns(options, tasks), table(options, tasks, count)
    values, described = (os.path.join(workdir, name) for name in ("labels.npy", "labels.json"))
    if os.path.exists(described):
        _check(values, described, columns, given)
    else:
        buffer = io.BytesIO()
        np.save(buffer, given)
        description = {
            "scheme": None if options.file else options.scheme,
            "file": options.file,
            "seed": options.seed,
            "tasks": columns,
            "images": count,
            "labels": dict(zip(columns, given.sum(0, dtype=int).tolist(), strict=True)),
            "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        }
        os.makedirs(workdir, exist_ok=True)
        atomic.write(values, buffer.getvalue())
        atomic.write(described, json.dumps(description, indent=1) + "\n")  # last: it vouches for the other
    return by_task(given, options, tasks)


def _check(values: str, described: str, columns: Sequence[str], given: np.ndarray) -> None:
    with reading(described):
        description = json.loads(Path(described).read_text())
        tasks, digest = description["tasks"], description["sha256"]
    with reading(values):
        raw = Path(values).read_bytes()
    if hashlib.sha256(raw).hexdigest() != digest:
        raise UserError(f"{values} is not the file that {described} describes: restore both, or delete both")
    with reading(values):
        there = np.load(io.BytesIO(raw))
    if tasks != list(columns):
        raise UserError(
            f"{values} has the tasks {', '.join(tasks)}, but config.data.labels gives {', '.join(columns)}:"
            " use another --workdir"
        )
    if there.shape != given.shape:
        raise UserError(
            f"{values} has {_by(there.shape)} labels, but config.data.labels and the split give"
            f" {_by(given.shape)}: use another --workdir"
        )
    if others := np.count_nonzero(there != given):
        raise UserError(
            f"{values} differs from what config.data.labels gives now in {others} of {given.size} labels:"
            " use another --workdir"
        )


def statistics(given: Mapping[str, np.ndarray]) -> str:
    """What `claim` returned, in printable lines: labels per task, and images by their number of labels."""
    flags = np.stack(list(given.values()))
    per_task = [f"{name} {has.sum()} ({has.mean():.1%})" for name, has in given.items()]
    images = np.bincount(flags.sum(0, dtype=int), minlength=len(given) + 1)
    per_image = [f"{number} with {labels}" for labels, number in enumerate(images)]
    return (
        f"labels of {flags.shape[1]} images: {', '.join(per_task)}\nimages by labels: {', '.join(per_image)}"
    )

"""A user's own images and labels: one folder of images, and one of label files per task.

    data_dir/
      images/0001.jpg ...       one file of each name, with any of IMAGE_ENDINGS (data/files.py)
      labels40/0001.png ...     the same names in each task's folder
      train.txt, test.txt       the names of each split, without ending, one per line

`labels` says of each task what is in its folder and what the task itself must know:

    {"semseg": {"folder": "labels40", "num_classes": 39, "class_names": "classes.txt", "invalid": 39},
     "depth": {"folder": "depth", "scale": 10 / 255},
     "normals": {"folder": "normals", "axes": ("r", "g", "-b"), "invalid": 0},
     "edges": {"borders_of": "semseg"},
     "classification": {"table": "rooms.csv", "class_names": ("kitchen", "office")}}

  folder: where the label files are: .png (8 or 16 bits; one bit is 0 and 1; with a palette, the indices) or
    .npy.
  scale: what the stored number is multiplied by to give the task's unit (metres, [0, 1], 0 or 1, ...). Whole
    numbers that stand for measurements need it.
  invalid: stored number, or several, that mean "unknown"; so do NaN, and 0 where the task says it.
  axes: for normals, which stored channel is x (right), y (up), z (towards the camera); codes span -1 ... 1,
    floats are the components.
  borders_of: no folder; 1 at the borders between the classes of that task.
  table: for one label per image: a file of lines `name,class`, the class by its name or number.
  kind: module in tasks/ (default: the name); class_names may be a file with one name per line, each perhaps
    after its number. Everything else is an option of the task.

Numbers from 8-bit files that stand for measurements are kept in half precision (finer than their steps).
"""

import csv
import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage

from mtl_jax import tasks as task_modules
from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.look_up import look_up
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Task

LABEL_ENDINGS = (".png", ".npy")
LONGEST = 1.01  # component of a unit vector, after rounding
SEAM = 3  # pixels from a class, up to which an unknown pixel counts as part of a seam
SOURCES = ("folder", "borders_of", "table")  # of a label; one of them
READING = (*SOURCES, "scale", "invalid", "axes")


def build(
    data_dir: str,
    labels: Mapping[str, Mapping[str, Any]],
    images: str = "images",
    splits: Mapping[str, str] | None = None,
) -> Dataset:
    """See the head of this file.

    Args:
      data_dir: the folder that holds everything; all other paths are relative to it.
      labels: by task name.
      images: folder of the images.
      splits: file with the names of each split (default: train.txt and test.txt).

    Raises:
      UserError: a folder, list or file that is missing or unreadable, named with its path; a label
        description that is wrong. Splits check that their files are there; `load` checks contents.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: set data_dir to the one with {images} and the lists")
    splits = dict(splits or {"train": "train.txt", "test": "test.txt"})
    options = {name: _task_options(root, spec) for name, spec in labels.items()}
    readers = {name: _reader(root, name, labels, options) for name in labels}

    listing = functools.cache(_list_files)  # splits, and tasks, share folders

    def paths(ids: Sequence[str], folder: str, endings: tuple[str, ...]) -> list[Path]:
        return _paths(ids, listing(root / folder, endings), root / folder, endings)

    def split(split_name: str, wanted: Sequence[str]) -> Split:
        if split_name not in splits:
            raise UserError(f"there is no split {split_name!r}: choose one of {', '.join(splits)}")
        listed = root / splits[split_name]
        if not listed.is_file():
            raise UserError(f"there is no {listed}: write the split's images into it, one name per line")
        ids = files.read_names(listed)
        photos = paths(ids, images, files.IMAGE_ENDINGS)
        tables = {name: readers[name].read(ids) for name in wanted if readers[name].folder is None}
        dense = [name for name in wanted if name not in tables]
        maps = {name: paths(ids, readers[name].folder, LABEL_ENDINGS) for name in dense}
        dtypes = {name: readers[name].read(found[0]).dtype for name, found in maps.items()}

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            found = {name: readers[name].read(maps[name][index]) for name in maps}
            for name, label in found.items():
                path = maps[name][index]
                if label.shape[:2] != image.shape[:2]:
                    raise UserError(
                        f"{path} is {_by(label.shape)} but its image {photos[index]} is {_by(image.shape)}:"
                        " resize one to the other"
                    )
                if label.dtype != dtypes[name]:
                    raise UserError(f"{path} has not the bit depth of {maps[name][0]}: store all files alike")
            found |= {name: labels[index] for name, labels in tables.items()}
            return {"image": image, "labels": {name: found[name] for name in wanted}}

        return Split(ids, files.image_sizes(photos), load)

    return Dataset(options, tuple(splits), split)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one task's label files into its canonical form; `spec` is described at the head of this file."""

    task: Task
    spec: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return self.spec["folder"]

    def read(self, path: Path) -> np.ndarray:
        """[h,w,C]: uint8 or int32 for classes, else float16 or float32; raises UserError naming `path`."""
        raw = files.read_array(path)
        if raw.shape[2] != self.task.label_channels:
            raise UserError(
                f"{path} has {raw.shape[2]} channels, but task {self.task.name!r} needs"
                f" {self.task.label_channels}: convert the file (colours are 3, transparency is one more)"
            )
        if raw.dtype not in self._tables:
            return self._decode(raw, path)
        table, wrong = self._tables[raw.dtype]
        if wrong[: int(raw.max()) + 1].any() and wrong[raw].any():
            return self._decode(raw, path)  # which names it
        return look_up(raw, table)

    @functools.cached_property
    def _tables(self) -> dict[np.dtype, tuple[np.ndarray, np.ndarray]]:
        """What each number of 8 and of 16 bits means, and whether it is wrong: reading is looking that up."""
        measured = self.task.fill != 255
        if self.task.label_channels > 1 or (measured and "scale" not in self.spec):
            return {}
        every = {dtype: np.arange(np.iinfo(dtype).max + 1, dtype=dtype) for dtype in (np.uint8, np.uint16)}
        meant = {dtype: self._meaning(codes[:, None], Path()) for dtype, codes in every.items()}
        return {np.dtype(dtype): (label.ravel(), wrong.ravel()) for dtype, (label, wrong) in meant.items()}

    def _decode(self, raw: np.ndarray, path: Path) -> np.ndarray:
        if np.isinf(raw).any():
            raise UserError(f"{path} holds infinite numbers: store NaN where nothing is known")
        label, wrong = self._meaning(raw, path)
        if wrong.any():
            raise UserError(
                f"{path} holds {self._scaled(raw)[wrong][0]:g}, but task {self.task.name!r} has values 0 to"
                f" {self._count - 1}: name what is unknown in `invalid`, or give `scale` or `num_classes`"
            )
        return label

    def _meaning(self, raw: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """The label, and bool[...,1]: where it is wrong."""
        unknown = np.isin(raw, self.spec.get("invalid", ())).all(-1, keepdims=True)
        if self.task.fill == 255:
            value = self._scaled(raw)
            wrong = ~unknown & ~((value >= 0) & (value < self._count))
            dtype = np.uint8 if self._count <= 255 else np.int32
            return np.where(unknown | wrong, self.task.fill, value).astype(dtype), wrong
        value = self._vectors(raw, path) if "axes" in self.spec else self._measures(raw, path)
        unknown |= np.isnan(value).any(-1, keepdims=True)
        label = np.where(unknown, self.task.fill, value)
        return label.astype("float16" if raw.dtype == np.uint8 else "float32"), np.zeros_like(unknown)

    @property
    def _count(self) -> int:
        return max(self.task.channels, 2)  # a single output says yes or no

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        """Ids of classes, as they were stored."""
        return np.rint(raw * self.spec["scale"]) if "scale" in self.spec and raw.dtype != bool else raw

    def _measures(self, raw: np.ndarray, path: Path) -> np.ndarray:
        if raw.dtype.kind != "f" and "scale" not in self.spec:
            raise UserError(
                f"{path} holds whole numbers: give `scale`, the worth of 1 for task {self.task.name!r}"
            )
        return raw * np.float32(self.spec.get("scale", 1))

    def _vectors(self, raw: np.ndarray, path: Path) -> np.ndarray:
        codes = raw.astype(np.float32)
        if raw.dtype.kind == "u":
            codes = codes * (2 / np.iinfo(raw.dtype).max) - 1
        elif (np.abs(codes) > LONGEST).any():
            raise UserError(f"{path} holds vectors that are longer than 1: convert the file")
        axes = self.spec["axes"]
        vector = np.stack(
            [codes[..., "rgb".index(a[-1])] * (-1 if a[0] == "-" else 1) for a in axes], axis=-1
        )
        length = np.linalg.norm(vector, axis=-1, keepdims=True)
        return np.divide(vector, length, out=np.zeros_like(vector), where=length > 0.5)  # short: no direction


@dataclasses.dataclass(frozen=True)
class BorderReader:
    """Reads edges off the borders between another task's classes."""

    classes: Reader

    @property
    def folder(self) -> str:
        return self.classes.folder

    def read(self, path: Path) -> np.ndarray:
        return borders(self.classes.read(path), self.classes.task.fill)


@dataclasses.dataclass(frozen=True)
class TableReader:
    """Reads one label per image from the table at `path`."""

    task: Task
    spec: Mapping[str, Any]
    path: Path
    folder = None

    def read(self, names: Sequence[str]) -> list[np.ndarray]:
        """i32[1,1,1] of each name; other lines of the table may say what they like."""
        table = defaultdict(list)
        for name, *values in csv.reader(files.read_lines(self.path)):
            table[name.strip()] += values
        for name in names:
            if len(table[name]) != 1:
                count = len(table[name])
                raise UserError(f"{self.path} gives {name!r} {count} classes: write one line `name,class`")
        return [np.full((1, 1, 1), self._class(name, *table[name]), np.int32) for name in names]

    def _class(self, name: str, value: str) -> int:
        value = value.strip()
        if value in map(str, np.ravel(self.spec.get("invalid", ()))):
            return self.task.fill
        if value in self.task.class_names:
            return self.task.class_names.index(value)
        if value.isdecimal() and int(value) < self.task.channels:
            return int(value)
        raise UserError(
            f"{self.path} has class {value!r} for {name!r}, but task {self.task.name!r} has the classes"
            f" {', '.join(self.task.class_names)}: name what is unknown in `invalid`"
        )


def borders(classes: np.ndarray, unknown: int) -> np.ndarray:
    """Where classes meet: uint8[h,w,1] from ids [h,w,1]; 1 border, 0 none, 255 unknown.

    A border pixel differs from its right, lower or lower right neighbour (as in the Berkeley benchmark,
    which makes borders one pixel thick). Beside an unknown pixel nobody can say, unless another
    neighbour settles it.
    """
    padded = np.pad(_close_seams(classes[..., 0], unknown), ((0, 1), (0, 1)), "edge")
    here = padded[:-1, :-1]
    others = [padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]]
    border = np.any([(other != here) & (other != unknown) for other in others], axis=0) & (here != unknown)
    doubt = np.any([other == unknown for other in others], axis=0) | (here == unknown)
    return np.where(border, 1, np.where(doubt, 255, 0)).astype(np.uint8)[..., None]


def _close_seams(classes: np.ndarray, unknown: int) -> np.ndarray:
    """Gives unknown pixels the nearest class: people who outline regions leave unlabelled seams between."""
    distance, nearest = scipy.ndimage.distance_transform_edt(classes == unknown, return_indices=True)
    return np.where(distance <= SEAM, classes[tuple(nearest)], unknown)


def _task_options(root: Path, spec: Mapping[str, Any]) -> dict[str, Any]:
    """What the task must know: all but how its files are read."""
    options = {key: value for key, value in spec.items() if key not in READING}
    names = options.get("class_names")
    if isinstance(names, str):
        names = [re.sub(r"^\d+\s+", "", line) for line in files.read_lines(root / names)]
        options["class_names"] = names[: options.get("num_classes")]
    if names:
        options.setdefault("num_classes", len(names))
    return options


def _reader(
    root: Path, name: str, labels: Mapping[str, Mapping[str, Any]], options: Mapping[str, Mapping[str, Any]]
) -> Reader | BorderReader | TableReader:
    spec = labels[name]
    if sum(source in spec for source in SOURCES) != 1:
        raise UserError(f"label {name!r} must give one of `folder`, `borders_of` and `table`")
    if "borders_of" in spec:
        source = spec["borders_of"]
        if "folder" not in labels.get(source, ()):
            raise UserError(f"label {name!r} takes the borders of {source!r}, which has no folder")
        return BorderReader(_reader(root, source, labels, options))
    if "axes" in spec and sorted(a.lstrip("-") for a in spec["axes"]) != ["b", "g", "r"]:
        raise UserError(f"label {name!r}: axes must be r, g and b in some order, each perhaps with a minus")
    task = task_modules.build({name: {}}, options)[name]
    if task.dense == ("table" in spec):
        raise UserError(f"label {name!r}: only a task with one label per image, and any such, has a `table`")
    return Reader(task, spec) if task.dense else TableReader(task, spec, root / spec["table"])


def _list_files(folder: Path, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """Files below `folder` by their path in it without ending."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: put the files there, or name it in data.options")
    listing = defaultdict(list)
    for path in folder.rglob("*"):
        if path.suffix.lower() in endings:
            listing[path.relative_to(folder).with_suffix("").as_posix()].append(path)
    return dict(listing)


def _paths(
    ids: Sequence[str], listing: Mapping[str, Sequence[Path]], folder: Path, endings: tuple[str, ...]
) -> list[Path]:
    """The one file of each name."""
    missing = [name for name in ids if name not in listing]
    if missing and Path(missing[0]).with_suffix("").as_posix() in listing:
        raise UserError(f"the list of a split has the name {missing[0]}: write the names without ending")
    if missing:
        raise UserError(
            f"there is no {folder / missing[0]} with ending {', '.join(endings)}"
            + (f" ({len(missing)} files are missing there)" if len(missing) > 1 else "")
            + ": add the files or take their names off the list"
        )
    for name in ids:
        if len(listing[name]) > 1:
            raise UserError(f"{' and '.join(map(str, sorted(listing[name])))} share a name: keep one of them")
    return [listing[name][0] for name in ids]


def _by(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]} (height x width)"

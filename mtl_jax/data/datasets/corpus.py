"""Very many images, as they come from the web: a tree of files, or shards of records; perhaps with labels.

What JFT-300M was to Ghiasi et al., "Multi-Task Self-Training for Learning General Representations", ICCV
2021: images without labels of the tasks that are to be learnt, or with many noisy classes each. JFT is not
public; any collection of images can stand in for it. There is nothing to download. `data_dir` holds either

    any/folders/a.jpg              images of any size, by ending (IMAGE_ENDINGS in data/files.py)
    labels.csv  or  labels.jsonl   if there are labels (option `labels`): per line  any/folders/a.jpg,3 17
                                   or  {"path": "any/folders/a.jpg", "ids": [3, 17]}

or TFRecord or ArrayRecord files of tf.train.Example, with the features that the option `features` names:

    any/folders/a-00000-of-01024   by name: so, or with .tfrecord or .array_record in it
      image/encoded                one image file (JPEG, PNG, ...)
      image/class/label            if there are labels: any number of classes

Files that img2dataset wrote with output_format=tfrecord are read by {"image": "jpg", "id": "key"}.

A class is a number from 0 on, or a name in the file `class_names`. An image that is listed with no class has
none of them; of an image that is not listed, or a record without the feature, every class is unknown.

The name of an image is its path in data_dir, the file's path and the record's number in it (a/b-00000:17), or
the feature `id`. It stays the same from run to run, whatever the splits, as long as the files do.

For 10^7 images and more take records: a tree is listed at every start, and its paths are kept. ArrayRecord
files know where their records are; TFRecord files are passed over once per start, and 8 bytes kept for each.
"""

import csv
import dataclasses
import functools
import glob
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.records import Names, Shards
from mtl_jax.errors import UserError, reading
from mtl_jax.metrics.ranking import UNKNOWN

EVERYTHING = "**/*"
FEATURES = {"image": "image/encoded", "labels": "image/class/label"}
SHARD = re.compile(r"\.(tfrecords?|array_?records?)(-|$)|-\d+-of-\d+$", re.IGNORECASE)


def build(
    data_dir: str,
    splits: Mapping[str, str] | None = None,
    features: Mapping[str, str] | None = None,
    labels: str | None = None,
    num_classes: int | None = None,
    class_names: str | None = None,
) -> Dataset:
    """The images below `data_dir` (see the head of this file).

    Args:
      data_dir: the folder; the other paths are relative to it.
      splits: name -> pattern of the paths of its images or shards, such as {"train": "train/**/*"};
        default: the split train, of everything.
      features: names of the features `image`, `labels` and `id` in records, where they differ from FEATURES.
      labels: file with the classes of the images of a tree.
      num_classes: how many classes there are; the task is `objects`, of kind multilabel.
      class_names: file with their names, one per line.

    Raises:
      UserError: a file is missing or not as described, or a split has no images; while loading, an image or a
        record that cannot be read, or a class that does not exist.
    """
    root = Path(data_dir).expanduser()
    splits = dict(splits or {"train": EVERYTHING})
    features = FEATURES | dict(features or {})
    if wrong := set(features) - {"image", "labels", "id"}:
        raise UserError(f"corpus: data.options.features has {wrong.pop()!r}: name image, labels or id")
    names = files.read_names(root / class_names) if class_names else None
    classes = Classes(num_classes or len(names or ()), {name: i for i, name in enumerate(names or ())})

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in splits:
            raise UserError(f"corpus has no split {name!r}: choose one of {', '.join(splits)}")
        found = _list_files(root, splits[name])
        if found[0].lower().endswith(files.IMAGE_ENDINGS):
            listed = _read_labels(root / labels, found, classes) if tasks and labels else {}
            return _tree(root, found, tasks, classes, listed)
        shards = Shards([root / path for path in found])
        return Records(root, shards, features, classes).split(tasks)

    known = {"kind": "multilabel", "num_classes": classes.count} | ({"class_names": names} if names else {})
    return Dataset({"objects": known} if classes.count else {}, tuple(splits), split)


class Classes:
    """Turns what the data say of an image's classes into labels."""

    def __init__(self, count: int, numbers: Mapping[str, int]):
        self.count = count
        self._numbers = numbers

    def number(self, given: int | str | bytes, where: str) -> int:
        """Of a class by its number or name; UserError, beginning with `where`, if there is none such."""
        name = given.decode() if isinstance(given, bytes) else str(given)
        number = self._numbers.get(name, int(name) if name.isdecimal() else -1)
        if not 0 <= number < self.count:
            raise UserError(
                f"{where} has class {name!r}, but there are {self.count} from 0 on: check"
                " data.options.num_classes and class_names"
            )
        return number

    def label(self, numbers: Iterable[int] | None) -> np.ndarray:
        """uint8[1,1,count]: 1 for these classes, 0 for the others; all unknown if there is no list."""
        if numbers is None:
            return np.full((1, 1, self.count), UNKNOWN, np.uint8)
        label = np.zeros((1, 1, self.count), np.uint8)
        label[..., list(numbers)] = 1
        return label


def _list_files(root: Path, pattern: str) -> list[str]:
    """Paths in `root` of all images, or of all shards, in order."""
    with reading(root):
        found = glob.glob(pattern, root_dir=root, recursive=True)
    images = [path for path in found if path.lower().endswith(files.IMAGE_ENDINGS)]
    shards = [path for path in found if SHARD.search(path)]
    if images and shards:
        raise UserError(
            f"{root / pattern} has images ({images[0]}) and record files ({shards[0]}): name one kind in"
            " data.options.splits"
        )
    if not images and not shards:
        raise UserError(
            f"there is no image and no record file {root / pattern}: give another folder, or other patterns"
            " in data.options.splits"
        )
    return sorted(images or shards)


def _tree(
    root: Path, paths: list[str], tasks: Sequence[str], classes: Classes, listed: Mapping[str, Sequence[int]]
) -> Split:
    def load(index: int) -> Example:
        label = {task: classes.label(listed.get(paths[index])) for task in tasks}
        return {"image": files.read_image(root / paths[index]), "labels": label}

    return Split(paths, lambda: files.image_sizes([root / path for path in paths])(), load)


def _read_labels(path: Path, images: Sequence[str], classes: Classes) -> dict[str, list[int]]:
    """Classes by image, of these images; other lines of the file are passed over."""
    wanted, listed = set(images), {}
    with reading(path), path.open(encoding="utf-8") as file:
        for line, image, given in _lines(file, path):
            if image in listed:
                raise UserError(f"line {line} of {path} lists {image} again: keep one line for each image")
            if image in wanted:
                listed[image] = [classes.number(c, f"line {line} of {path}") for c in given]
    if not listed:
        raise UserError(f"{path} lists none of the split's {len(images)} images: give paths like {images[0]}")
    return listed


def _lines(file: Iterable[str], path: Path) -> Iterator[tuple[int, str, Sequence[int | str]]]:
    """(number of the line, path of the image, its classes) of a JSON-lines or CSV file."""
    for number, line in enumerate(file, 1):
        try:
            if path.suffix == ".csv":
                ((image, given),) = csv.reader([line])
                yield number, image, given.split()
            else:
                row = json.loads(line)
                yield number, row["path"], row["ids"]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            form = "a/b.jpg,3 17" if path.suffix == ".csv" else '{"path": "a/b.jpg", "ids": [3, 17]}'
            raise UserError(f"line {number} of {path} is not of the form {form}: mend it") from error


@dataclasses.dataclass(frozen=True)
class Records:
    """Examples in shards, read one at a time."""

    root: Path
    shards: Shards
    features: Mapping[str, str]
    classes: Classes

    @functools.cached_property
    def names(self) -> Names:
        return Names(self.shards, self.root)

    def split(self, tasks: Sequence[str]) -> Split:
        ids = Ids(len(self.shards), self.key) if "id" in self.features else self.names
        measure = functools.cache(lambda: np.array([self.size(i) for i in range(len(ids))], np.int32))
        return Split(ids, measure, lambda index: self.load(index, tasks))

    def load(self, index: int, tasks: Sequence[str]) -> Example:
        stored = self._stored(index)
        with reading(f"image of {self._where(index)}"):
            picture = files.rgb(self._bytes(stored, "image", index))
        label = {task: self.classes.label(self._classes(stored, index)) for task in tasks}
        return {"image": picture, "labels": label}

    def size(self, index: int) -> tuple[int, int]:
        encoded = self._bytes(self._stored(index), "image", index)
        with reading(f"image of {self._where(index)}"), Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width

    def key(self, index: int) -> str:
        with reading(self._where(index)):
            return self._bytes(self._stored(index), "id", index).decode()

    def _where(self, index: int) -> str:
        return f"record {self.names[index]} in {self.root}"

    def _stored(self, index: int) -> Mapping[str, tf.train.Feature]:
        record = self.shards[index]
        with reading(self._where(index)):
            return tf.train.Example.FromString(record).features.feature

    def _bytes(self, stored: Mapping[str, tf.train.Feature], kind: str, index: int) -> bytes:
        """The one value of a feature."""
        name = self.features[kind]
        values = stored[name].bytes_list.value if name in stored else ()
        if len(values) != 1:
            raise UserError(
                f"{self._where(index)} has not one {name!r} of bytes, but {', '.join(sorted(stored))}: name"
                f" the feature that is the {kind} in data.options.features"
            )
        return values[0]

    def _classes(self, stored: Mapping[str, tf.train.Feature], index: int) -> list[int] | None:
        """Numbers of the classes; None if there is no list of them."""
        feature = stored[self.features["labels"]] if self.features["labels"] in stored else tf.train.Feature()
        kind = feature.WhichOneof("kind")
        if kind is None:
            return None
        return [self.classes.number(given, self._where(index)) for given in getattr(feature, kind).value]


class Ids(Sequence[str]):
    """Keys that are read when they are asked for."""

    def __init__(self, count: int, read: Callable[[int], str]):
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> str:
        return self._read(range(self._count)[index])

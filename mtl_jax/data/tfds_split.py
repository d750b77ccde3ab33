"""Splits of datasets that TensorFlow Datasets prepared, read at random from TFRecord or ArrayRecord files.

They lie in data_dir/NAME/VERSION, or data_dir/NAME/CONFIG/VERSION, as `tfds build NAME --data_dir=DIR` writes
them; the newest version counts. Nothing is downloaded, and the code that made the dataset is not needed.
"""

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from mtl_jax.data import files
from mtl_jax.data.dataset import Example, Split
from mtl_jax.data.records import Names, Shards
from mtl_jax.errors import UserError, reading

Builder = tfds.core.DatasetBuilder


def is_prepared(data_dir: str | Path, name: str, config: str | None = None) -> bool:
    """Whether `builder` would find a version of the dataset."""
    return bool(_versions(_folder(data_dir, name, config)))


def builder(data_dir: str | Path, name: str, config: str | None = None) -> Builder:
    """The newest prepared version of a dataset, to be read only; its `info.features` tell classes and shapes.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    folder = _folder(data_dir, name, config)
    versions = _versions(folder)
    if not versions:
        full_name = f"{name}/{config}" if config else name
        raise UserError(
            f"there is no prepared TFDS dataset {folder / 'VERSION'}: run"
            f" `tfds build {full_name} --data_dir={Path(data_dir).expanduser()}`"
        )
    with reading(versions[-1]):
        return tfds.builder_from_directory(versions[-1])


def _folder(data_dir: str | Path, name: str, config: str | None) -> Path:
    return Path(data_dir).expanduser() / name / (config or "")


def _versions(folder: Path) -> list[Path]:
    """Folders of finished versions, the newest last."""
    infos = folder.glob("*/dataset_info.json")
    found = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


class Examples(Sequence[dict[str, Any]]):
    """The examples of a split as dicts of NumPy values; may be read by many threads.

    Images are uint8[h,w,3], or [h,w,C] as the feature says; classes are ints, texts are bytes. What the
    feature holds several of has a leading axis of their number, which may be 0; texts are then a list.

    Attributes:
      shards: the records.
      ids: names of the examples, by file and number; those of one version of the dataset.
    """

    def __init__(
        self, builder: Builder, split: str, features: Sequence[str] | Mapping[str, Any] | None = None
    ):
        """Opens nothing, but finds the files.

        Args:
          builder: the dataset.
          split: name of a split.
          features: those to decode, by name; of nested ones perhaps some: {"objects": {"bbox", "label"}}.

        Raises:
          UserError: no such split or feature, or a file is missing.
        """
        if split not in builder.info.splits:
            raise UserError(
                f"{builder.data_path} has no split {split!r}: choose one of {', '.join(builder.info.splits)}"
            )
        info = builder.info.splits[split]
        self.shards = Shards(files.find([[Path(path)] for path in info.filepaths]), info.shard_lengths)
        self.ids = Names(self.shards)
        with reading(f"features {features} of {builder.data_path}"):
            self._features = (
                builder.info.features
                if features is None
                else tfds.decode.PartialDecoding(features).extract_features(builder.info.features)
            )
        self._images = {n: f for n, f in self._features.items() if isinstance(f, tfds.features.Image)}
        self._decoders = {name: tfds.decode.SkipDecoding() for name in self._images}  # `_decode` does it

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises UserError that names the file and the record if it cannot be read."""
        stored = self._stored(index)
        for name, feature in self._images.items():
            with reading(f"{name} of {self._where(index)}"):
                stored[name] = _decode(stored[name], feature)
        return stored

    def sizes(self, name: str = "image") -> Callable[[], np.ndarray]:
        """() -> i32[N,2]: height and width of each example's image `name`, as `Split.measure` wants it."""
        shape = self._images[name].shape[:2]
        if None not in shape:
            return lambda: np.tile(np.int32(shape), (len(self), 1))
        return functools.cache(lambda: np.array([self._size(i, name) for i in range(len(self))], np.int32))

    def _size(self, index: int, name: str) -> tuple[int, int]:
        encoded = self._stored(index)[name]
        with reading(f"{name} of {self._where(index)}"), Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width

    def _stored(self, index: int) -> dict[str, Any]:
        """The example with its images encoded."""
        record = self.shards[index]
        with reading(self._where(index)):
            example = self._features.deserialize_example_np(record, decoders=self._decoders)
        return {name: _stacked(self._features[name], value) for name, value in example.items()}

    def _where(self, index: int) -> str:
        file, number = self.shards.place(index)
        return f"record {number} of {self.shards.paths[file]}"


def classified(builder: Builder, split: str, tasks: Sequence[str]) -> Split:
    """A split of images, whose feature `label` is the label of all `tasks`, of kind classification.

    Raises:
      UserError: as `Examples` does; while loading, a record that cannot be read.
    """
    examples = Examples(builder, split, ["image", "label"] if tasks else ["image"])

    def load(index: int) -> Example:
        stored = examples[index]
        labels = {task: np.full((1, 1, 1), stored["label"], np.int32) for task in tasks}
        return {"image": stored["image"], "labels": labels}

    return Split(examples.ids, examples.sizes(), load)


def _decode(encoded: bytes, feature: tfds.features.Image) -> np.ndarray:
    """[h,w,C] of the feature's dtype; floats lie in a PNG as their four bytes, the pixel's channels."""
    channels, dtype = feature.shape[-1], feature.np_dtype
    if channels == 3 and dtype == np.uint8:
        return files.rgb(encoded)
    pixels = files.pixels(encoded)
    if dtype == np.float32:
        pixels = pixels.view(np.float32)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.shape[-1] != channels or pixels.dtype != dtype:
        raise ValueError(f"it has {pixels.shape[-1]} channels of {pixels.dtype}, not {channels} of {dtype}")
    return pixels


def _stacked(feature: Any, value: Any) -> Any:
    """TFDS gives what a feature holds several of as a list, which has no shape and dtype if it is empty."""
    feature = getattr(feature, "feature", feature)  # what a Sequence consists of
    if isinstance(value, dict):
        return {name: _stacked(feature[name], part) for name, part in value.items()}
    if isinstance(value, list) and np.dtype(feature.np_dtype).kind in "biuf" and None not in feature.shape:
        return np.array(value, feature.np_dtype).reshape(len(value), *feature.shape)
    return value

"""ImageNet, the 1000 classes of ILSVRC 2012: photographs of one class each.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015 (https://image-net.org,
after registration; for non-commercial research). 1 281 167 images to train on (138 GB) and 50 000 to validate
(6.3 GB), of all sizes, about 500x375.

`data_dir` holds the dataset in one of three forms, looked for in this order:

    imagenet2012/<version>/             as TFDS prepares it, from the two archives below in
                                        DIR/downloads/manual: `tfds build imagenet2012 --data_dir=DIR`
    train/<wnid>/<wnid>_<n>.JPEG        ILSVRC2012_img_train.tar and the 1000 archives in it, unpacked
    val/ILSVRC2012_val_<number>.JPEG    ILSVRC2012_img_val.tar unpacked; or sorted into val/<wnid>/
    ILSVRC/Data/CLS-LOC/{train,val}/    the same two folders as Kaggle packs them

A class is the place of its WordNet id, n01440764 to n15075141, in the order of the ids, as TFDS numbers them
too; it is not the ILSVRC2012_ID of the development kit. For images in val/ itself it is known by their
number, from a list that TFDS brings along.

A few files are no RGB JPEGs in spite of their names: some are CMYK, some grey, and one is a PNG.
"""

import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from mtl_jax.data import files, tfds_split
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

PUBLISHED = {"train": 1_281_167, "val": 50_000}
ARCHIVES = {
    "ILSVRC2012_img_train.tar": "md5:1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "md5:29b22e2961454d5413ddabcf34fc5622",
}
PLACES = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # of the folders train and val


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    No image is opened before it is loaded; the folders of a split are listed when it is asked for.

    Raises:
      UserError: a split is there in no form, or has no image, or one of unknown class; while loading, a file
        that cannot be read.
    """
    root = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in PUBLISHED:
            raise UserError(f"imagenet has no split {name!r}: choose one of {', '.join(PUBLISHED)}")
        if tfds_split.is_prepared(root, "imagenet2012"):
            builder = tfds_split.builder(root, "imagenet2012")
            return tfds_split.classified(builder, "validation" if name == "val" else name, tasks)
        return _files(_find(root, name), tasks)

    names = wnids()
    labels = {"classification": {"num_classes": len(names), "class_names": names}}
    return Dataset(labels, tuple(PUBLISHED), split, PUBLISHED, ARCHIVES)


@functools.cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of the 1000 classes, in their order."""
    return tuple(_listed("labels.txt"))


def _listed(name: str) -> list[str]:
    """The lines of a list that comes with TFDS."""
    return (tfds.core.tfds_path("datasets/imagenet2012") / name).read_text().split()


def _find(root: Path, name: str) -> Path:
    for place in PLACES:
        if (root / place / name).is_dir():
            return root / place / name
    raise UserError(
        f"there is neither a prepared TFDS dataset {root / 'imagenet2012'} nor a folder {root / name}:"
        " unpack the release there"
    )


def _files(folder: Path, tasks: Sequence[str]) -> Split:
    """The images below a folder of a split, in the order of classes and names; ids are their paths in it."""
    with reading(folder):
        found = sorted((number, name) for name, number in _classified(folder))
    if not found:
        raise UserError(f"{folder} has no image: unpack the release again")
    ids = [name for _, name in found]
    classes = np.array([number for number, _ in found], np.int16)

    def load(index: int) -> Example:
        labels = {task: np.full((1, 1, 1), classes[index], np.int32) for task in tasks}
        return {"image": files.read_image(folder / ids[index]), "labels": labels}

    return Split(ids, lambda: files.image_sizes([folder / name for name in ids])(), load)


def _classified(folder: Path) -> Iterator[tuple[str, int]]:
    """(path in the folder, class) of every image."""
    number = {wnid: i for i, wnid in enumerate(wnids())}
    loose = []
    for entry in os.scandir(folder):
        if entry.is_dir():
            if entry.name not in number:
                raise UserError(f"{entry.path} is none of the 1000 classes: move it elsewhere")
            for image in filter(_is_image, os.listdir(entry.path)):
                yield f"{entry.name}/{image}", number[entry.name]
        elif _is_image(entry.name):
            loose.append(entry.name)
    if loose:
        of_val = [number[wnid] for wnid in _listed("validation_labels.txt")]
        for image in loose:
            matched = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", image)
            if not matched or not 1 <= int(matched[1]) <= len(of_val):
                raise UserError(f"the class of {folder / image} is not known: put it into a folder <wnid>")
            yield image, of_val[int(matched[1]) - 1]


def _is_image(name: str) -> bool:
    return name.lower().endswith(files.IMAGE_ENDINGS) and not name.startswith(".")

"""CIFAR-100: small photographs of 100 classes, one class each.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", technical report, University of Toronto
2009 (https://www.cs.toronto.edu/~kriz/cifar.html; no licence is stated, citing the report is asked for).
50 000 images to train on and 10 000 to test, 500 and 100 of each class, all 32x32 RGB; 0.2 GB.

`data_dir` is a folder in which TFDS prepared the dataset, by `tfds build cifar100 --data_dir=DIR`:

    cifar100/<version>/                 features image (PNG) and label, splits train and test

or the one into which the release's binary version, `cifar-100-binary.tar.gz`, was unpacked:

    cifar-100-binary/{train,test}.bin   per image 3074 bytes: superclass, class, and the image, first all its
                                        red, then green, then blue, row by row

Both have the same images, in different orders, and the same numbers of classes, 0 to 99 (the "fine" labels).
The 20 superclasses are not read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import tfds_split
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

PUBLISHED = {"train": 50_000, "test": 10_000}
ARCHIVES = {"cifar-100-binary.tar.gz": "md5:03b5dce01913d631647c71ecec9e9cb8"}
SIDE = 32  # pixels
CLASSES = tuple(
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly"
    " camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup"
    " dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower"
    " leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid"
    " otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray"
    " road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar"
    " sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle"
    " wardrobe whale willow_tree wolf woman worm".split()
)


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and test.

    Raises:
      UserError: it is there in neither form; while loading, a record that cannot be read or is not as
        described.
    """
    root = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in PUBLISHED:
            raise UserError(f"cifar100 has no split {name!r}: choose one of {', '.join(PUBLISHED)}")
        binary = root / "cifar-100-binary"
        if binary.is_dir() and not tfds_split.is_prepared(root, "cifar100"):
            return _binary(binary / f"{name}.bin", tasks)
        return tfds_split.classified(tfds_split.builder(root, "cifar100"), name, tasks)

    labels = {"classification": {"num_classes": len(CLASSES), "class_names": CLASSES}}
    return Dataset(labels, tuple(PUBLISHED), split, PUBLISHED, ARCHIVES)


def _binary(path: Path, tasks: Sequence[str]) -> Split:
    """The images in a file of the binary version; ids are their numbers in it."""
    width = 2 + 3 * SIDE * SIDE
    with reading(path):
        stored = np.memmap(path, np.uint8, "r")
    if len(stored) % width:
        raise UserError(f"{path} has {len(stored)} bytes, no multiple of {width}: unpack the release again")
    rows = stored.reshape(-1, width)

    def load(index: int) -> Example:
        number = int(rows[index, 1])
        if number >= len(CLASSES):
            raise UserError(
                f"image {index} of {path} has class {number}, beyond 99: unpack the release again"
            )
        image = np.moveaxis(rows[index, 2:].reshape(3, SIDE, SIDE), 0, -1).copy()
        return {"image": image, "labels": {task: np.full((1, 1, 1), number, np.int32) for task in tasks}}

    ids = [f"{path.stem}-{i:05d}" for i in range(len(rows))]
    return Split(ids, lambda: np.full((len(rows), 2), SIDE, np.int32), load)

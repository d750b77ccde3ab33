"""BDD100K, semantic segmentation: streets of the United States, by day and night.

Yu et al., "BDD100K: A Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020. From
https://bdd-data.berkeley.edu, after registration, the packages "10K Images" (1.1 GB) and "Semantic
Segmentation" (331 MB); BDD100K's own licence: free for education, research and non-profit use. `data_dir` is
the folder bdd100k of these archives:

    images/10k/<split>/<id>.jpg                 1280x720 (width x height)
    labels/sem_seg/masks/<split>/<id>.png       8 bits: 0 to 18 Cityscapes' training classes, 255 unknown

with <split> train (7000 images) or val (1000). The first release has the same as

    seg/images/<split>/<id>.jpg
    seg/labels/<split>/<id>_train_id.png

Each file is looked for in all these places, and masks by both names.

With `classes` "voc", a network that learnt PASCAL VOC 2012 is judged on val as it is (Kanakis et al.,
"Composite Learning for Robust and Effective Dense Predictions", WACV 2023). Labels are then of VOC's 21
classes: the six that both have, and "other", as class 0, for the rest. mIoU is the mean over the six alone;
they pay for being predicted on something other. That the paper's mean has no class 0 is assumed: its lowest
figures are below what the background alone would add.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import cityscapes, voc2012
from mtl_jax.errors import UserError

PUBLISHED = {"train": 7000, "val": 1000}
CLASSES = cityscapes.CLASSES[19]
PHOTOS = ("images/10k/{}/{}.jpg", "seg/images/{}/{}.jpg")
MASKS = tuple(
    f"{folder}/{{}}/{{}}{ending}"
    for folder in ("labels/sem_seg/masks", "seg/labels")
    for ending in (".png", "_train_id.png")
)
SHARED = {  # with VOC, whose names for them are on the right
    "person": "person",
    "car": "car",
    "bus": "bus",
    "train": "train",
    "motorcycle": "motorbike",
    "bicycle": "bicycle",
}
MAPS = {"voc": SHARED, "voc_riders": SHARED | {"rider": "person"}}


def build(data_dir: str, classes: str = "bdd") -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      classes: "bdd", its 19; "voc", the six that VOC shares, among VOC's 21; "voc_riders", likewise, with
        riders as persons.

    Raises:
      UserError: other classes; a file of a split is missing; while loading, a file that cannot be read or is
        not as described.
    """
    if classes not in ("bdd", *MAPS):
        choices = ", ".join(("bdd", *MAPS))
        raise UserError(f"bdd100k: data.options.classes is {classes!r}: choose one of {choices}")
    root = Path(data_dir).expanduser()
    table = np.arange(len(CLASSES), dtype=np.uint8) if classes == "bdd" else _to_voc(MAPS[classes])

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in PUBLISHED:
            raise UserError(f"bdd100k has no split {name!r}: choose one of {', '.join(PUBLISHED)}")
        ids = _ids(root, name)
        photos = files.find([[root / place.format(name, i) for place in PHOTOS] for i in ids])
        masks = files.find([[root / place.format(name, i) for place in MASKS] for i in ids]) if tasks else []

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: _classes(masks[index], image.shape[:2], table) for task in tasks}
            return {"image": image, "labels": labels}

        return Split(ids, files.image_sizes(photos), load)

    return Dataset({"semseg": _options(classes)}, tuple(PUBLISHED), split, PUBLISHED)


def _options(classes: str) -> dict:
    """What the task must know of the labels."""
    if classes == "bdd":
        return {"num_classes": len(CLASSES), "class_names": CLASSES}
    names = voc2012.CLASSES
    return {"num_classes": len(names), "class_names": names, "scored": tuple(SHARED.values())}


def _to_voc(shared: Mapping[str, str]) -> np.ndarray:
    """uint8[19]: VOC's class of each one here; 0 for what VOC has not."""
    return np.array([voc2012.CLASSES.index(shared.get(name, "background")) for name in CLASSES], np.uint8)


def _ids(root: Path, split: str) -> list[str]:
    """The names of the split's images, in order."""
    folders = [(root / place.format(split, "")).parent for place in PHOTOS]
    found = {path.stem for folder in folders for path in folder.glob("*.jpg")}
    if not found:
        raise UserError(
            f"there is no image in {' or '.join(map(str, folders))}: unpack the release into {root}"
        )
    return sorted(found)


def _classes(path: Path, size: tuple[int, int], table: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: the entry of `table` for each class; 255 is unknown."""
    stored = files.read_array(path)
    files.check_shape(stored, (*size, 1), path)
    files.check_classes(stored, range(len(table)), path, unknown=255)
    return np.append(table, np.full(256 - len(table), 255, np.uint8))[stored.astype(np.uint8)]

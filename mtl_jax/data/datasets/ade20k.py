"""ADE20k for scene parsing: indoor and outdoor scenes, every pixel in one of 150 classes.

Zhou, Zhao, Puig, Fidler, Barriuso, Torralba, "Scene Parsing through ADE20K Dataset", CVPR 2017
(http://sceneparsing.csail.mit.edu). `ADEChallengeData2016.zip` (0.9 GB) from
http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip; images for non-commercial research and
education, annotations under BSD 3-Clause. `data_dir` is its folder ADEChallengeData2016:

    images/<folder>/<id>.jpg          sizes differ
    annotations/<folder>/<id>.png     8 bits, one channel: 0 unlabelled, 1 to 150 the classes
    objectInfo150.txt                 separated by tabs; column Name: a class's names, separated by commas

with <folder> training (20 210 images; the split train) or validation (2000; the split val). Classes are read
as 0 to 149, and 255 is unknown. They go by the first of their names; without the list, by their ids.

The masks of the instance challenge (`annotations_instance.tar`; `scene_parse150` of TensorFlow Datasets has
these) bear the same names but hold other things: 100 classes in red, instances in green. They are refused.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError

PUBLISHED = {"train": 20210, "val": 2000}
FOLDERS = {"train": "training", "val": "validation"}
ARCHIVES = {"ADEChallengeData2016.zip": "md5:7328b3957e407ddae1d3cbf487f149ef"}
COUNT = 150  # classes


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Raises:
      UserError: a file of a split is missing, or the list of classes is not as described; while loading, a
        file that cannot be read or is not as described.
    """
    root = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in PUBLISHED:
            raise UserError(f"ade20k has no split {name!r}: choose one of {', '.join(PUBLISHED)}")
        photos = sorted((root / "images" / FOLDERS[name]).glob("*.jpg"))
        if not photos:
            raise UserError(
                f"there is no image {root / 'images' / FOLDERS[name]}/*.jpg: set data_dir to the folder"
                " ADEChallengeData2016"
            )
        folder = root / "annotations" / FOLDERS[name]
        masks = files.find([[folder / f"{path.stem}.png"] for path in photos]) if tasks else []

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: _classes(masks[index], image.shape[:2]) for task in tasks}
            return {"image": image, "labels": labels}

        return Split([path.stem for path in photos], files.image_sizes(photos), load)

    options = {"num_classes": COUNT, "class_names": _names(root / "objectInfo150.txt")}
    return Dataset({"semseg": options}, tuple(PUBLISHED), split, PUBLISHED, ARCHIVES)


def _names(path: Path) -> tuple[str, ...] | None:
    """The first name of each class; None where there is no list."""
    if not path.is_file():
        return None
    rows = csv.DictReader(files.read_lines(path), delimiter="\t")
    names = tuple((row.get("Name") or "").split(",")[0].strip() for row in rows)
    if len(set(names) - {""}) != COUNT:
        raise UserError(f"{path} does not name {COUNT} classes in a column Name: unpack the release again")
    return names


def _classes(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w,1]: 0 to 149; 255 is unknown."""
    stored = files.read_array(path)
    if stored.shape[2] == 3:
        raise UserError(
            f"{path} is of the instance challenge (it has 3 channels): take the annotations of"
            " ADEChallengeData2016.zip"
        )
    files.check_shape(stored, (*size, 1), path)
    files.check_classes(stored, range(COUNT + 1), path)
    return np.where(stored == 0, 255, stored - 1).astype(np.uint8)

"""Cityscapes as it is released: streets at full resolution, with classes, disparity and depth.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. From
https://www.cityscapes-dataset.com/downloads, after registration; for non-commercial use such as research, by
its own licence. Unpack these into one folder, `data_dir` (the last two for disparity and depth alone):

    leftImg8bit_trainvaltest.zip (11 GB), gtFine_trainvaltest.zip (241 MB),
    disparity_trainvaltest.zip (3.5 GB), camera_trainvaltest.zip (2 MB)

    leftImg8bit/<split>/<city>/<id>_leftImg8bit.png     1024x2048, 8-bit RGB
    gtFine/<split>/<city>/<id>_gtFine_labelIds.png      8 bits, 0 to 33: the ids below
    disparity/<split>/<city>/<id>_disparity.png         16 bits: p > 0 is (p - 1) / 256 pixels, 0 unknown
    camera/<split>/<city>/<id>_camera.json              extrinsic.baseline in m, intrinsic.fx in pixels

with <split> train (2975 images), val (500) or test (1525) and <id> such as aachen_000000_000019. The classes
of test are secret: its files hold the image's borders alone, and it can be read without classes only.

    task         read as
    semseg       19 training classes or 7 categories; 255 is unknown
    disparity    pixels of the image as read; 0 is unknown
    depth        baseline * fx / disparity, in metres; unknown where disparity is, or where it is 0 (code 1)

Disparity was matched by machine. Its least codes stand for kilometres, and depth has them as they are.

The 7 categories hold all their ids, those too that are no training class (such as parking); the benchmark
leaves these out of its category score.

The dataset `cityscapes` of TensorFlow Datasets cannot stand in: each of its configs has either classes or
disparity, and it decodes disparity to 8 bits.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files, resample
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import cityscapes
from mtl_jax.errors import UserError, reading

PUBLISHED = {"train": 2975, "val": 500, "test": 1525}
IDS = (  # by id: its training class, or none, and its category
    *((None, None),) * 7,  # unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground
    *(("road", "flat"), ("sidewalk", "flat"), (None, "flat"), (None, "flat")),  # parking, rail track
    *(("building", "construction"), ("wall", "construction"), ("fence", "construction")),
    *((None, "construction"),) * 3,  # guard rail, bridge, tunnel
    *(("pole", "object"), (None, "object"), ("traffic light", "object"), ("traffic sign", "object")),
    *(("vegetation", "nature"), ("terrain", "nature"), ("sky", "sky")),
    *(("person", "human"), ("rider", "human")),
    *(("car", "vehicle"), ("truck", "vehicle"), ("bus", "vehicle"), (None, "vehicle"), (None, "vehicle")),
    *(("train", "vehicle"), ("motorcycle", "vehicle"), ("bicycle", "vehicle")),  # behind caravan, trailer
)
PLACES = {
    "image": "leftImg8bit/{}_leftImg8bit.png",
    "semseg": "gtFine/{}_gtFine_labelIds.png",
    "disparity": "disparity/{}_disparity.png",
    "camera": "camera/{}_camera.json",
}
KINDS = {"semseg": ("semseg",), "disparity": ("disparity",), "depth": ("disparity", "camera")}  # of each task


def build(data_dir: str, num_classes: int = 19, size: Sequence[int] | None = None) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train, val and test.

    Args:
      num_classes: 19, the training classes, or 7, the categories.
      size: (height, width) to read everything at: images by means, labels by the nearest pixel, disparity in
        pixels of the smaller image; None: as stored.

    Raises:
      UserError: another number of classes; a file of a split is missing; classes of test are asked for; while
        loading, a file that cannot be read or is not as described.
    """
    if num_classes not in (7, 19):
        raise UserError(f"cityscapes_fine: data.options.num_classes is {num_classes}: choose 19 or 7")
    root, size = Path(data_dir).expanduser(), size and tuple(size)
    classes = cityscapes.CLASSES[num_classes]
    table = class_table(classes, 0 if num_classes == 19 else 1)

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in PUBLISHED:
            raise UserError(f"cityscapes_fine has no split {name!r}: choose one of {', '.join(PUBLISHED)}")
        if name == "test" and "semseg" in tasks:
            raise UserError("cityscapes_fine: the classes of test are secret: ask for other tasks or for val")
        found = _list(root, name)
        kinds = dict.fromkeys(["image", *(kind for task in tasks for kind in KINDS[task])])
        paths = {kind: files.find([[root / PLACES[kind].format(place)] for place in found]) for kind in kinds}

        def load(index: int) -> Example:
            image = files.read_image(paths["image"][index])
            stored, target = image.shape[:2], size or image.shape[:2]
            labels = {}
            if "semseg" in tasks:
                labels["semseg"] = resample.nearest(_classes(paths["semseg"][index], stored, table), target)
            if "disparity" in kinds:
                disparity = resample.nearest(_disparity(paths["disparity"][index], stored), target)
            if "disparity" in tasks:
                labels["disparity"] = disparity * np.float32(target[1] / stored[1])
            if "depth" in tasks:
                labels["depth"] = _depth(disparity, paths["camera"][index])
            return {"image": resample.smooth(image, target), "labels": labels}

        return Split([Path(place).name for place in found], _measure(paths["image"], size), load)

    labels = {
        "semseg": {"num_classes": num_classes, "class_names": classes},
        "disparity": {"max_disparity": 128.0 * (size[1] / 2048 if size else 1)},
        "depth": {"max_depth": 80.0},
    }
    return Dataset(labels, tuple(PUBLISHED), split, PUBLISHED)


def class_table(classes: Sequence[str], column: int) -> np.ndarray:
    """uint8[34]: by id, the index in `classes` of the name in that column of IDS; 255 is unknown."""
    return np.array([classes.index(row[column]) if row[column] else 255 for row in IDS], np.uint8)


def _list(root: Path, split: str) -> list[str]:
    """<split>/<city>/<id> of every image, by name."""
    folder, ending = root / "leftImg8bit" / split, "_leftImg8bit.png"
    found = sorted(path.relative_to(folder.parent).as_posix() for path in folder.glob(f"*/*{ending}"))
    if not found:
        raise UserError(f"there is no {folder}/*/*{ending}: unpack leftImg8bit_trainvaltest.zip into {root}")
    return [place.removesuffix(ending) for place in found]


def _measure(photos: Sequence[Path], size: tuple[int, int] | None) -> Callable[[], np.ndarray]:
    if size is None:
        return files.image_sizes(photos)
    return functools.partial(np.tile, np.int32(size), (len(photos), 1))


def _classes(path: Path, size: tuple[int, int], table: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: classes by their ids; 255 is unknown."""
    ids = files.read_array(path)
    files.check_shape(ids, (*size, 1), path)
    files.check_classes(ids, range(len(table)), path)
    return table[ids.astype(np.uint8)]


def _disparity(path: Path, size: tuple[int, int]) -> np.ndarray:
    """f32[h,w,1]: pixels of the image as stored; 0 is unknown (as is infinitely far)."""
    codes = files.read_array(path)
    files.check_shape(codes, (*size, 1), path)
    if codes.dtype.itemsize == 1:
        raise UserError(f"{path} has not the 16 bits of the release: unpack the release again")
    return np.where(codes > 0, (codes.astype(np.float32) - 1) / 256, np.float32(0))


def _depth(disparity: np.ndarray, camera: Path) -> np.ndarray:
    """f32[h,w,1]: metres; 0 is unknown."""
    with reading(camera):
        values = json.loads(camera.read_text(encoding="utf-8"))
        factor = np.float32(values["extrinsic"]["baseline"] * values["intrinsic"]["fx"])
        if not factor > 0:
            raise ValueError(f"baseline times fx is {factor:g}")
    return np.divide(factor, disparity, out=np.zeros_like(disparity), where=disparity > 0)

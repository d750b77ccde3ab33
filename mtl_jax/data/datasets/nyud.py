"""NYU Depth v2 for several tasks: rooms, with edges, classes, normals and depth.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012
(https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; for research, no licence stated), as Maninis,
Radosavovic, Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019, prepared it: `NYUD_MT.tgz`,
http://www.vision.ee.ethz.ch/~kmaninis/astmt. `data_dir` is the folder NYUD_MT of that archive:

    gt_sets/{train,val}.txt     795 and 654 ids, such as 0001; one per line
    images/<id>.jpg
    edge/<id>.png               8-bit grey, 255 where instances meet, else 0
    segmentation/<id>.mat       `segmentation`: [h,w], 0 unlabelled, 1 to 40 the classes below
    normals/<id>.jpg            8-bit RGB, -1 to 1 over 0 to 255
    depth/<id>.mat              `depth`: [h,w] in metres, 0 unknown

Another archive goes by the same name (Vandenhende et al., "Multi-Task Learning for Dense Prediction Tasks: A
Survey", TPAMI 2021): edge, normals and depth are .npy (0 or 1; unit vectors; metres), segmentation is .png.
Both are read, file by file.

The edges of the split val, by which the boundary benchmark judges, are thinned to one pixel; it allows a
distance of 0.011 of the diagonal here (Maninis et al., appendix).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from skimage.morphology import thin

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import folder
from mtl_jax.errors import UserError
from mtl_jax.tasks import normals

SPLITS = ("train", "val")
CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture"),
    *("counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror", "floor mat"),
    *("clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel", "shower curtain"),
    *("box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp", "bathtub", "bag"),
    *("otherstructure", "otherfurniture", "otherprop"),
)
PLACES = {  # of each task, where its files may be
    "edges": ("edge/{}.png", "edge/{}.npy"),
    "semseg": ("segmentation/{}.mat", "segmentation/{}.png"),
    "normals": ("normals/{}.jpg", "normals/{}.npy"),
    "depth": ("depth/{}.mat", "depth/{}.npy"),
}
FARTHEST = 20.0  # metres; the sensor's range ends at 10

# Red grows to the left, green upwards, blue towards the camera: floors are green, walls to the right are red.
# The release does not say so. Public networks that learn NYU's usual normals fit the outward vector, with
# n . p > 0 at points p (x right, y down, z ahead; Qi et al., "GeoNet", CVPR 2018), which has these colours,
# and the rotation in the code of Maninis et al. agrees. Should it be wrong, then by a half turn about z.
AXES = ("-r", "g", "b")

COLOURS = folder.Reader(normals.build("normals"), {"axes": AXES, "invalid": 0})
"""Reads normals in these colours, or as vectors from .npy; black and grey (no direction) are unknown."""


def build(data_dir: str, classes: int = 41) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      classes: 41, where "unlabelled" is a class of its own (Maninis et al.), or 40, where it is unknown.

    Raises:
      UserError: another number of classes; a file of a split is missing; while loading, a file that cannot
        be read or is not as described.
    """
    if classes not in (40, 41):
        raise UserError(f"nyud: data.options.classes is {classes}: choose 41 or, to ignore class 0, 40")
    root = Path(data_dir).expanduser()
    readers = {"edges": _edges, "semseg": _classes, "normals": COLOURS.read, "depth": _depth}
    if classes == 40:
        readers["semseg"] = lambda path: _without_unlabelled(_classes(path))

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"nyud has no split {name!r}: choose one of {', '.join(SPLITS)}")
        ids = files.read_names(root / "gt_sets" / f"{name}.txt")
        photos = files.find([[root / "images" / f"{i}.jpg"] for i in ids])
        paths = {
            task: files.find([[root / place.format(i) for place in PLACES[task]] for i in ids])
            for task in tasks
        }

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: readers[task](paths[task][index]) for task in tasks}
            for task, label in labels.items():
                shape = (*image.shape[:2], 3 if task == "normals" else 1)
                files.check_shape(label, shape, paths[task][index])
            if "edges" in tasks and name == "val":
                labels["edges"] = thin(labels["edges"][..., 0])[..., None].astype(np.uint8)
            return {"image": image, "labels": labels}

        return Split(ids, files.image_sizes(photos), load)

    names = CLASSES if classes == 40 else ("unlabelled", *CLASSES)
    labels = {
        "edges": {"max_distance": 0.011},
        "semseg": {"num_classes": classes, "class_names": names},
        "normals": {},
        "depth": {},
    }
    return Dataset(labels, SPLITS, split)


def _edges(path: Path) -> np.ndarray:
    """uint8[h,w,1]: 0 or 1."""
    white = 1 if path.suffix == ".npy" else 255
    return (files.read_array(path) > white / 2).astype(np.uint8)


def _classes(path: Path) -> np.ndarray:
    """uint8[h,w,1]: 0 unlabelled, 1 to 40."""
    stored = _array(path, "segmentation")
    if not np.isin(stored, range(len(CLASSES) + 1)).all():
        raise UserError(f"{path} holds {stored.max()}, but classes are 0 to 40: unpack the release again")
    return stored.astype(np.uint8)


def _without_unlabelled(label: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: 0 to 39; 255 is unknown."""
    return np.where(label == 0, 255, label - 1).astype(np.uint8)


def _depth(path: Path) -> np.ndarray:
    """f32[h,w,1]: metres; 0 is unknown."""
    depth = _array(path, "depth").astype(np.float32)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
    if depth.max() > FARTHEST:
        raise UserError(f"{path} holds a depth of {depth.max():g}, which cannot be metres: convert the file")
    return depth


def _array(path: Path, variable: str) -> np.ndarray:
    """[h,w,1] as stored in any of the archives."""
    return files.read_mat(path, variable)[..., None] if path.suffix == ".mat" else files.read_array(path)

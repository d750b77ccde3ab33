"""NYU Depth v2 for several tasks: rooms, with edges, classes, normals and depth.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012
(https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; for research, no licence stated). Three archives of
its 1449 labelled images, 795 to train on and 654 to judge by, prepared for several tasks, are in use:

  NYUD_MT.tgz     Maninis, Radosavovic, Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019
                  (https://github.com/facebookresearch/astmt); its server data.vision.ee.ethz.ch is gone.
                  425x560
  NYUD_MT.tgz     Vandenhende et al., "Multi-Task Learning for Dense Prediction Tasks: A Survey", TPAMI 2021
                  (https://github.com/SimonVandenhende/Multi-Task-Learning-PyTorch), from
                  https://drive.google.com/file/d/14EAEMXmd3zs2hIMY63UhHPSFPDAkiTzw (4.2 GB). 480x640
  NYUDv2.tar.gz   Bruggemann et al., "Exploring Relational Context for Multi-Task Dense Prediction", ICCV 2021
                  (ATRC), used by InvPT and its followers; that server is gone too, and the README of
                  https://github.com/prismformore/Multi-Task-Transformer links to a copy. 425x560

`data_dir` is the folder NYUD_MT or NYUDv2; the sizes are those of the files, whatever they are:

    gt_sets/{train,val}.txt   795 and 654 ids, such as 0001; one per line

                        Maninis       Vandenhende   Bruggemann
    images/<id>         .jpg          .jpg          .png
    edge/<id>           .png 0, 255   .npy 0, 1     .png 0, 255   where instances meet, else 0
    segmentation/<id>   .mat          .png          .png          0 unlabelled, 1 to 40 the classes
    normals/<id>        .jpg          .npy          .png          -1 to 1 over 0 to 255; .npy: vectors
    depth/<id>          .mat          .npy          .npy          metres; 0 and NaN are unknown

A .mat holds one variable, `segmentation` or `depth`. The endings tell the releases apart; a folder in which
two of them are mixed, as when both NYUD_MT.tgz are unpacked in one place, is refused, because sizes and
sources of labels differ. Maninis et al. train and judge 41 classes, of which "unlabelled" is one; Vandenhende
et al., Bruggemann et al. and those after them 40, and ignore it: option `classes`. Normals of Maninis et al.
suffer from JPEG. The zero vector, and black and grey, which have no direction, are unknown. Where the normals
of the other two came from is not said; they are taken to be in the same frame.

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
PLACES = {  # where the files may be, of which kind of release
    "image": ("images/{}.jpg", "images/{}.png"),
    "edges": ("edge/{}.png", "edge/{}.npy"),
    "semseg": ("segmentation/{}.mat", "segmentation/{}.png"),
    "normals": ("normals/{}.jpg", "normals/{}.npy", "normals/{}.png"),
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
      classes: 41, where "unlabelled" is a class of its own (Maninis et al.), or 40, where it is unknown (all
        others).

    Raises:
      UserError: another number of classes; a file of a split is missing, or of another release than others;
        while loading, a file that cannot be read or is not as described.
    """
    if classes not in (40, 41):
        raise UserError(f"nyud: data.options.classes is {classes}: choose 41 or, to ignore class 0, 40")
    root = Path(data_dir).expanduser()
    readers = {"edges": _edges, "semseg": _classes, "normals": COLOURS.read, "depth": read_depth}
    if classes == 40:
        readers["semseg"] = lambda path: _without_unlabelled(_classes(path))

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"nyud has no split {name!r}: choose one of {', '.join(SPLITS)}")
        ids = files.read_names(root / "gt_sets" / f"{name}.txt")
        photos, *maps = (_find(root, ids, PLACES[kind]) for kind in ("image", *tasks))
        paths = dict(zip(tasks, maps, strict=True))

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
    return Dataset(labels, SPLITS, split, published={"train": 795, "val": 654})


def _find(root: Path, ids: Sequence[str], places: Sequence[str]) -> list[Path]:
    """The files of one kind; UserError if one is missing, or if they are of two releases."""
    there = [place for place in places if any((root / place.format(i)).is_file() for i in ids)]
    if len(there) > 1:
        kinds = " and ".join(place.format("*") for place in there)
        raise UserError(f"{root} holds {kinds}, of two releases: unpack one of them alone")
    return files.find([[root / place.format(i) for place in there or places] for i in ids])


def _edges(path: Path) -> np.ndarray:
    """uint8[h,w,1]: 0 or 1."""
    stored = files.read_array(path)
    white = 255 if stored.dtype == np.uint8 and path.suffix == ".png" else 1
    if not ((stored >= 0) & (stored <= white)).all() or (white == 255 and stored.max() == 1):
        raise UserError(f"{path} holds {stored.max():g}, but edges are 0 or {white}: unpack it again")
    return (stored > white / 2).astype(np.uint8)


def _classes(path: Path) -> np.ndarray:
    """uint8[h,w,1]: 0 unlabelled, 1 to 40."""
    stored = _array(path, "segmentation")
    files.check_classes(stored, range(len(CLASSES) + 1), path)
    return stored.astype(np.uint8)


def _without_unlabelled(label: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: 0 to 39; 255 is unknown."""
    return np.where(label == 0, 255, label - 1).astype(np.uint8)


def read_depth(path: Path) -> np.ndarray:
    """f32[h,w,1]: metres, from `depth` of a .mat or from .npy; 0 is unknown. UserError if it cannot be."""
    return files.positive(_array(path, "depth"), FARTHEST, "metres", path)


def _array(path: Path, variable: str) -> np.ndarray:
    """[h,w,1] as stored in any of the archives."""
    return files.read_mat_map(path, variable) if path.suffix == ".mat" else files.read_array(path)

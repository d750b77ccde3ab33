"""NYU Depth v2 as the studies of partial labels use it: 13 classes, depth and normals, as small arrays.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012
(https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; for research, no licence stated), as Liu, Johns,
Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, cropped and shrank it: `nyuv2.zip` (8.5
GB), linked from https://github.com/lorenmt/mtan. `data_dir` is its folder nyuv2, and <split> is train (795
images) or val (654, on which results are reported):

    <split>/image/<i>.npy     288x384x3, floats in [0, 1]; read to the nearest of 256 levels
    <split>/label/<i>.npy     288x384, -1 unknown, 0 to 12 the classes below
    <split>/depth/<i>.npy     288x384x1 in metres, 0 unknown
    <split>/normal/<i>.npy    288x384x3, unit vectors, zero unknown

with i from 0 on, not padded. Arrays of any type are read, and channels that come first.

`extension_dir` adds images with depth alone to the split train, behind the others: the folder nyudepthv2 of
Wofk et al., "FastDepth", ICRA 2019 (see nyu_depth.py), with train/<scene>/<number>.h5: 47 584 frames, which
are shrunk to the size of the first image. Their ids are <scene>/<number>, those of the others numbers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import numbered, resample
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import nyu_depth
from mtl_jax.data.datasets.folder import LONGEST
from mtl_jax.data.datasets.nyud import FARTHEST
from mtl_jax.errors import UserError

SPLITS = ("train", "val")
CLASSES = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "TV"),
    *("wall", "window"),
)


# Stored are x to the right, then the axis ahead, then upwards: floors are (0, 0, 1), a wall that faces the
# camera is (0, -1, 0). The release does not say so. It took the normals of Eigen and Fergus, ICCV 2015, and
# public code that compares those with Taskonomy's (see taskonomy.py) swaps and negates channels accordingly.
# Should it be wrong, then losses, errors and mirroring are not affected, but pictures and rotation are: that
# the first channel alone is horizontal is sure, since the authors' own mirroring negates it.
UP, AHEAD = 2, 1


def build(data_dir: str, extension_dir: str | None = None) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      extension_dir: folder of further training frames, which have depth alone.

    Raises:
      UserError: a number is missing, or there is no further frame; while loading, a file that cannot be read
        or is not as described.
    """
    root = Path(data_dir).expanduser()
    readers = {
        "semseg": ("label", lambda path: numbered.read_classes(path, len(CLASSES))),
        "depth": ("depth", lambda path: numbered.read_positive(path, FARTHEST, "metres")),
        "normals": ("normal", _normals),
    }

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"nyuv2 has no split {name!r}: choose one of {', '.join(SPLITS)}")
        labelled = numbered.read_split(root / name, {task: readers[task] for task in tasks})
        if name == "train" and extension_dir is not None:
            return _extended(labelled, Path(extension_dir).expanduser() / "train", tasks)
        return labelled

    labels = {"semseg": {"num_classes": len(CLASSES), "class_names": CLASSES}, "depth": {}, "normals": {}}
    extended = 0 if extension_dir is None else nyu_depth.PUBLISHED["train"]
    published = {"train": 795 + extended, "val": 654}
    return Dataset(labels, SPLITS, split, published)


def _normals(path: Path) -> np.ndarray:
    """f32[h,w,3]: x right, y up, z towards the camera; zero is unknown."""
    stored = numbered.read_channels(path, 3).astype(np.float32)
    if (np.abs(stored) > LONGEST).any():
        raise UserError(f"{path} holds a vector that is longer than 1: convert the file")
    vectors = np.stack([stored[..., 0], stored[..., UP], -stored[..., AHEAD]], axis=-1)
    return np.where(np.isfinite(vectors).all(-1, keepdims=True), vectors, np.float32(0))


def _extended(labelled: Split, folder: Path, tasks: Sequence[str]) -> Split:
    """The split with the frames in `folder` behind it."""
    frames = sorted(folder.glob("*/*.h5"))
    if not frames:
        raise UserError(f"there is no frame in {folder}/*: set extension_dir to the folder nyudepthv2")
    size = tuple(int(n) for n in labelled.sizes[0])

    def load(index: int) -> Example:
        if index < len(labelled):
            return labelled.load(index)
        image, depth = nyu_depth.read_frame(frames[index - len(labelled)])
        labels = {
            "semseg": np.full((*size, 1), 255, np.uint8),
            "depth": resample.nearest(depth, size),
            "normals": np.zeros((*size, 3), np.float32),
        }
        return {"image": resample.smooth(image, size), "labels": {task: labels[task] for task in tasks}}

    ids = [f"{path.parent.name}/{path.stem}" for path in frames]
    every = [*labelled.ids, *ids]
    return Split(every, lambda: np.tile(labelled.sizes[:1], (len(every), 1)), load)

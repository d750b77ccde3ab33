"""Cityscapes as the studies of partial labels use it: streets, with classes and disparity, as small arrays.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016
(https://www.cityscapes-dataset.com; for research, after registration), as Liu, Johns, Davison, "End-to-End
Multi-Task Learning with Attention", CVPR 2019, shrank it: `cityscapes2.zip` (128x256, 651 MB), linked from
https://github.com/lorenmt/mtan. `data_dir` is its folder cityscapes2, and <split> is train (2975 images) or
val (500, on which results are reported):

    <split>/image/<i>.npy            128x256x3, floats in [0, 1]; read to the nearest of 256 levels
    <split>/label_{2,7,19}/<i>.npy   128x256, -1 unknown, else the classes below
    <split>/depth/<i>.npy            128x256x1, inverse depth: Cityscapes' disparity code / 65535, 0 unknown

with i from 0 on, not padded, in no known order of the original names: tables of which labels are given count
on these numbers. Arrays of any type are read, and channels that come first.

A code p is (p - 1) / 256 pixels of the original images, which are 2048 wide; so the largest number there is,
0.4922, is 126 pixels. `cityscapes.zip` (256x512, 2.4 GB) has the same layout. Cityscapes' own release is read
by cityscapes_fine.py.

The release names no class. Those of label_7 are taken to be Cityscapes' own categories without void, in their
order; those of label_19 its training classes; and the foreground of label_2 to be its humans and vehicles.
"""

from collections.abc import Sequence
from pathlib import Path

from mtl_jax.data import numbered
from mtl_jax.data.dataset import Dataset, Split
from mtl_jax.errors import UserError

SPLITS = ("train", "val")
CLASSES = {
    2: ("background", "foreground"),
    7: ("flat", "construction", "object", "nature", "sky", "human", "vehicle"),
    19: (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign"),
        *("vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle"),
        "bicycle",
    ),
}
UNIT = "code / 65535"


def build(data_dir: str, num_classes: int = 7) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      num_classes: 2, 7 or 19: which labels are read.

    Raises:
      UserError: another number of classes, or a number is missing among the files; while loading, a file that
        cannot be read or is not as described.
    """
    if num_classes not in CLASSES:
        known = ", ".join(map(str, CLASSES))
        raise UserError(f"cityscapes: data.options.num_classes is {num_classes}: choose one of {known}")
    root = Path(data_dir).expanduser()
    readers = {
        "semseg": (f"label_{num_classes}", lambda path: numbered.read_classes(path, num_classes)),
        "disparity": ("depth", lambda path: numbered.read_positive(path, 1.0, "a disparity code / 65535")),
    }

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"cityscapes has no split {name!r}: choose one of {', '.join(SPLITS)}")
        return numbered.read_split(root / name, {task: readers[task] for task in tasks})

    labels = {
        "semseg": {"num_classes": num_classes, "class_names": CLASSES[num_classes]},
        "disparity": {"unit": UNIT, "max_disparity": 0.25},  # 64 pixels of the original images
    }
    return Dataset(labels, SPLITS, split, published={"train": 2975, "val": 500})

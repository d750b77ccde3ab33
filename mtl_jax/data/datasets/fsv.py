"""FSV, "Free Supervision from Video Games": frames of GTA V, with classes, albedo and disparity.

Kraehenbuehl, "Free Supervision from Video Games", CVPR 2018 (http://www.philkr.net/fsv; the part of GTA V;
no licence is stated). The layout is the one that the code of Maninis, Radosavovic, Kokkinos, "Attentive
Single-Tasking of Multiple Tasks", CVPR 2019 (https://github.com/facebookresearch/astmt), reads. `data_dir` is
its folder FSV, and <split> is train or test:

    gt_sets/gta_<split>.txt                    223 197 and 50 080 lines <folder>/<frame>
    gta_<split>/<folder>/<frame>_final.webp         the image
    gta_<split>/<folder>/<frame>_object_id.png      red: 0 to 7, of which 2 is a vehicle and 3 an object
    gta_<split>/<folder>/<frame>_albedo.webp        RGB, 0 to 1 over 0 to 255
    gta_<split>/<folder>/<frame>_disparity.webp     (65536 blue + 256 green + red) / 8192; 0 unknown. Lossless

The other object ids are too rare to be learnt and count as background. The disparity is for no particular
pair of cameras: the public recorder takes it from the depth buffer so that it is about 1 / depth in 1/m, 0 to
6 (github.com/philkr/gamehook_gtav, gta5.cpp and ps_flow.hlsl).

So many files are not looked for to begin with: the frames of a folder have the size of the first that is
listed, and what is missing or of another size is named when it is read.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError

SPLITS = ("train", "test")
CLASSES = ("background", "vehicle", "object")
CLASS_OF = np.array([0, 0, 1, 2, 0, 0, 0, 0], np.uint8)  # of each object id
ENDINGS = {"semseg": "_object_id.png", "albedo": "_albedo.webp", "disparity": "_disparity.webp"}
DISPARITY_STEPS = 8192  # to 1


def build(data_dir: str, eval_examples: int = 5000) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and test.

    Args:
      eval_examples: about how many frames of the split test are used: every floor(n / eval_examples)-th.

    Raises:
      UserError: `eval_examples` is below 1; a list is missing; while measuring or loading, a file that is
        missing, cannot be read or is not as described.
    """
    if eval_examples < 1:
        raise UserError(f"fsv: data.options.eval_examples is {eval_examples}: give at least 1")
    root = Path(data_dir).expanduser()
    readers = {"semseg": _classes, "albedo": _albedo, "disparity": _disparity}

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"fsv has no split {name!r}: choose one of {', '.join(SPLITS)}")
        frames, images = files.read_names(root / "gt_sets" / f"gta_{name}.txt"), root / f"gta_{name}"
        if name == "test":
            frames = frames[:: max(len(frames) // eval_examples, 1)]
        measure = functools.cache(lambda: _sizes(images, frames))

        def load(index: int) -> Example:
            photo = images / f"{frames[index]}_final.webp"
            example = {"image": files.read_image(photo), "labels": {}}
            size = measure()[index]
            files.check_shape(example["image"], (*size, 3), photo)
            for task in tasks:
                path = images / f"{frames[index]}{ENDINGS[task]}"
                example["labels"][task] = label = readers[task](path)
                files.check_shape(label, (*size, 3 if task == "albedo" else 1), path)
            return example

        return Split(frames, measure, load)

    labels = {
        "semseg": {"num_classes": len(CLASSES), "class_names": CLASSES},
        "albedo": {},
        "disparity": {"max_disparity": 1.0},
    }
    tested = len(range(0, 50080, max(50080 // eval_examples, 1)))
    return Dataset(labels, SPLITS, split, published={"train": 223197, "test": tested})


def _sizes(images: Path, frames: Sequence[str]) -> np.ndarray:
    """i32[N,2] from the first frame of each folder."""
    folders = [frame.rpartition("/")[0] for frame in frames]
    firsts = dict(zip(reversed(folders), reversed(frames), strict=True))
    sizes = files.image_sizes([images / f"{frame}_final.webp" for frame in firsts.values()])()
    number = {name: i for i, name in enumerate(firsts)}
    return sizes[[number[name] for name in folders]]


def _classes(path: Path) -> np.ndarray:
    """uint8[h,w,1]: 0 to 2."""
    ids = files.read_image(path)[..., :1]
    files.check_classes(ids, range(len(CLASS_OF)), path)
    return CLASS_OF[ids]


def _albedo(path: Path) -> np.ndarray:
    """f16[h,w,3]: 0 to 1."""
    return (files.read_image(path) / np.float32(255)).astype(np.float16)


def _disparity(path: Path) -> np.ndarray:
    """f32[h,w,1], which holds the 24 bits exactly; 0 is unknown."""
    red, green, blue = np.moveaxis(files.read_image(path).astype(np.uint32), 2, 0)
    code = blue << 16 | green << 8 | red
    return (code / np.float32(DISPARITY_STEPS)).astype(np.float32)[..., None]

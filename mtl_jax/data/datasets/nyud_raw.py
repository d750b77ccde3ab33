"""NYU Depth v2, frames of the raw recordings: normals and depth of many more images than are annotated.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012
(https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; for research, no licence stated).

The layout is the one that the code of Maninis et al., CVPR 2019 (https://github.com/facebookresearch/astmt),
reads from a folder NYUD_raw, to check normals alone. They did not publish the files, nor how many they used:
make them from the recordings (428 GB). `data_dir` is that folder, and <split> is train or val:

    gt_sets/<split>.txt              the ids; any other list there is a split too
    <split>/images/<id>.jpg
    <split>/normals/<id>.png         8-bit RGB, in nyud's colours; .jpg in other splits than train
    <split>/depth/<id>.mat           `depth`: [h,w] in metres; 0 and NaN are unknown
    <split>/masks/<id>.png           train alone, grey; 0 where the sensor saw nothing: labels are unknown
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets.nyud import COLOURS, read_depth
from mtl_jax.errors import UserError


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); its splits are the lists there.

    Raises:
      UserError: there is no list; a file of a split is missing; while loading, a file that cannot be read
        or has another size than its image.
    """
    root = Path(data_dir).expanduser()
    splits = sorted(path.stem for path in (root / "gt_sets").glob("*.txt"))
    if not splits:
        raise UserError(f"there is no list in {root / 'gt_sets'}: set data_dir to the folder NYUD_raw")

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in splits:
            raise UserError(f"nyud_raw has no split {name!r}: choose one of {', '.join(splits)}")
        ids = files.read_names(root / "gt_sets" / f"{name}.txt")
        kinds = ["images", *tasks, *(["masks"] if tasks and name == "train" else [])]
        paths = {
            kind: files.find([[root / name / kind / f"{i}{_ending(kind, name)}"] for i in ids])
            for kind in kinds
        }

        def load(index: int) -> Example:
            image = files.read_image(paths["images"][index])
            maps = {kind: _read(kind, paths[kind][index], image.shape[:2]) for kind in kinds[1:]}
            seen = maps.get("masks", True)  # else 0, which means unknown in both tasks
            return {"image": image, "labels": {task: maps[task] * seen for task in tasks}}

        return Split(ids, files.image_sizes(paths["images"]), load)

    return Dataset({"normals": {}, "depth": {}}, tuple(splits), split)


def _ending(kind: str, split: str) -> str:
    if kind == "normals":
        return ".png" if split == "train" else ".jpg"
    return {"images": ".jpg", "depth": ".mat", "masks": ".png"}[kind]


def _read(kind: str, path: Path, size: tuple[int, int]) -> np.ndarray:
    """Normals f16[h,w,3], depth f32[h,w,1], or masks bool[h,w,1]."""
    array = {"normals": COLOURS.read, "depth": read_depth, "masks": _mask}[kind](path)
    files.check_shape(array, (*size, 3 if kind == "normals" else 1), path)
    return array


def _mask(path: Path) -> np.ndarray:
    return files.read_array(path) > 0

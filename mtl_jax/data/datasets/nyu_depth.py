"""NYU Depth v2 for depth alone: many frames of rooms, the set of studies of depth from one image.

Silberman, Hoiem, Kohli, Fergus, "Indoor Segmentation and Support Inference from RGBD Images", ECCV 2012
(https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html; for research, no licence stated), as Wofk et al.,
"FastDepth: Fast Monocular Depth Estimation on Embedded Systems", ICRA 2019, packed it (34 GB):
http://datasets.lids.mit.edu/fastdepth/data/nyudepthv2.tar.gz. `data_dir` is its folder nyudepthv2:

    train/<scene>/<number>.h5     47 584 frames: `rgb` uint8 3x480x640; `depth` f32 480x640, metres, 0 unknown
    val/official/<number>.h5      654, likewise

or the folder in which TensorFlow Datasets prepared the same frames, with depth in half precision (steps of up
to 8 mm), by `tfds build nyu_depth_v2 --data_dir=DIR` (TFDS downloads them):

    nyu_depth_v2/<version>/

With `eigen_crop`, the labels of val are known as they are usually scored (Eigen, Puhrsch, Fergus, "Depth Map
Prediction from a Single Image using a Multi-Scale Deep Network", NeurIPS 2014): in rows 45 to 470 and columns
41 to 600, from 0 on, and from 1 mm to 10 m.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

from mtl_jax.data import files, tfds_split
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets.nyud import FARTHEST
from mtl_jax.errors import UserError, reading

PUBLISHED = {"train": 47584, "val": 654}
ARCHIVES = {
    "nyudepthv2.tar.gz": "sha256:063b5762eeb3041614bf40722ea5cf805cb8ca052e56f3d1c63cfd229e7ff7b3",
}
TFDS = "nyu_depth_v2"
TFDS_SPLITS = {"train": "train", "val": "validation"}
SIZE = (480, 640)
CROP = (slice(45, 471), slice(41, 601))
SCORED = (1e-3, 10.0)  # metres, both exclusive


def build(data_dir: str, eigen_crop: bool = False) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      data_dir: FastDepth's folder, or where TFDS keeps its datasets.
      eigen_crop: in val, label alone what is usually scored.

    Raises:
      UserError: there is no frame of a split; while loading, a file that cannot be read or is not as
        described.
    """
    root = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in PUBLISHED:
            raise UserError(f"nyu_depth has no split {name!r}: choose one of {', '.join(PUBLISHED)}")
        ids, read = _prepared(root, name) if tfds_split.is_prepared(root, TFDS) else _frames(root, name)

        def load(index: int) -> Example:
            image, depth = read(index)
            if eigen_crop and name == "val":
                depth = crop(depth)
            return {"image": image, "labels": dict.fromkeys(tasks, depth)}

        return Split(ids, lambda: np.tile(np.int32(SIZE), (len(ids), 1)), load)

    return Dataset({"depth": {}}, tuple(PUBLISHED), split, PUBLISHED, ARCHIVES)


def crop(depth: np.ndarray) -> np.ndarray:
    """f32[480,640,1]: metres where they are usually scored; elsewhere 0."""
    kept = np.zeros_like(depth)
    kept[CROP] = depth[CROP]
    return np.where((kept > SCORED[0]) & (kept < SCORED[1]), kept, np.float32(0))


Frame = tuple[np.ndarray, np.ndarray]
"""(image uint8[h,w,3], depth f32[h,w,1] in metres, 0 unknown)"""


def read_frame(path: Path) -> Frame:
    """A frame of FastDepth's archive; raises UserError if the file does not give it."""
    with reading(path), h5py.File(path) as file:
        image, depth = np.moveaxis(file["rgb"][:], 0, -1), file["depth"][:]
    return image, _metres(depth, image.shape[:2], path)


def _frames(root: Path, split: str) -> tuple[list[str], Callable[[int], Frame]]:
    """The ids <folder>/<number> of the split's frames, and what reads one by index."""
    paths = sorted((root / split).glob("*/*.h5"))
    if not paths:
        raise UserError(
            f"there is no frame {root / split}/*/*.h5, nor a prepared TFDS dataset {root / TFDS}: set"
            " data_dir to the folder nyudepthv2, or to that of TFDS"
        )

    def read(index: int) -> Frame:
        image, depth = read_frame(paths[index])
        files.check_shape(image, (*SIZE, 3), paths[index])
        return image, depth

    return [f"{path.parent.name}/{path.stem}" for path in paths], read


def _prepared(root: Path, split: str) -> tuple[Sequence[str], Callable[[int], Frame]]:
    """The same of what TFDS prepared."""
    examples = tfds_split.Examples(tfds_split.builder(root, TFDS), TFDS_SPLITS[split])

    def read(index: int) -> Frame:
        example = examples[index]
        return example["image"], _metres(example["depth"], SIZE, f"{root / TFDS}, {examples.ids[index]}")

    return examples.ids, read


def _metres(depth: np.ndarray, size: tuple[int, int], place: Path | str) -> np.ndarray:
    """f32[h,w,1]: metres; 0 is unknown."""
    files.check_shape(depth, size, place)
    return files.positive(depth[..., None], FARTHEST, "metres", place)

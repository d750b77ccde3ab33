"""DIODE: scans of buildings and streets, with dense depth and surface normals.

Vasiljevic et al., "DIODE: A Dense Indoor and Outdoor DEpth Dataset", 2019, https://arxiv.org/abs/1908.00463
(https://diode-dataset.org, https://github.com/diode-dataset/diode-devkit; MIT licence). From
http://diode-dataset.s3.amazonaws.com/ come `train.tar.gz` (81 GB) and `val.tar.gz` (2.6 GB), with images and
depth, and `train_normals.tar.gz` (126 GB) and `val_normals.tar.gz` (4.6 GB), which only normals need. Unpack
them into one folder, `data_dir`:

    <split>/<scenes>/scene_<s>/scan_<t>/<s>_<t>_<scenes>_<a>_<b>.png      768x1024, 8-bit RGB
    ..._depth.npy          f32, 768x1024 or 768x1024x1, metres
    ..._depth_mask.npy     768x1024, 1 where depth is known, else 0
    ..._normal.npy         768x1024x3, unit vectors; zero is unknown

with <split> train or val and <scenes> outdoor (16 884 and 446 images) or indoors (8574 and 325). Examples are
what lies there, in the order of paths: the list of the development kit lacks 54 outdoor and 105 indoor images
of val.

The release does not say what the axes of normals are. They are taken to be x to the right, y up and z towards
the camera, as two public evaluations have them: that of Hu et al., "Metric3D v2", TPAMI 2024, negates y and z
to get to x right, y down and z ahead (then it turns them to face the camera, whatever their sign); that of Ke
et al., "Marigold", TPAMI 2025, compares a copy of them with predictions in these axes. So their sign is less
sure than their axes; `python -m mtl_jax.data.prepare` tells how many have z away from the camera. Here they
stay as stored.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import folder
from mtl_jax.errors import UserError
from mtl_jax.tasks import normals

SPLITS = ("train", "val")
PUBLISHED = {"outdoor": {"train": 16884, "val": 446}, "indoors": {"train": 8574, "val": 325}}
ARCHIVES = {
    "train.tar.gz": "md5:3a94632398fe1d002d89f11743f748b1",
    "val.tar.gz": "md5:5c895d09201b88973c8fe4552a67dd85",
    "train_normals.tar.gz": "md5:9c0617ebe1eaf1928fdf3344e1c42aef",
    "val_normals.tar.gz": "md5:323ccaf60abebdb59705dcd8b529d709",
}
FARTHEST = 1000.0  # metres; the scanner's range ends at 350
PICTURED = {"outdoor": 100.0, "indoors": 20.0}  # metres up to which pictures tell depths apart
VECTORS = folder.Reader(normals.build("normals"), {"axes": ("r", "g", "b")})


def build(data_dir: str, scenes: str = "outdoor") -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      scenes: "outdoor" or "indoors".

    Raises:
      UserError: other scenes; there is no image of a split, or one without its label; while loading, a file
        that cannot be read or is not as described.
    """
    if scenes not in PUBLISHED:
        raise UserError(f"diode: data.options.scenes is {scenes!r}: choose outdoor or indoors")
    root = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"diode has no split {name!r}: choose one of {', '.join(SPLITS)}")
        place = root / name / scenes
        photos = sorted(place.glob("scene_*/scan_*/*.png"))
        if not photos:
            raise UserError(
                f"there is no image {place}/scene_*/scan_*/*.png: unpack {name}.tar.gz into {root}"
            )
        endings = (("depth", "depth_mask") if "depth" in tasks else ()) + ("normal",) * ("normals" in tasks)
        found = {e: files.find([[p.with_name(f"{p.stem}_{e}.npy")] for p in photos]) for e in endings}

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            paths, labels = {ending: found[ending][index] for ending in endings}, {}
            if "depth" in tasks:
                labels["depth"] = _depth(paths["depth"], paths["depth_mask"], image.shape[:2])
            if "normals" in tasks:
                labels["normals"] = _normals(paths["normal"], image.shape[:2])
            return {"image": image, "labels": labels}

        ids = [path.relative_to(place).with_suffix("").as_posix() for path in photos]
        return Split(ids, files.image_sizes(photos), load)

    labels = {"depth": {"max_depth": PICTURED[scenes]}, "normals": {}}
    return Dataset(labels, SPLITS, split, PUBLISHED[scenes], ARCHIVES)


def _depth(path: Path, mask: Path, size: tuple[int, int]) -> np.ndarray:
    """f32[h,w,1]: metres; 0 is unknown."""
    depth, known = files.read_array(path), files.read_array(mask)
    files.check_shape(depth, (*size, 1), path)
    files.check_shape(known, (*size, 1), mask)
    if not np.isin(known, (0, 1)).all():
        raise UserError(f"{mask} holds other values than 0 and 1: unpack the release again")
    return files.positive(np.where(known == 1, depth, 0), FARTHEST, "metres", path)


def _normals(path: Path, size: tuple[int, int]) -> np.ndarray:
    """f32[h,w,3]: unit vectors, x right, y up, z towards the camera; zero is unknown."""
    vectors = VECTORS.read(path)
    files.check_shape(vectors, (*size, 3), path)
    return vectors

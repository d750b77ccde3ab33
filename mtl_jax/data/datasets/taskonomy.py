"""Taskonomy: rooms of scanned buildings, with labels for many tasks; its "tiny" split.

Zamir, Sax, Shen, Guibas, Malik, Savarese, "Taskonomy: Disentangling Task Transfer Learning", CVPR 2018
(http://taskonomy.stanford.edu, https://github.com/StanfordVL/taskonomy; for research, not for commerce, under
the agreement data/LICENSE there). `pip install omnidata-tools`, then for each kind of image below

    omnitools.download KIND --components taskonomy --subset tiny --dest DIR --agree

`data_dir` is the folder that holds one folder per kind of image, as this downloader or Standley et al.,
"Which Tasks Should Be Learned Together in Multi-task Learning?", ICML 2020, lay it out:

    <kind>/<building>/point_<p>_view_<v>_domain_<kind>.png
    <kind>/taskonomy/<building>/point_<p>_view_<v>_domain_<kind>.png

512x512 PNG; p and v are not padded, and in the files' names segment_semantic is segmentsemantic:

    kind              task            stored                    read as
    rgb               (the image)     8-bit RGB
    segment_semantic  semseg          8 bits; 0 uncertain       the classes below, 1 to 17, less 1
    depth_zbuffer     depth           16 bits, 1/512 m          metres; unknown from 16 m on (65535 is a hole)
    normal            normals         8-bit RGB, -1 to 1        unit vectors
    edge_occlusion    edge_occlusion  16 bits                   (v - 56.0248) / 239.1265
    reshading         reshading       8-bit grey as RGB         (v / 255 - 0.4962) / 0.2846
    keypoints2d       keypoints2d     16 bits                   (v - 50) / 100
    edge_texture      edge_texture    16 bits                   (v - 718) / 1070

Normals, edge_occlusion and reshading are unknown where depth is. These masks and the last four transforms, to
about standard deviations from the mean, are those of Standley et al. They have depth as (v - 1500) / 1000, so
that an error here is 1.953 times theirs; and 18 classes, of which the first is never judged.

Everything is shrunk to `size`: classes and depth to the nearest pixel, the others by means over known pixels.

The examples of a split are the views of its buildings (25 to train on, 5 and 5), in the order of building, p
and v, that every kind of image has of which there is a folder: whatever the tasks, the images are the same. A
few published files are damaged; name their views in `skip`, or whole buildings: woodbine is no longer
offered.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files, resample
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import folder
from mtl_jax.errors import UserError
from mtl_jax.tasks import normals

SPLITS = ("train", "val", "test")
TINY = {
    "train": (
        *("hanson", "merom", "klickitat", "onaga", "leonardo", "marstons", "newfields", "pinesdale"),
        *("lakeville", "cosmos", "benevolence", "pomaria", "tolstoy", "shelbyville", "allensville"),
        *("wainscott", "beechwood", "coffeen", "stockman", "hiteman", "woodbine", "lindenwood", "forkland"),
        *("mifflinburg", "ranchester"),
    ),
    "val": ("wiconisco", "corozal", "collierville", "markleeville", "darden"),
    "test": ("ihlen", "muleshoe", "uvalda", "noxapater", "mcdade"),
}
DAMAGED = ("newfields/point_1070_view_8",)  # its image

CLASSES = (
    *("background", "bottle", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase"),
)
KINDS = {  # the folder of each task
    "image": "rgb",
    "semseg": "segment_semantic",
    "depth": "depth_zbuffer",
    "normals": "normal",
    "edge_occlusion": "edge_occlusion",
    "reshading": "reshading",
    "keypoints2d": "keypoints2d",
    "edge_texture": "edge_texture",
}
STATISTICS = {  # mean and standard deviation of the stored numbers, by which they are normalised
    "edge_occlusion": (56.0248, 239.1265),
    "reshading": (0.4962 * 255, 0.2846 * 255),
    "keypoints2d": (50.0, 100.0),
    "edge_texture": (718.0, 1070.0),
}
MASKED = ("normals", "edge_occlusion", "reshading")  # tasks that are unknown where depth is
DEPTH_STEPS = 512  # to the metre
DEPTH_END = 2**13  # from here on, depth is unknown
DEEP = ("depth", "edge_occlusion", "keypoints2d", "edge_texture")  # stored in 16 bits

# Red grows to the right, green downwards, blue away from the camera. The release does not say so, but public
# networks that learnt from it predict (0, -1, 0) on floors and (0, 0, -1) on walls that face the camera
# (https://github.com/maturk/dn-splatter/issues/9). One of its authors has blue the other way round, in words
# (https://github.com/EPFL-VILAB/omnidata/issues/13); losses, errors and mirroring do not depend on it.
AXES = ("r", "-g", "-b")
COLOURS = folder.Reader(normals.build("normals"), {"axes": AXES})


def build(
    data_dir: str,
    size: Sequence[int] = (256, 256),
    splits_file: str | None = None,
    skip: Sequence[str] = DAMAGED,
) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train, val and test.

    Args:
      size: (height, width) of the examples.
      splits_file: other splits, like the release's train_val_test_tiny.csv: columns id (the building), train,
        val and test (1 or 0).
      skip: buildings and views to leave out, such as woodbine or newfields/point_1070_view_8.

    Raises:
      UserError: a folder, of a kind or of a building, is missing, or the file of splits is not as described;
        while loading, a file that cannot be read or is not as described.
    """
    root, size = Path(data_dir).expanduser(), tuple(size)
    buildings = _read_buildings(Path(splits_file).expanduser()) if splits_file else TINY

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"taskonomy has no split {name!r}: choose one of {', '.join(SPLITS)}")
        depth = ["depth"] if set(tasks) & set(MASKED) else []
        kinds = list(dict.fromkeys(["image", *tasks, *depth]))
        folders = _folders(root, kinds)
        kept = sorted(set(buildings[name]) - set(skip))
        views = [view for building in kept for view in _views(folders, building) if view not in skip]

        def load(index: int) -> Example:
            paths = {kind: _path(folders[kind], views[index], kind) for kind in kinds}
            image = files.read_image(paths["image"])
            maps = {kind: _read(kind, paths[kind], image.shape[:2]) for kind in kinds[1:]}
            labels = {task: _shrunk(task, maps, size) for task in tasks}
            return {"image": resample.smooth(image, size), "labels": labels}

        return Split(views, lambda: np.tile(np.int32(size), (len(views), 1)), load)

    labels = {
        "semseg": {"num_classes": len(CLASSES), "class_names": CLASSES},
        "depth": {},
        "normals": {},
    } | {
        task: {"kind": "regression", "low": -mean / deviation, "high": 2.0}
        for task, (mean, deviation) in STATISTICS.items()
    }
    return Dataset(labels, SPLITS, split)


def _read_buildings(path: Path) -> dict[str, list[str]]:
    """The buildings of each split; the file's lines may end in a carriage return alone."""
    rows = list(csv.DictReader(files.read_lines(path)))
    missing = [column for column in ("id", *SPLITS) if not rows or column not in rows[0]]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r}: give id, {', '.join(SPLITS)}, and a building")
    for row in rows:
        if any(row[name] not in ("0", "1") for name in SPLITS):
            raise UserError(f"{path} says of {row['id']!r} neither 0 nor 1 for each split: correct it")
    return {name: [row["id"] for row in rows if row[name] == "1"] for name in SPLITS}


def _folders(root: Path, needed: Sequence[str]) -> dict[str, Path]:
    """The folder of buildings of every kind that is there."""
    there = {kind: root / name for kind, name in KINDS.items() if (root / name).is_dir()}
    for kind in needed:
        if kind not in there:
            raise UserError(f"there is no folder {root / KINDS[kind]}: download that kind of image")
    return {k: path / "taskonomy" if (path / "taskonomy").is_dir() else path for k, path in there.items()}


def _views(folders: Mapping[str, Path], building: str) -> list[str]:
    """<building>/point_<p>_view_<v> of all views that every folder has, by p and v."""
    found = [_numbers(path / building, kind) for kind, path in folders.items()]
    common = sorted(set.intersection(*found))
    if not common:
        kinds = ", ".join(map(str, folders.values()))
        raise UserError(f"no view of {building} is in each of {kinds}: download it, or name it in `skip`")
    return [f"{building}/point_{p}_view_{v}" for p, v in common]


def _numbers(folder: Path, kind: str) -> set[tuple[int, int]]:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: download the building, or name it in `skip`")
    names = (
        re.fullmatch(rf"point_(\d+)_view_(\d+)_domain_{_domain(kind)}\.png", p.name) for p in folder.iterdir()
    )
    return {(int(name[1]), int(name[2])) for name in names if name}


def _domain(kind: str) -> str:
    return "segmentsemantic" if kind == "semseg" else KINDS[kind]


def _path(folder: Path, view: str, kind: str) -> Path:
    return folder / f"{view}_domain_{_domain(kind)}.png"


def _read(kind: str, path: Path, shape: tuple[int, int]) -> np.ndarray:
    """The label at its stored size: classes uint8[h,w,1], normals f16[h,w,3], others f32[h,w,1]."""
    if kind == "normals":
        label = COLOURS.read(path)
    else:
        stored = files.read_array(path)
        if (stored.dtype == np.uint8) == (kind in DEEP):
            raise UserError(f"{path} has not the bit depth of the release: do not convert its files")
        if kind == "semseg":
            files.check_classes(stored, range(len(CLASSES) + 1), path)
        if kind == "reshading" and stored.shape[2] == 3:
            stored = stored.mean(-1, keepdims=True)  # grey as RGB
        label = _decoded(kind, stored)
    files.check_shape(label, (*shape, 3 if kind == "normals" else 1), path)
    return label


def _decoded(kind: str, stored: np.ndarray) -> np.ndarray:
    if kind == "semseg":
        return np.where(stored == 0, 255, stored - 1).astype(np.uint8)
    if kind == "depth":
        return np.where(stored < DEPTH_END, stored / DEPTH_STEPS, 0).astype(np.float32)
    mean, deviation = STATISTICS[kind]
    return ((stored - mean) / deviation).astype(np.float32)


def _shrunk(task: str, maps: Mapping[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The label [H,W,C] at the size of the examples, in canonical form."""
    label = maps[task]
    if task in ("semseg", "depth"):
        return resample.nearest(label, size)
    known = maps["depth"] > 0 if task in MASKED else np.ones((*label.shape[:2], 1), bool)
    if task != "normals":
        return resample.smooth_known(label, known, size, fill=np.nan)
    known = known & label.any(-1, keepdims=True)
    mean = resample.smooth_known(label.astype(np.float32), known, size, fill=0)
    length = np.linalg.norm(mean, axis=-1, keepdims=True)
    return np.divide(mean, length, out=np.zeros_like(mean), where=length > 0)

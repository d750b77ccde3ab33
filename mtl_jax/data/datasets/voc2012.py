"""PASCAL VOC 2012, segmentation: photographs with things of 20 classes; more of them from SBD.

Everingham, Eslami, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes Challenge: A
Retrospective", IJCV 2015; Hariharan, Arbelaez, Bourdev, Maji, Malik, "Semantic Contours from Inverse
Detectors", ICCV 2011 (SBD, the Semantic Boundaries Dataset).

`VOCtrainval_11-May-2012.tar` (2 GB) from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and `benchmark.tgz`
from http://home.bharathh.info/pubs/codes/SBD/download.html. The photographs are Flickr's and stay under its
terms of use; for the labels no licence is stated.

`data_dir` is the folder VOCdevkit/VOC2012 of the first, `sbd_dir` is benchmark_RELEASE/dataset of the second:

    data_dir/JPEGImages/<id>.jpg                        sizes differ; no side is above 500
    data_dir/SegmentationClass/<id>.png                 with a palette; index 0 to 20, 255 void (outlines)
    data_dir/ImageSets/Segmentation/{train,val}.txt     1464 and 1449 ids
    sbd_dir/img/<id>.jpg
    sbd_dir/cls/<id>.mat                                `GTcls`: a struct with Segmentation, 0 to 20, no void
    sbd_dir/{train,val}.txt                             8498 and 2857 ids, of a division of its own

The split "trainaug" is what the papers train on: SBD and VOC's train, without VOC's val: 10 582 images. Those
in both have VOC's label.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

SPLITS = ("train", "val", "trainaug")
CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike"
    " person pottedplant sheep sofa train tvmonitor".split()
)


def build(data_dir: str, sbd_dir: str | None = None) -> Dataset:
    """The datasets below these folders (see the head of this file); splits train, val and trainaug.

    Raises:
      UserError: a file of a split is missing, or trainaug is asked for without `sbd_dir`; while loading, a
        file that cannot be read or is not as described.
    """
    voc = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"voc2012 has no split {name!r}: choose one of {', '.join(SPLITS)}")
        pairs = _trainaug(voc, sbd_dir) if name == "trainaug" else _voc(voc, name)
        photos, maps = zip(*pairs.values(), strict=True)
        photos = files.find([[path] for path in photos])
        if tasks:
            maps = files.find([[path] for path in maps])

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: _classes(maps[index], image.shape[:2]) for task in tasks}
            return {"image": image, "labels": labels}

        return Split(list(pairs), files.image_sizes(photos), load)

    options = {"num_classes": len(CLASSES), "class_names": CLASSES}
    return Dataset({"semseg": options}, SPLITS, split)


Pairs = dict[str, tuple[Path, Path]]
"""{id: (photograph, label)}"""


def _voc(root: Path, name: str) -> Pairs:
    ids = files.read_names(root / "ImageSets/Segmentation" / f"{name}.txt")
    return {i: (root / "JPEGImages" / f"{i}.jpg", root / "SegmentationClass" / f"{i}.png") for i in ids}


def _sbd(root: Path, name: str) -> Pairs:
    ids = files.read_names(root / f"{name}.txt")
    return {i: (root / "img" / f"{i}.jpg", root / "cls" / f"{i}.mat") for i in ids}


def _trainaug(voc: Path, sbd_dir: str | None) -> Pairs:
    if sbd_dir is None:
        raise UserError(
            "voc2012: the split trainaug needs the option sbd_dir, SBD's folder benchmark_RELEASE/dataset"
        )
    sbd, val = Path(sbd_dir).expanduser(), _voc(voc, "val")
    every = _sbd(sbd, "train") | _sbd(sbd, "val") | _voc(voc, "train")
    return {name: pair for name, pair in every.items() if name not in val}


def _classes(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w,1]: 0 to 20; 255 is void."""
    if path.suffix == ".mat":
        with reading(path):
            label = files.read_mat(path, "GTcls")["Segmentation"][0, 0][..., None]
    else:
        label = files.read_array(path)
    files.check_shape(label, (*size, 1), path)
    if not np.isin(label, [*range(len(CLASSES)), 255]).all():
        raise UserError(f"{path} holds other values than 0 to 20 and 255: unpack the release again")
    return label.astype(np.uint8)

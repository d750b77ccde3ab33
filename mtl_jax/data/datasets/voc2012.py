"""PASCAL VOC 2012, segmentation: photographs with things of 20 classes; more of them from SBD.

Everingham, Eslami, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes Challenge: A
Retrospective", IJCV 2015; Hariharan, Arbelaez, Bourdev, Maji, Malik, "Semantic Contours from Inverse
Detectors", ICCV 2011 (SBD, the Semantic Boundaries Dataset).

`VOCtrainval_11-May-2012.tar` (2 GB) from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and `benchmark.tgz`
(1.3 GB) from http://home.bharathh.info/pubs/codes/SBD/download.html or
https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz. The
photographs are Flickr's and stay under its terms of use; for the labels no licence is stated.

`data_dir` is the folder VOCdevkit/VOC2012 of the first, `sbd_dir` is benchmark_RELEASE/dataset of the second:

    data_dir/JPEGImages/<id>.jpg                        sizes differ; no side is above 500
    data_dir/SegmentationClass/<id>.png                 with a palette; index 0 to 20, 255 void (outlines)
    data_dir/ImageSets/Segmentation/{train,val}.txt     1464 and 1449 ids
    sbd_dir/img/<id>.jpg
    sbd_dir/cls/<id>.mat                                `GTcls`: a struct with Segmentation, 0 to 20, no void
    sbd_dir/{train,val}.txt                             8498 and 2857 ids, of a division of its own

The split "trainaug" is what the papers train on: SBD and VOC's train, without VOC's val: 10 582 images. Those
in both have VOC's label.

In place of `sbd_dir`, VOC2012 may hold SBD's labels as others have converted them into PNGs, such as
`SegmentationClassAug.zip` (https://github.com/DrSleep/tensorflow-deeplab-resnet links to it), with a list:

    data_dir/SegmentationClassAug/<id>.png              8-bit grey or with a palette; 0 to 20, 255 void
    data_dir/ImageSets/SegmentationAug/train.txt        10 582 ids; or train_aug.txt there, or
                                                        ImageSets/Segmentation/{trainaug,train_aug}.txt
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

PUBLISHED = {"train": 1464, "val": 1449, "trainaug": 10582}
SPLITS = tuple(PUBLISHED)
ARCHIVES = {  # as torchvision has them
    "VOCtrainval_11-May-2012.tar": "md5:6cd6e144f989b92b3379bac3b3de84fd",
    "benchmark.tgz": "md5:82b4d87ceb2ed10f6038a1cba92111cb",
}
VOC_LIST = "Segmentation/{}.txt"
TRAINAUG_LISTS = (  # below ImageSets, by whoever made the PNGs
    *("SegmentationAug/train.txt", "SegmentationAug/train_aug.txt"),
    *("Segmentation/trainaug.txt", "Segmentation/train_aug.txt"),
)
LABEL_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # VOC's own label first
CLASSES = tuple(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike"
    " person pottedplant sheep sofa train tvmonitor".split()
)


def build(data_dir: str, sbd_dir: str | None = None) -> Dataset:
    """The datasets below these folders (see the head of this file); splits train, val and trainaug.

    Raises:
      UserError: a file of a split is missing, or trainaug is asked for without `sbd_dir` and without a list;
        while loading, a file that cannot be read or is not as described.
    """
    voc = Path(data_dir).expanduser()

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"voc2012 has no split {name!r}: choose one of {', '.join(SPLITS)}")
        pairs = _trainaug(voc, sbd_dir) if name == "trainaug" else _voc(voc, VOC_LIST.format(name))
        photos = files.find([[photo] for photo, *_ in pairs.values()])
        maps = files.find([places for _, *places in pairs.values()] if tasks else [])

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: _classes(maps[index], image.shape[:2]) for task in tasks}
            return {"image": image, "labels": labels}

        return Split(list(pairs), files.image_sizes(photos), load)

    options = {"num_classes": len(CLASSES), "class_names": CLASSES}
    return Dataset({"semseg": options}, SPLITS, split, PUBLISHED, ARCHIVES)


Places = dict[str, tuple[Path, ...]]
"""{id: (photograph, label, or another place where it may be)}"""


def _voc(root: Path, listed: str) -> Places:
    ids = files.read_names(root / "ImageSets" / listed)
    return {
        i: (root / f"JPEGImages/{i}.jpg", *(root / folder / f"{i}.png" for folder in LABEL_FOLDERS))
        for i in ids
    }


def _sbd(root: Path, name: str) -> Places:
    ids = files.read_names(root / f"{name}.txt")
    return {i: (root / "img" / f"{i}.jpg", root / "cls" / f"{i}.mat") for i in ids}


def _trainaug(voc: Path, sbd_dir: str | None) -> Places:
    listed = next((name for name in TRAINAUG_LISTS if (voc / "ImageSets" / name).is_file()), None)
    if sbd_dir is None and listed is None:
        raise UserError(
            "voc2012: the split trainaug needs the option sbd_dir, SBD's folder benchmark_RELEASE/dataset, or"
            f" the list {voc / 'ImageSets' / TRAINAUG_LISTS[0]} and SBD's labels as PNGs"
        )
    if sbd_dir is None:
        return _voc(voc, listed)
    sbd, val = Path(sbd_dir).expanduser(), _voc(voc, VOC_LIST.format("val"))
    every = _sbd(sbd, "train") | _sbd(sbd, "val") | _voc(voc, VOC_LIST.format("train"))
    return {name: places for name, places in every.items() if name not in val}


def _classes(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w,1]: 0 to 20; 255 is void."""
    if path.suffix == ".mat":
        with reading(path):
            label = files.read_mat(path, "GTcls")["Segmentation"][0, 0][..., None]
    else:
        label = files.read_array(path)
    files.check_shape(label, (*size, 1), path)
    files.check_classes(label, range(len(CLASSES)), path, unknown=255)
    return label.astype(np.uint8)

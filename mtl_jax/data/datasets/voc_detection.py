"""PASCAL VOC 2007 and 2012, detection: photographs with boxes around things of 20 classes.

Everingham, Eslami, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes Challenge: A
Retrospective", IJCV 2015. VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar (0.5 GB each) from
http://host.robots.ox.ac.uk/pascal/VOC/voc2007/, VOCtrainval_11-May-2012.tar (2 GB) from ../voc2012/. The
photographs are Flickr's and under its terms of use; for the labels no licence is stated.

`data_dir` is the folder VOCdevkit that they unpack:

    VOC<year>/JPEGImages/<id>.jpg                           sizes differ; no side is above 500
    VOC<year>/Annotations/<id>.xml                          objects: name, difficult, bndbox
    VOC<year>/ImageSets/Main/{train,val,trainval,test}.txt  ids, such as 000005 or 2008_000002

or else the one in which TensorFlow Datasets prepared voc/2007 and voc/2012; both give the same.

    split               images
    train               16551   trainval2007 and trainval2012, on which most papers train
    test                 4952   of 2007; the boxes of 2012's are not public
    train2007, val2007, trainval2007            2501, 2510, 5011
    train2012, val2012, trainval2012            5717, 5823, 11540

A bndbox names its first and last pixel, counted from 1 and sometimes with decimals: its edges are xmin - 1
and xmax. Parts of people (head, hands, feet) are no objects. What is difficult is hard. Boxes are cut at the
image's borders. Names of images have their year: 2007/000005.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mtl_jax.data import boxes, files, tfds_split
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import voc2012
from mtl_jax.errors import UserError, reading

CLASSES = voc2012.CLASSES[1:]
SPLITS = {  # years and lists
    "train": (("2007", "trainval"), ("2012", "trainval")),
    "test": (("2007", "test"),),
} | {f"{part}{year}": ((year, part),) for year in ("2007", "2012") for part in ("train", "val", "trainval")}
TFDS_SPLITS = {
    "train": ("train",),
    "val": ("validation",),
    "trainval": ("train", "validation"),
    "test": ("test",),
}
PUBLISHED = {
    **{"train": 16_551, "test": 4952},
    **{"train2007": 2501, "val2007": 2510, "trainval2007": 5011},
    **{"train2012": 5717, "val2012": 5823, "trainval2012": 11_540},
}
ARCHIVES = {
    "VOCtrainval_06-Nov-2007.tar": "md5:c52e279531787c972589f7e41ab4ae64",
    "VOCtest_06-Nov-2007.tar": "md5:b6e924de25625d8de591ea690078ad9f",
    "VOCtrainval_11-May-2012.tar": "md5:6cd6e144f989b92b3379bac3b3de84fd",
}


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file, also for its splits).

    Raises:
      UserError: a file of a split is missing; while loading, a file that cannot be read or is not as
        described.
    """
    root = Path(data_dir).expanduser()
    tfds_ids = functools.cache(_tfds_ids)

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"voc_detection has no split {name!r}: choose one of {', '.join(SPLITS)}")
        years = {year for year, _ in SPLITS[name]}
        unpacked = any((root / f"VOC{year}").is_dir() for year in years)
        if not unpacked and all(tfds_split.is_prepared(root, "voc", year) for year in years):
            parts = [(year, part) for year, which in SPLITS[name] for part in TFDS_SPLITS[which]]
            return _of_tfds(root, parts, np.concatenate([tfds_ids(root, *part) for part in parts]), tasks)
        return _of_release(root, SPLITS[name], tasks)

    labels = {"detection": {"num_classes": len(CLASSES), "class_names": CLASSES}}
    return Dataset(labels, tuple(SPLITS), split, published=PUBLISHED, archives=ARCHIVES)


Parts = Sequence[tuple[str, str]]
"""(year, list) one after the other"""


def _of_release(root: Path, parts: Parts, tasks: Sequence[str]) -> Split:
    folders = {year: root / f"VOC{year}" for year, _ in parts}
    names = [
        (year, name)
        for year, part in parts
        for name in files.read_names(folders[year] / "ImageSets/Main" / f"{part}.txt")
    ]
    photos = files.find([[folders[year] / "JPEGImages" / f"{name}.jpg"] for year, name in names])
    if tasks:
        annotations = files.find([[folders[year] / "Annotations" / f"{name}.xml"] for year, name in names])

    def load(index: int) -> Example:
        image = files.read_image(photos[index])
        labels = {task: _objects(annotations[index], image.shape[:2]) for task in tasks}
        return {"image": image, "labels": labels}

    return Split([f"{year}/{name}" for year, name in names], files.image_sizes(photos), load)


def _objects(path: Path, size: tuple[int, int]) -> np.ndarray:
    """f32[n,1,6] of an annotation; UserError if it is not about an image (height, width) = `size`."""
    with reading(path):
        annotation = ElementTree.parse(path).getroot()
        stated = tuple(int(_text(annotation, f"size/{side}")) for side in ("height", "width"))
        rows = [_row(each) for each in annotation.findall("object")]
    if stated != size:
        raise UserError(
            f"{path} is about an image of {stated[0]}x{stated[1]} (height x width), but it is"
            f" {size[0]}x{size[1]}: unpack the release again"
        )
    return boxes.as_label(np.array(rows, float).reshape(-1, 6), size)


def _row(each: ElementTree.Element) -> tuple[float, ...]:
    ymin, xmin, ymax, xmax = (
        float(_text(each, f"bndbox/{side}")) for side in ("ymin", "xmin", "ymax", "xmax")
    )
    name = _text(each, "name").strip().lower()
    if name not in CLASSES:
        raise ValueError(f"an object's name is {name!r}")
    return ymin - 1, xmin - 1, ymax, xmax, CLASSES.index(name), int(each.findtext("difficult", "0"))


def _text(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"it has no {path}")
    return text


def _tfds_ids(root: Path, year: str, part: str) -> np.ndarray:
    """str[N]: name of each image, in TFDS's order, by one pass over the records."""
    examples = tfds_split.Examples(tfds_split.builder(root, "voc", year), part, ["image/filename"])
    return np.array([f"{year}/{Path(example['image/filename'].decode()).stem}" for example in examples])


def _of_tfds(root: Path, parts: Parts, ids: np.ndarray, tasks: Sequence[str]) -> Split:
    """In the order of VOC's lists, that of the names."""
    features = {"image": True} | ({"objects": {"bbox", "label", "is_difficult"}} if tasks else {})
    examples = [
        tfds_split.Examples(tfds_split.builder(root, "voc", year), part, features) for year, part in parts
    ]
    places = [(each, number) for each in examples for number in range(len(each))]
    order = np.argsort(ids)

    def load(index: int) -> Example:
        each, number = places[order[index]]
        example = each[number]
        size = example["image"].shape[:2]

        def detection() -> np.ndarray:
            rows = boxes.of_tfds(example["objects"], "is_difficult", size)
            return boxes.as_label(rows - [1, 1, 0, 0, 0, 0], size)  # TFDS divides what the release says

        return {"image": example["image"], "labels": {task: detection() for task in tasks}}

    def measure() -> np.ndarray:
        return np.concatenate([each.sizes()() for each in examples])[order]

    return Split(ids[order].tolist(), measure, load)

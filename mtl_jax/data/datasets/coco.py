"""COCO 2017: photographs of everyday scenes, with boxes of things, and a class for every pixel.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014; Kirillov, He, Girshick, Rother, Dollár,
"Panoptic Segmentation", CVPR 2019. From https://cocodataset.org/#download: train2017.zip (19 GB), val2017.zip
(0.8 GB), annotations_trainval2017.zip (0.25 GB), panoptic_annotations_trainval2017.zip (0.9 GB; unpack the
archives of PNGs inside, too). Annotations: CC BY 4.0. The photographs are Flickr's, under its terms of use.

118 287 images in train and 5000 in val, of sizes up to 640x640. `data_dir` holds

    {train,val}2017/<12 digits>.jpg                         or images/{train,val}2017/
    annotations/instances_{train,val}2017.json              for detection, and for the classes of VOC
    annotations/panoptic_{train,val}2017.json               for 133 classes, with
    annotations/panoptic_{train,val}2017/<12 digits>.png    or panoptic_{train,val}2017/

In place of a missing .json, TensorFlow Datasets' coco/2017 (boxes alone) or coco/2017_panoptic serves, where
it is prepared in `data_dir`. The labels:

    detection                   80 classes of things. A crowd is hard. 1 % of the images have no object.
    semseg, classes="panoptic"  80 things and 53 kinds of stuff. A pixel of the PNG is the number of a
                                segment, R + 256 G + 65536 B, whose class the .json tells; if it tells none,
                                the pixel is unknown (255). A crowd has its class.
    semseg, classes="voc"       VOC's classes, from the masks of instances, to judge a network that learnt
                                VOC; all else is background. Where masks overlap, the first has the pixel.

With the classes of VOC, images with 1000 labelled pixels or fewer are left out, as by the usual preparation
(https://github.com/jfzhang95/pytorch-deeplab-xception): elsewhere there is little or nothing to find. With
least_labelled=None all stay.

Classes are in the order of the categories' ids, and images in that of theirs. Boxes (x, y, width and height
in pixels) are cut at the image's borders, and the few without an area are left out. A whole .json is read
before the first image; that of train takes about a minute.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.data import boxes, files, tfds_split
from mtl_jax.data.coco_format import AGAIN, Images, Panoptic, read_instances, read_panoptic, segment_classes
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import voc2012
from mtl_jax.errors import UserError

SPLITS = ("train", "val")
THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase"),
    *("frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
    *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl"),
    *("banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote"),
    *("keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock"),
    *("vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
)
STUFF = (
    *("banner", "blanket", "bridge", "cardboard", "counter", "curtain", "door-stuff", "floor-wood", "flower"),
    *("fruit", "gravel", "house", "light", "mirror-stuff", "net", "pillow", "platform", "playingfield"),
    *("railroad", "river", "road", "roof", "sand", "sea", "shelf", "snow", "stairs", "tent", "towel"),
    *("wall-brick", "wall-stone", "wall-tile", "wall-wood", "water-other", "window-blind", "window-other"),
    *("tree-merged", "fence-merged", "ceiling-merged", "sky-other-merged", "cabinet-merged", "table-merged"),
    *("floor-other-merged", "pavement-merged", "mountain-merged", "grass-merged", "dirt-merged"),
    *("paper-merged", "food-other-merged", "building-other-merged", "rock-merged", "wall-other-merged"),
    "rug-merged",
)
AS_VOC = (  # the things that are VOC's classes 1, 2, ...
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table"),
    *("dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)
PUBLISHED = {"train": 118_287, "val": 5000}
ARCHIVES = {  # as TensorFlow Datasets checks them
    "train2017.zip": "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    "val2017.zip": "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    "annotations_trainval2017.zip": "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    "panoptic_annotations_trainval2017.zip": (
        "sha256:c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370"
    ),
}
TFDS_CONFIGS = {"instances": "2017", "panoptic": "2017_panoptic"}  # by kind of annotations
TFDS_SPLITS = {"train": "train", "val": "validation"}


def build(data_dir: str, classes: str = "panoptic", least_labelled: int | None = 1000) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      classes: of semseg: "panoptic" (133) or "voc" (21).
      least_labelled: with the classes of VOC, images with so many labelled pixels or fewer are left out; None
        keeps all.

    Raises:
      UserError: another `classes`; a file is missing, or a file of annotations is not as described; while
        loading, a file that cannot be read or is not as described.
    """
    if classes not in ("panoptic", "voc"):
        raise UserError(f"coco: data.options.classes is {classes!r}: choose panoptic or voc")
    root, voc = Path(data_dir).expanduser(), classes == "voc"
    kind_of = {"detection": "instances", "semseg": "instances" if voc else "panoptic"}
    instances = functools.cache(lambda path: read_instances(path, THINGS, AS_VOC if voc else ()))
    panoptic = functools.cache(lambda path: read_panoptic(path, THINGS + STUFF))
    tfds_ids = functools.cache(_tfds_ids)

    def source(kind: str, name: str, tasks: Sequence[str]) -> _Source:
        path = _annotations(root, kind, name)
        if not path.is_file() and _is_prepared(root, kind) and not voc:
            return _of_tfds(root, kind, name, tfds_ids(root, kind, name))
        files.find([[path]])
        if kind == "panoptic":
            found = panoptic(path)
            labels = {"semseg": _segments(root, name, found)} if tasks else {}
            return _of_release(root, name, found.images, labels)
        found = instances(path)
        labels = {"detection": lambda i, _: found.boxes(i), "semseg": lambda i, _: found.semseg(i)}
        return _of_release(root, name, found.images, labels)

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"coco has no split {name!r}: choose one of {', '.join(SPLITS)}")
        kinds = {kind_of[task] for task in tasks} or {_first_there(root, name, list(kind_of.values()))}
        sources = {kind: source(kind, name, tasks) for kind in sorted(kinds)}
        first, *others = sources.values()
        for other in others:
            if not np.array_equal(first.ids, other.ids):
                raise UserError(f"{first.where} and {other.where} are not about the same images: {AGAIN}")

        def load(index: int) -> Example:
            image = first.image(index)
            labels = {task: sources[kind_of[task]].labels[task](index, image) for task in tasks}
            return {"image": image, "labels": labels}

        whole = Split([f"{i:012}" for i in first.ids.tolist()], first.measure, load)
        if not voc or least_labelled is None:
            return whole
        labelled = instances(first.where).labelled
        return whole.subset([i for i in range(len(whole)) if labelled(i) > least_labelled])

    names = voc2012.CLASSES if voc else THINGS + STUFF
    labels = {
        "detection": {"num_classes": len(THINGS), "class_names": THINGS},
        "semseg": {"num_classes": len(names), "class_names": names},
    }
    published = {} if voc and least_labelled is not None else PUBLISHED
    return Dataset(labels, SPLITS, split, published=published, archives=ARCHIVES)


Labels = Mapping[str, Callable[[int, np.ndarray], np.ndarray]]
"""{task: (index, image) -> label}"""


@dataclasses.dataclass(frozen=True)
class _Source:
    """Images in the order of their ids, and their labels.

    Attributes:
      where: the file of annotations, or the folder that TFDS prepared.
      ids: i64[N], of the images.
      measure: as of a Split.
      image: index -> uint8[h,w,3].
      labels: see there.
    """

    where: Path
    ids: np.ndarray
    measure: Callable[[], np.ndarray]
    image: Callable[[int], np.ndarray]
    labels: Labels


def _annotations(root: Path, kind: str, split: str) -> Path:
    return root / "annotations" / f"{kind}_{split}2017.json"


def _is_prepared(root: Path, kind: str) -> bool:
    return tfds_split.is_prepared(root, "coco", TFDS_CONFIGS[kind])


def _first_there(root: Path, split: str, kinds: Sequence[str]) -> str:
    """The first kind of annotations that is there in either form; if there is none, the first of all."""
    there = (kind for kind in kinds if _annotations(root, kind, split).is_file() or _is_prepared(root, kind))
    return next(there, kinds[0])


def _of_release(root: Path, split: str, images: Images, labels: Labels) -> _Source:
    folder = f"{split}2017"
    photos = files.find([[root / folder / name, root / "images" / folder / name] for name in images.names])
    return _Source(images.path, images.ids, lambda: images.sizes, lambda i: images.read(i, photos[i]), labels)


def _segments(root: Path, split: str, panoptic: Panoptic) -> Callable[[int, np.ndarray], np.ndarray]:
    """(index, image) -> uint8[h,w,1]: 0 to 132; 255 is unknown."""
    folder = f"panoptic_{split}2017"
    paths = files.find([[root / "annotations" / folder / n, root / folder / n] for n in panoptic.names])

    def semseg(index: int, image: np.ndarray) -> np.ndarray:
        pixels = files.read_array(paths[index])
        files.check_shape(pixels, image.shape, paths[index])
        return segment_classes(pixels, *panoptic.segments[index])

    return semseg


def _tfds_ids(root: Path, kind: str, split: str) -> np.ndarray:
    """i64[N]: id of each image, in TFDS's order, by one pass over the records."""
    builder = tfds_split.builder(root, "coco", TFDS_CONFIGS[kind])
    examples = tfds_split.Examples(builder, TFDS_SPLITS[split], ["image/id"])
    return np.array([example["image/id"] for example in examples])


def _of_tfds(root: Path, kind: str, split: str, ids: np.ndarray) -> _Source:
    builder = tfds_split.builder(root, "coco", TFDS_CONFIGS[kind])
    order = np.argsort(ids)

    def examples(features: Any) -> tfds_split.Examples:
        return tfds_split.Examples(builder, TFDS_SPLITS[split], features)

    photos = examples(["image"])
    things = examples({"objects": {"bbox", "label", "is_crowd"}}) if kind == "instances" else ()
    segments = examples(["panoptic_image", "panoptic_objects"]) if kind == "panoptic" else ()

    def detection(index: int, image: np.ndarray) -> np.ndarray:
        size = image.shape[:2]
        return boxes.as_label(boxes.of_tfds(things[order[index]]["objects"], "is_crowd", size), size)

    def semseg(index: int, image: np.ndarray) -> np.ndarray:
        found = segments[order[index]]
        objects = found["panoptic_objects"]
        return segment_classes(found["panoptic_image"], objects["id"], objects["label"])

    return _Source(
        where=Path(builder.data_path),
        ids=ids[order],
        measure=lambda: photos.sizes()()[order],
        image=lambda i: photos[order[i]]["image"],
        labels={"detection": detection, "semseg": semseg},
    )

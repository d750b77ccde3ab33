"""Files of annotations in COCO's format: boxes and masks of instances, and segments of panoptic images.

A file is JSON with the lists images, annotations and categories. Of everything in it only what is needed is
kept, as numbers: entries are taken while the file is parsed. Classes count in the order of the categories'
ids.
"""

import dataclasses
import itertools
import json
import mmap
import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as runs

from mtl_jax.data import boxes, files
from mtl_jax.errors import UserError, reading

IMAGE = frozenset(("id", "file_name", "height", "width"))  # keys that tell an entry from others in its file
INSTANCE = frozenset(("id", "image_id", "category_id", "bbox"))
SEGMENTS = frozenset(("image_id", "file_name", "segments_info"))
SEGMENT = frozenset(("id", "category_id"))
AGAIN = "unpack the release again"


@dataclasses.dataclass(frozen=True)
class Images:
    """The images that a file of annotations is about, in the order of their ids.

    Attributes:
      path: the file.
      ids: i64[N].
      names: file names.
      sizes: i32[N,2], height and width.
    """

    path: Path
    ids: np.ndarray
    names: Sequence[str]
    sizes: np.ndarray

    def find(self, image_ids: Sequence[int]) -> np.ndarray:
        """i64[n]: indices of images; UserError names an id that is not among them."""
        wanted = np.array(image_ids, np.int64)
        index = np.searchsorted(self.ids, wanted)
        unknown = wanted[self.ids.take(index, mode="clip") != wanted]
        if len(unknown):
            raise UserError(
                f"{self.path} has annotations of image {unknown[0]}, which it does not list: {AGAIN}"
            )
        return index

    def read(self, index: int, photo: Path) -> np.ndarray:
        """uint8[h,w,3]; UserError if the photograph has not the size that the annotations are about."""
        image, size = files.read_image(photo), tuple(self.sizes[index].tolist())
        if image.shape[:2] != size:
            raise UserError(
                f"{photo} is {image.shape[0]}x{image.shape[1]} (height x width), but {self.path} is about one"
                f" of {size[0]}x{size[1]}: {AGAIN}"
            )
        return image


@dataclasses.dataclass(frozen=True)
class Instances:
    """What a file of instances says.

    Attributes:
      images: whose labels they are.
      rows: f32[M,6], the label "detection" of one image after the other.
      ends: i64[N], where the rows of each image end.
      masks: by image, (class, its pixels as run lengths) in the file's order.
    """

    images: Images
    rows: np.ndarray
    ends: np.ndarray
    masks: Mapping[int, Sequence[tuple[int, Any]]]

    def boxes(self, index: int) -> np.ndarray:
        """f32[n,1,6]: objects in the file's order."""
        start = self.ends[index - 1] if index else 0
        return self.rows[start : self.ends[index], None]

    def semseg(self, index: int) -> np.ndarray:
        """uint8[h,w,1]: the masks' classes, 0 where is none; where they overlap, the first has the pixel."""
        label = np.zeros(self.images.sizes[index], np.uint8)
        for class_id, mask in self.masks.get(index, ()):
            label[(label == 0) & (runs.decode(mask) > 0)] = class_id
        return label[..., None]

    def labelled(self, index: int) -> int:
        """How many pixels of `semseg` are not 0."""
        masks = [mask for _, mask in self.masks.get(index, ())]
        return int(runs.area(runs.merge(masks))) if masks else 0


@dataclasses.dataclass(frozen=True)
class Panoptic:
    """What a panoptic file says.

    Attributes:
      images: whose labels they are.
      names: file name of each PNG.
      segments: of each image, the numbers of its segments i64[k], and their classes uint8[k].
    """

    images: Images
    names: Sequence[str]
    segments: Sequence[tuple[np.ndarray, np.ndarray]]


def segment_classes(pixels: np.ndarray, numbers: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: the class of the segment that each pixel belongs to; 255 where it belongs to none.

    Args:
      pixels: uint8[h,w,3], a panoptic PNG.
      numbers: i64[k], of the segments.
      classes: [k], of the segments.
    """
    red, green, blue = np.moveaxis(pixels.astype(np.int64), -1, 0)
    number = red + 256 * green + 65536 * blue
    order = np.argsort(numbers)
    numbers, classes = np.append(numbers[order], 2**24), np.append(classes[order], 255)  # which no pixel has
    place = np.searchsorted(numbers, number)
    return np.where(numbers[place] == number, classes[place], 255).astype(np.uint8)[..., None]


def read_categories(path: Path) -> dict[int, str]:
    """{id: name} in the order of the ids, without reading the rest; UserError if they are not there."""
    with reading(path), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        found = re.search(rb'"categories"\s*:\s*', text)
        if not found:
            raise UserError(f"{path} has no categories: {AGAIN}")
        start = text[found.end() : found.end() + 2**20].decode(errors="replace")
        categories, _ = json.JSONDecoder().raw_decode(start)
        return {entry["id"]: entry["name"].strip() for entry in sorted(categories, key=lambda e: e["id"])}


def read_instances(path: Path, classes: Sequence[str], masks_of: Sequence[str] = ()) -> Instances:
    """The boxes in a file, and some masks.

    Args:
      path: the file.
      classes: names that the categories must have.
      masks_of: names of the categories whose masks are kept; they count from 1 in this order.

    Raises:
      UserError: the file cannot be read or is not as described.
    """
    class_of = _class_of(path, classes)
    image_ids, numbers, segmentations = array("q"), array("d"), []

    def take(entry: dict[str, Any]) -> dict[str, Any] | None:
        """Keeps an instance as numbers: as dicts, those of a large file would fill the memory."""
        if not entry.keys() >= INSTANCE:
            return entry
        try:
            class_id = class_of[entry["category_id"]]
            x, y, width, height = entry["bbox"]
            numbers.extend((y, x, y + height, x + width, class_id, entry.get("iscrowd", 0)))
            image_ids.append(entry["image_id"])
            if classes[class_id] in masks_of:
                segmentations.append((len(image_ids) - 1, entry["id"], _compact(entry["segmentation"])))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(path, "annotation", entry["id"], error) from error
        return None

    images = _parse(path, take, INSTANCE)
    index_of = images.find(image_ids)
    rows = np.array(numbers).reshape(-1, 6)
    masks = defaultdict(list)
    for place, annotation, segmentation in segmentations:
        index = int(index_of[place])
        try:
            mask = _run_lengths(segmentation, images.sizes[index].tolist())
        except Exception as error:  # of many kinds, as pycocotools meets whatever stands there
            raise _damaged(path, "annotation", annotation, error) from error
        masks[index].append((masks_of.index(classes[int(rows[place, 4])]) + 1, mask))

    order = np.argsort(index_of, kind="stable")
    index_of, rows = index_of[order], boxes.fitted(rows[order], images.sizes[index_of[order]])
    kept = boxes.has_area(rows)
    ends = np.cumsum(np.bincount(index_of[kept], minlength=len(images.ids)))
    return Instances(images, rows[kept].astype(np.float32), ends, dict(masks))


def read_panoptic(path: Path, classes: Sequence[str]) -> Panoptic:
    """The segments in a panoptic file.

    Raises:
      UserError: the file cannot be read or is not as described, or has other categories than `classes`.
    """
    class_of = _class_of(path, classes)
    segments = {}

    def take(entry: dict[str, Any]) -> dict[str, Any] | tuple[int, int] | None:
        try:
            if entry.keys() >= SEGMENTS:
                pairs = np.array(entry["segments_info"], np.int64).reshape(-1, 2)
                segments[int(entry["image_id"])] = entry["file_name"], pairs[:, 0], pairs[:, 1]
                return None
            return (entry["id"], class_of[entry["category_id"]]) if entry.keys() >= SEGMENT else entry
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            kind = "image_id" if "image_id" in entry else "id"
            raise _damaged(path, "segment" if kind == "id" else "image", entry[kind], error) from error

    images = _parse(path, take, SEGMENTS)
    images.find(list(segments))
    for image_id in images.ids.tolist():
        if image_id not in segments:
            raise UserError(f"{path} has no segments of image {image_id}: {AGAIN}")
    found = [segments[image_id] for image_id in images.ids.tolist()]
    return Panoptic(images, [name for name, *_ in found], [(ids, class_ids) for _, ids, class_ids in found])


def _class_of(path: Path, classes: Sequence[str]) -> dict[int, int]:
    """{id of the category: class}"""
    categories = read_categories(path)
    if tuple(categories.values()) != tuple(classes):
        raise UserError(f"{path} has other categories than the {len(classes)} of the release: {AGAIN}")
    return {category: k for k, category in enumerate(categories)}


def _damaged(path: Path, kind: str, name: Any, error: Exception) -> UserError:
    return UserError(f"{path}: {kind} {name} is damaged ({type(error).__name__}: {error}): {AGAIN}")


def _parse(path: Path, take: Callable[[dict[str, Any]], Any], keys: Set[str]) -> Images:
    """The images of a file, of which `take` gets every other object: it returns None for annotations.

    Args:
      path: the file.
      take: what it returns stands in the object's place.
      keys: that an annotation must have.
    """

    def take_any(entry: dict[str, Any]) -> Any:
        if entry.keys() >= IMAGE:
            return entry["id"], entry["file_name"], entry["height"], entry["width"]
        return take(entry)

    with reading(path), path.open(encoding="utf-8") as file:
        content = json.load(file, object_hook=take_any)
        for name, needed in (("images", IMAGE), ("annotations", keys)):
            if not isinstance(content, dict) or not isinstance(content.get(name), list):
                raise UserError(f"{path} has no list {name!r}: {AGAIN}")
            for entry in content[name]:
                if isinstance(entry, dict):
                    which, lacking = entry.get("id", entry.get("image_id")), min(needed - entry.keys())
                    raise UserError(f"{path}: entry {which} of {name} has no {lacking!r}: {AGAIN}")
        return _images(path, content["images"])


def _images(path: Path, entries: Sequence[tuple[int, str, int, int]]) -> Images:
    """Of entries (id, file name, height, width)."""
    if not entries:
        raise UserError(f"{path} lists no image: {AGAIN}")
    ids, names, heights, widths = zip(*sorted(entries), strict=True)
    for image_id, following in itertools.pairwise(ids):
        if image_id == following:
            raise UserError(f"{path} lists image {image_id} twice: {AGAIN}")
    return Images(path, np.array(ids, np.int64), names, np.array([heights, widths], np.int32).T)


def _compact(segmentation: Any) -> Any:
    """Polygons as arrays, which need less memory than lists; run lengths as they are."""
    if isinstance(segmentation, dict):
        return segmentation
    return [np.array(polygon, float) for polygon in segmentation]


def _run_lengths(segmentation: Any, size: list[int]) -> dict[str, Any]:
    """The pixels of a mask in pycocotools' form, from polygons, or run lengths as numbers or in letters."""
    if not isinstance(segmentation, dict):
        return runs.merge(runs.frPyObjects(segmentation, *size))
    if segmentation["size"] != size:
        raise ValueError(f"its mask has the size {segmentation['size']} instead of {size}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        mask = {"size": size, "counts": counts.encode()}
        if runs.encode(runs.decode(mask)) != mask:  # too few run lengths pass `decode`
            raise ValueError(f"its mask has not {size[0] * size[1]} pixels")
        return mask
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"its mask has {sum(counts)} pixels instead of {size[0] * size[1]}")
    return runs.frPyObjects(segmentation, *size)

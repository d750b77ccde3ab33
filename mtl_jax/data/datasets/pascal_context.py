"""PASCAL-Context for several tasks: photographs, with edges, classes, human parts, normals and saliency.

Mottaghi et al., "The Role of Context for Object Detection and Semantic Segmentation in the Wild", CVPR 2014
(every pixel of PASCAL VOC 2010 in 459 classes); Chen et al., "Detect What You Can: Detecting and Representing
Objects using Holistic Models and Body Parts", CVPR 2014 (parts). As Maninis, Radosavovic, Kokkinos,
"Attentive Single-Tasking of Multiple Tasks", CVPR 2019 (https://github.com/facebookresearch/astmt), put them
together: `PASCAL_MT.tgz`. Bruggemann et al., "Exploring Relational Context for Multi-Task Dense Prediction",
ICCV 2021, pass the same files on as `PASCALContext.tar.gz`, which InvPT and its followers use. Their server
data.vision.ee.ethz.ch is gone; the README of https://github.com/prismformore/Multi-Task-Transformer links to
a copy of the latter. The photographs are Flickr's and stay under its terms of use; for the labels no licence
is stated. `data_dir` is the folder PASCAL_MT or PASCALContext of the archive:

    ImageSets/Context/{train,val}.txt    4998 and 5105 ids, such as 2008_000002; one per line
    JPEGImages/<id>.jpg                  sizes differ; no side is above 500
    pascal-context/trainval/<id>.mat     `LabelMap`: uint16 [h,w], ids 1 to 459
    semseg/VOC12/<id>.png                with a palette; index 0 to 20, 255 void
    semseg/pascal-context/<id>.png       the same, of images that are not in VOC12
    human_parts/<id>.mat                 `anno`: a struct of objects (class_ind, mask, parts), those of parts
                                         (part_name, mask)
    normals_distill/<id>.png             8-bit RGB in the colours of NYUD, predicted by a network
    sal_distill/<id>.png                 8-bit grey, salient above one half, predicted by a network

Only the files of the tasks that are asked for must be there. A label map of another size than its image, but
of its proportions, is resized to it, to the nearest pixel (floor), but normals by bicubic interpolation.

Edges are drawn from LabelMap, differently in the splits: to train on, where the Laplacian (4 neighbours) of
the ids is not 0; to judge by (val), the borders of the regions by the rule of the boundary benchmark; both
thinned to one pixel. Human parts are in 6 groups, painted in the file's order; an image without any is
unknown as a whole, by the rule of that task. Normals are known in those classes alone that rooms have too:
what a network that was trained in rooms says of sky or grass means nothing.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.morphology import thin

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.datasets import folder, nyud, voc2012
from mtl_jax.errors import UserError, reading
from mtl_jax.tasks import saliency, semseg

LABEL_MAP = ("pascal-context/trainval/{}.mat",)
FILES = {  # of each task, its files; each is at the first of some places
    "edges": (LABEL_MAP,),
    "semseg": (("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png"),),
    "parts": (("human_parts/{}.mat",),),
    "normals": (("normals_distill/{}.png",), LABEL_MAP),
    "saliency": (("sal_distill/{}.png",),),
}

CONTEXT = range(460)  # ids of LabelMap
PERSON = 15  # class_ind
GROUPS = (  # as in tasks/parts.py, without the background
    "hair head lear rear lebrow rebrow leye reye mouth nose",
    "neck torso",
    "luarm ruarm",
    "llarm rlarm lhand rhand",
    "luleg ruleg",
    "llleg rlleg lfoot rfoot",
)
PART_IDS = {part: number for number, group in enumerate(GROUPS, 1) for part in group.split()}

# Ids of LabelMap whose names NYU Depth v2 has too, other than "unknown", and of tvmonitor.
INDOOR = np.array(
    """3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51 53 55 56 59 61 62 65 66 68 69
    72 73 78 83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135 141 142 143 146 150 154 157 158 159
    165 172 174 181 183 184 191 193 195 197 199 202 213 215 216 219 220 223 225 228 230 232 233 238 239 242
    243 246 250 251 252 255 260 261 263 269 272 273 275 281 283 284 285 286 287 288 290 291 292 293 295 304
    307 309 310 314 315 319 323 329 330 331 336 342 345 349 350 351 352 355 357 368 370 371 374 379 380 383
    384 397 401 403 405 407 408 411 412 413 414 417 419 421 423 427 429 430 432 440 441 442 443 444 446 454
    457""".split(),
    np.int32,
)

_LABELS = {
    "edges": {},
    "semseg": {"num_classes": len(voc2012.CLASSES), "class_names": voc2012.CLASSES},
    "parts": {},
    "normals": {},
    "saliency": {},
}
_SEMSEG = folder.Reader(semseg.build("semseg", **_LABELS["semseg"]), {"invalid": 255})
_SALIENCY = folder.Reader(saliency.build("saliency"), {"scale": 1 / 255})


def build(data_dir: str) -> Dataset:
    """The dataset in the folder `data_dir` (see the head of this file); splits train and val.

    Raises:
      UserError: a file of a split is missing; while loading, a file that cannot be read or is not as
        described.
    """
    root = Path(data_dir).expanduser()
    readers = {"semseg": _SEMSEG.read, "parts": _parts, "normals": _normals, "saliency": _SALIENCY.read}
    edges = {"train": laplacian_edges, "val": region_borders}

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in edges:
            raise UserError(f"pascal_context has no split {name!r}: choose one of {', '.join(edges)}")
        ids = files.read_names(root / "ImageSets/Context" / f"{name}.txt")
        photos = files.find([[root / "JPEGImages" / f"{i}.jpg"] for i in ids])
        paths = {
            task: [_find(root, ids, places) for places in FILES[task]] for task in tasks
        }  # by task: of each kind of file, all images'
        read = {**readers, "edges": lambda path: edges[name](_label_map(path))}

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {}
            for task in tasks:
                found = [kind[index] for kind in paths[task]]
                labels[task] = _fitted(read[task](*found), task, image.shape[:2], found[0])
            return {"image": image, "labels": labels}

        return Split(ids, files.image_sizes(photos), load)

    return Dataset(_LABELS, tuple(edges), split, published={"train": 4998, "val": 5105})


def _find(root: Path, ids: Sequence[str], places: Sequence[str]) -> list[Path]:
    return files.find([[root / place.format(name) for place in places] for name in ids])


def _label_map(path: Path) -> np.ndarray:
    """i32[h,w]: ids of the 459 classes."""
    stored = files.read_mat_map(path, "LabelMap")[..., 0]
    files.check_classes(stored, CONTEXT, path)
    return stored.astype(np.int32)


def laplacian_edges(label_map: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: 1 where the Laplacian of the ids [h,w] is not 0, thinned.

    The ids are mirrored about the outermost pixels.
    """
    curved = ndimage.laplace(label_map.astype(np.float64), mode="mirror") != 0
    return thin(curved)[..., None].astype(np.uint8)


def region_borders(label_map: np.ndarray) -> np.ndarray:
    """uint8[h,w,1]: 1 where regions of ids [h,w] meet, as the boundary benchmark has it, thinned.

    The benchmark numbers connected regions first. That changes nothing: of two pixels of one class that only
    touch at a corner, the upper one has a neighbour of another class anyway.
    """
    return thin(folder.borders(label_map[..., None], unknown=-1)[..., 0])[..., None].astype(np.uint8)


def _parts(path: Path) -> np.ndarray:
    """uint8[h,w,1]: 0 to 6; a single 0 if there is no part of a person in the image."""
    parts = _person_parts(path)
    shapes = {mask.shape for _, mask in parts} or {(1, 1)}
    if len(shapes) > 1:
        raise UserError(f"{path} has masks of several sizes, {shapes}: unpack the release again")
    label = np.zeros((*shapes.pop(), 1), np.uint8)
    for name, mask in parts:
        if name not in PART_IDS:
            raise UserError(f"{path} has a part {name!r}, which people have not: unpack the release again")
        label[mask] = PART_IDS[name]
    return label


def _person_parts(path: Path) -> list[tuple[str, np.ndarray]]:
    """(name, bool[h,w]) of every part, in the file's order."""
    with reading(path):
        objects = files.read_mat(path, "anno")[0, 0]["objects"].ravel()
        people = [thing for thing in objects if thing["class_ind"].item() == PERSON]
        parts = [part for person in people for part in person["parts"].ravel()]
        return [(part["part_name"].item(), part["mask"] > 0) for part in parts]


def _normals(path: Path, map_path: Path) -> np.ndarray:
    """f16[h,w,3]: unit vectors; 0 is unknown."""
    vectors = nyud.COLOURS.read(path)
    classes = _fitted(_label_map(map_path), "", vectors.shape[:2], map_path)
    return np.where(np.isin(classes, INDOOR)[..., None], vectors, 0)


def _fitted(label: np.ndarray, task: str, size: tuple[int, int], path: Path) -> np.ndarray:
    """The label, read from `path`, at the size of its image, of which it must have the proportions."""
    height, width = label.shape[:2]
    if (height, width) == size:
        return label
    if abs(height * size[1] - width * size[0]) > max(height, width, *size):
        files.check_shape(label, (*size, *label.shape[2:]), path)
    return _bicubic(label, size) if task == "normals" else _nearest(label, size)


def _nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H,W,...] from [h,w,...]: pixel i shows pixel floor(i h / H)."""
    rows, columns = (np.arange(n) * old // n for n, old in zip(size, label.shape[:2], strict=True))
    return label[rows[:, None], columns]


def _bicubic(vectors: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Unit vectors f16[H,W,3] from [h,w,3]; unknown where the nearest one is."""
    channels = [Image.fromarray(channel) for channel in np.moveaxis(vectors.astype(np.float32), 2, 0)]
    smooth = np.stack([c.resize(size[::-1], Image.Resampling.BICUBIC) for c in channels], axis=-1)
    length = np.linalg.norm(smooth, axis=-1, keepdims=True)
    known = _nearest(vectors, size).any(-1, keepdims=True)
    return np.divide(smooth, length, out=np.zeros_like(smooth), where=known & (length > 0)).astype(np.float16)

"""BSDS500, the Berkeley Segmentation Data Set: photographs whose boundaries 4 to 9 people drew.

Arbelaez, Maire, Fowlkes, Malik, "Contour detection and hierarchical image segmentation", TPAMI 2011.

Release of January 2013, `BSR_bsds500.tgz` from
https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/resources.html; if that does not answer,
https://github.com/BIDS/BSDS500 is a copy. No licence is stated; the authors make it public for research and
ask to be cited.

`data_dir` is the folder BSDS500 of that archive:

    data/images/{train,val,test}/<id>.jpg        200, 100, 200 photographs, 481x321 or 321x481
    data/groundTruth/{train,val,test}/<id>.mat   `groundTruth`: a 1xK cell, for each annotator a struct of
                                                 Segmentation (uint16 regions) and Boundaries (uint8 0/1)

The label "edges" holds each annotator's Boundaries in a channel of its own, and 255 in channels left over.
The split "trainval" is what the papers train on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError, reading

ANNOTATORS = 9  # the most that drew one image
FOLDERS = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}


def build(data_dir: str) -> Dataset:
    """The dataset below `data_dir` (see the head of this file); splits train, val, trainval and test.

    Raises:
      UserError: a folder or file of a split is missing; while loading, a file that cannot be read.
    """
    root = Path(data_dir).expanduser() / "data"

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in FOLDERS:
            raise UserError(f"bsds500 has no split {name!r}: choose one of {', '.join(FOLDERS)}")
        photos = [path for folder in FOLDERS[name] for path in _photos(root / "images" / folder)]
        drawings = [root / "groundTruth" / path.parent.name / f"{path.stem}.mat" for path in photos]
        if tasks:
            drawings = files.find([[path] for path in drawings])

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: _boundaries(drawings[index], image.shape[:2]) for task in tasks}
            return {"image": image, "labels": labels}

        return Split([path.stem for path in photos], files.image_sizes(photos), load)

    labels = {"edges": {"kind": "edges", "annotators": ANNOTATORS}}
    published = {"train": 200, "val": 100, "trainval": 300, "test": 200}
    return Dataset(labels, tuple(FOLDERS), split, published)


def _photos(folder: Path) -> list[Path]:
    photos = sorted(folder.glob("*.jpg"))
    if not photos:
        raise UserError(f"there is no photograph in {folder}: set data_dir to the release's folder BSDS500")
    return photos


def _boundaries(path: Path, size: tuple[int, int]) -> np.ndarray:
    """uint8[h,w,ANNOTATORS]: 0 or 1; 255 in channels without an annotator."""
    with reading(path):
        cells = files.read_mat(path, "groundTruth").ravel()
        drawn = np.stack([cell["Boundaries"][0, 0] for cell in cells], axis=-1)
    if drawn.shape[:2] != size or drawn.shape[2] > ANNOTATORS:
        raise UserError(
            f"{path} holds {drawn.shape[2]} maps of {drawn.shape[0]}x{drawn.shape[1]}, but its image is"
            f" {size[0]}x{size[1]} and has at most {ANNOTATORS} annotators: unpack the release again"
        )
    label = np.full((*size, ANNOTATORS), 255, np.uint8)
    label[..., : drawn.shape[2]] = drawn > 0
    return label

"""Objects365: photographs with boxes around things of 365 classes; its first release and its second.

Shao, Li, Zhang, Peng, Yu, Zhang, Li, Sun, "Objects365: A Large-scale, High-quality Dataset for Object
Detection", ICCV 2019. From https://www.objects365.org/download.html, after registration, for academic use;
the photographs are Flickr's, under its terms of use. Both are also at https://opendatalab.com/OpenDataLab.

    release   images in train, val
    first        608 606    30 000
    second     1 742 289    80 000   360 GB; the .json of train alone has 6 GB

Sizes differ. `data_dir` holds one release; which, the files of annotations tell. They lie in the folder
annotations, or beside it, or in train/ and val/:

    annotations/objects365_{train,val}.json         the first: file_name is obj365_train_000000000003.jpg
    {train,val}/<file_name>
    annotations/zhiyuan_objv2_{train,val}.json      the second: images/v1/patch8/objects365_v1_00420917.jpg
    {train,val}/<file_name>                         or {train,val}/patch8/objects365_v1_00420917.jpg
                                                    or <file_name> itself

These files are in COCO's format. Classes are in the order of the categories' ids, for train and val list them
in different orders; the two releases do not have the same. Images are in the order of their ids. Crowds are
hard. Boxes (x, y, width and height in pixels) are cut at the image's borders; those without an area are left
out. Objects that are listed twice stay so. A file is read before its first image, which takes memory of twice
its size and, for the largest, some minutes.

The second release lists three images that it does not have, and three whose size public readers found wrong:
they are left out (`skip`), so that 1 742 286 remain. Of so many images not each is looked for at the start;
one that is missing is named when its turn comes.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from mtl_jax.data import files
from mtl_jax.data.coco_format import read_categories, read_instances
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError

SPLITS = ("train", "val")
ANNOTATIONS = {1: "objects365_{}.json", 2: "zhiyuan_objv2_{}.json"}  # by release
CLASSES = 365
ABSENT = ("objects365_v1_00320532", "objects365_v1_00320534", "objects365_v2_00908726")
MEASURED_WRONG = ("objects365_v1_00509398", "objects365_v2_01118660", "objects365_v2_02024631")
PUBLISHED = {
    1: {"train": 608_606, "val": 30_000},
    2: {"train": 1_742_289 - len(MEASURED_WRONG), "val": 80_000},
}


def build(data_dir: str, skip: Sequence[str] = ABSENT + MEASURED_WRONG) -> Dataset:
    """The release in the folder `data_dir` (see the head of this file); splits train and val.

    Args:
      skip: names of images to leave out, without folder and ending.

    Raises:
      UserError: there are no annotations, or those of both releases, or they are not as described; while
        loading, a file that is missing, cannot be read or is not as described.
    """
    root = Path(data_dir).expanduser()
    release = _release(root)
    anywhere = [place for name in ("val", "train") for place in _places(root, release, name)]
    listed = files.find([anywhere])[0]
    classes = tuple(read_categories(listed).values())
    if len(classes) != CLASSES:
        raise UserError(
            f"{listed} has {len(classes)} categories instead of {CLASSES}: unpack the release again"
        )
    read = functools.cache(lambda path: read_instances(path, classes))

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in SPLITS:
            raise UserError(f"objects365 has no split {name!r}: choose one of {', '.join(SPLITS)}")
        found = read(files.find([_places(root, release, name)])[0])
        images = found.images

        def photo(index: int) -> Path:
            stated = Path(images.names[index])
            folder = root / name
            return files.find([[folder / stated, folder.joinpath(*stated.parts[-2:]), root / stated]])[0]

        def load(index: int) -> Example:
            image = images.read(index, photo(index))
            return {"image": image, "labels": {task: found.boxes(index) for task in tasks}}

        ids = [Path(stated).stem for stated in images.names]
        kept = [index for index, each in enumerate(ids) if each not in skip]
        if kept:
            photo(kept[0])  # if the folder is wrong, it is known at once
        return Split(ids, lambda: images.sizes, load).subset(kept)

    labels = {"detection": {"num_classes": CLASSES, "class_names": classes}}
    return Dataset(labels, SPLITS, split, published=PUBLISHED[release])


def _places(root: Path, release: int, split: str) -> list[Path]:
    """Where the annotations of a split may be."""
    name = ANNOTATIONS[release].format(split)
    return [root / "annotations" / name, root / name, root / split / name]


def _release(root: Path) -> int:
    """1 or 2; UserError if both are there, or neither."""
    there = [r for r in ANNOTATIONS if any(p.is_file() for name in SPLITS for p in _places(root, r, name))]
    if len(there) == 1:
        return there[0]
    names = " and ".join(ANNOTATIONS[release].format("val") for release in ANNOTATIONS)
    if there:
        raise UserError(f"{root} holds {names}, of both releases: give each a folder of its own")
    raise UserError(f"{root} holds neither {names} nor train: unpack one of the releases there")

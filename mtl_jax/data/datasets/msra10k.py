"""MSRA10K: what catches the eye in 10 000 photographs, to learn from; and PASCAL-S, to judge by.

Cheng, Mitra, Huang, Torr, Hu, "Global Contrast Based Salient Region Detection", TPAMI 2015
(https://mmcheng.net/msra10k/, `MSRA10K_Imgs_GT.zip`, 195 MB); Li, Hou, Koch, Rehg, Yuille, "The Secrets of
Salient Object Segmentation", CVPR 2014 (PASCAL-S, 850 photographs of PASCAL VOC 2010,
http://cbi.gatech.edu/salobj). Both are offered for research; no licence is stated.

The layout is that of `MSRA10K.tgz` and `PASCAL-S.tgz`, with which Maninis et al., CVPR 2019
(https://github.com/facebookresearch/astmt), trained and tested. Their server data.vision.ee.ethz.ch is gone;
the authors' archive of MSRA10K has the masks beside the photographs, in Imgs: move them to gt, and list the
names. `data_dir` is the folder MSRA10K, `pascal_s_dir` the folder PASCAL-S:

    data_dir/Imgs/<id>.jpg              longer side mostly 400
    data_dir/gt/<id>.png                8-bit grey: 255 salient, 0 not
    data_dir/gt_sets/trainval.txt       the ids
    pascal_s_dir/images/<id>.jpg
    pascal_s_dir/masks/<id>.png         8-bit grey: share of 12 viewers who chose the object, times 255
    pascal_s_dir/gt_sets/all.txt        the ids

The splits are "trainval", of MSRA10K, and "pascal_s". A grey is salient, not in between, if it lies above
`SALIENT_ABOVE`. For MSRA10K, where greys are but soft outlines, that is one half. For PASCAL-S it is 0.2, so
3 viewers of 12: the released evaluation of Maninis et al. cuts its truth at the first of its thresholds, and
their maxF (maxF1_image of the task) is under that rule. Others cut at one half: do not compare across rules.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtl_jax.data import files
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.errors import UserError

LAYOUT = {  # the list of ids, the folder of photographs, the folder of masks
    "trainval": ("gt_sets/trainval.txt", "Imgs", "gt"),
    "pascal_s": ("gt_sets/all.txt", "images", "masks"),
}
SALIENT_ABOVE = {"trainval": 0.5 * 255, "pascal_s": 0.2 * 255}


def build(data_dir: str, pascal_s_dir: str | None = None) -> Dataset:
    """The datasets in these folders (see the head of this file); splits trainval and pascal_s.

    Raises:
      UserError: a file of a split is missing, or pascal_s is asked for without `pascal_s_dir`; while
        loading, a file that cannot be read, or a mask of another size than its photograph.
    """
    folders = {"trainval": data_dir, "pascal_s": pascal_s_dir}

    def split(name: str, tasks: Sequence[str]) -> Split:
        if name not in LAYOUT:
            raise UserError(f"msra10k has no split {name!r}: choose one of {', '.join(LAYOUT)}")
        if folders[name] is None:
            raise UserError("msra10k: the split pascal_s needs the option pascal_s_dir, the folder PASCAL-S")
        root, (listed, images, gt) = Path(folders[name]).expanduser(), LAYOUT[name]
        ids = files.read_names(root / listed)
        photos = files.find([[root / images / f"{i}.jpg"] for i in ids])
        masks = files.find([[root / gt / f"{i}.png"] for i in ids]) if tasks else []

        def load(index: int) -> Example:
            image = files.read_image(photos[index])
            labels = {task: _salient(masks[index], SALIENT_ABOVE[name], image.shape) for task in tasks}
            return {"image": image, "labels": labels}

        return Split(ids, files.image_sizes(photos), load)

    return Dataset({"saliency": {}}, tuple(LAYOUT), split, published={"trainval": 10000, "pascal_s": 850})


def _salient(path: Path, above: float, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8[h,w,1]: 1 where the mask is brighter than `above`, else 0."""
    grey = files.read_image(path)  # masks of one bit and of three equal channels are read alike
    files.check_shape(grey, shape, path)
    if (grey != grey[..., :1]).any():
        raise UserError(f"{path} holds colours, but a mask is grey: unpack the release again")
    return (grey[..., :1] > above).astype(np.uint8)

"""Published weights of models/backbones/hrnet.py."""

import dataclasses
import re

import numpy as np

from mtl_jax.models.preprocessing import IMAGENET
from mtl_jax.weights.source import COUNTERS, TORCH_NORM, Source, Taken, plain, torch_conv, torch_dense

# Ours and theirs (lib/models/cls_hrnet.py of HRNet/HRNet-Image-Classification, whose names timm kept). What
# ours count from 1 theirs count from 0; `stage2` is captured as a word, for it has the same number there.
PLACES = {
    r"stage1_block(\d+)": "layer1.{0}",
    r"transition2_branch1": "transition1.0",
    r"transition(\d)_branch(\d)": "transition{0}.{1}.0",  # whose numbers differ by one, for both count from 1
    r"(stage\d)_module(\d+)/branch(\d)_block(\d+)": "{0}.{1}.branches.{2}.{3}",
    r"(stage\d)_module(\d+)/up(\d)to(\d)": "{0}.{1}.fuse_layers.{3}.{2}",
    r"(stage\d)_module(\d+)/down(\d)to(\d)_(\d)": "{0}.{1}.fuse_layers.{3}.{2}.{4}",
    r"top_widen(\d)": "incre_modules.{0}.0",
    r"top_down(\d)": "downsamp_modules.{0}",
    r"top_last": "final_layer",
}


def _place(ours: str) -> str:
    for pattern, theirs in PLACES.items():
        if found := re.fullmatch(pattern, ours):
            return theirs.format(*(str(int(n) - 1) if n.isdigit() else n for n in found.groups()))
    raise KeyError(ours)


def _unit(ours: str) -> tuple[str, str]:
    """Their names of a unit's convolution and norm."""
    block, _, name = ours.rpartition("/")
    if found := re.fullmatch(r"(?:stem|conv)(\d)", name):
        inside = f"{_place(block)}." if block else ""
        return f"{inside}conv{found[1]}", f"{inside}bn{found[1]}"
    place = f"{_place(block)}.downsample" if name == "shortcut" else _place(ours)
    return f"{place}.0", f"{place}.1"


def _released(path: str, encoder) -> Taken | None:
    """conv1, bn1, layer1.0.conv1, stage2.0.branches.0.0.conv1, stage2.0.fuse_layers.0.1.0, classifier."""
    del encoder
    if path.startswith("head/"):
        return torch_dense("classifier.weight") if path == "head/kernel" else plain("classifier.bias")
    unit, kind, leaf = path.rsplit("/", 2)
    conv, norm = _unit(unit)
    if kind == "norm":
        return plain(f"{norm}.{TORCH_NORM[leaf]}")
    return torch_conv(f"{conv}.weight") if leaf == "kernel" else plain(f"{conv}.bias")


def _unbiased(path: str, encoder) -> Taken | None:
    """The convolutions of the top have no bias there: theirs is 0."""
    if path.endswith("/conv/bias"):
        return Taken((), np.zeros)
    return _released(path, encoder)


TOP = r"(incre_modules|downsamp_modules|final_layer|classifier)\..*"
# What reads the maps in networks for segmentation, with or without object-contextual representations.
SEGMENTATION = r"(last_layer|aux_head|cls_head|conv3x3_ocr|ocr_gather_head|ocr_distri_head)\..*"

_TIMM = Source(_released, IMAGENET, unused=(TOP, COUNTERS))

SOURCES = {
    "timm": _TIMM,
    "timm_aug": dataclasses.replace(_TIMM, preprocessing=dataclasses.replace(IMAGENET, crop=0.95)),
    "timm_ssld": dataclasses.replace(
        _TIMM, take=_unbiased, preprocessing=dataclasses.replace(IMAGENET, size=288, crop=1.0)
    ),
    "official": Source(
        _released,
        IMAGENET,
        prefixes=("model.",),  # of segmentation networks, saved together with their loss
        unused=(TOP, SEGMENTATION, COUNTERS),
        inside=("state_dict",),
    ),
}

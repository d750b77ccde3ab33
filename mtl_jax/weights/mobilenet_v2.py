"""Published weights of models/backbones/mobilenet_v2.py."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

from mtl_jax.models.backbones.mobilenet_v2 import blocks_of
from mtl_jax.models.preprocessing import IMAGENET
from mtl_jax.weights.source import COUNTERS, TORCH_NORM, Source, Taken, plain, torch_conv, torch_dense

GATE = {"squeeze": "0", "excite": "2"}  # places in a sequence; between them stands the activation


def _torch(names: Callable[[str, Any], tuple[str, str]], head: str, gates: bool = False) -> Callable:
    """How a release of torch is taken.

    Args:
      names: (our unit such as "stage1_block1/conv2", encoder) -> their convolution and their norm.
      head: their classifier.
      gates: it has squeeze-and-excitation gates; those of a network start anew if the release has none.
    """

    def take(path: str, encoder: Any) -> Taken | None:
        *units, kind, leaf = path.split("/")
        if kind == "head":
            return _dense(head, leaf)
        if kind in GATE:
            block = _feature(units[0], encoder)
            return _dense(f"features.{block}.se.fc.{GATE[kind]}", leaf) if gates else None
        conv, norm = names("/".join(units), encoder)
        return torch_conv(f"{conv}.weight") if kind == "conv" else plain(f"{norm}.{TORCH_NORM[leaf]}")

    return take


def _dense(name: str, leaf: str) -> Taken:
    return torch_dense(f"{name}.weight") if leaf == "kernel" else plain(f"{name}.bias")


def _block(name: str) -> tuple[int, int]:
    """Stage and block of "stage2_block1", both from 0."""
    stage, block = re.fullmatch(r"stage(\d)_block(\d+)", name).groups()
    return int(stage) - 1, int(block) - 1


def _feature(name: str, encoder: Any) -> int:
    """Place in torchvision's sequence: the stem, all blocks one after another, the top."""
    counts = blocks_of(encoder.depth)
    if name in ("stem", "top"):
        return 0 if name == "stem" else 1 + sum(counts)
    stage, block = _block(name)
    return 1 + sum(counts[:stage]) + block


def _torchvision(unit: str, encoder: Any) -> tuple[str, str]:
    """features.2.conv.0.0 and .0.1, .1.0 and .1.1, .2 and .3: the linear unit is no sequence of its own."""
    name, _, conv = unit.partition("/")
    feature = f"features.{_feature(name, encoder)}"
    if not conv:
        return f"{feature}.0", f"{feature}.1"
    place = _place(name, conv)
    if conv == "conv3":
        return f"{feature}.conv.{place}", f"{feature}.conv.{place + 1}"
    return f"{feature}.conv.{place}.0", f"{feature}.conv.{place}.1"


def _astmt(unit: str, encoder: Any) -> tuple[str, str]:
    """features.2.conv.0 and .1, .3 and .4, .6 and .7: one sequence of convolution, norm, activation."""
    name, _, conv = unit.partition("/")
    feature = f"features.{_feature(name, encoder)}"
    if not conv:
        return f"{feature}.0", f"{feature}.1"
    place = 3 * _place(name, conv)
    return f"{feature}.conv.{place}", f"{feature}.conv.{place + 1}"


def _place(name: str, conv: str) -> int:
    """Of a convolution in its block: those of the first stage have no expansion and begin with conv2."""
    return int(conv.removeprefix("conv")) - (2 if _block(name)[0] == 0 else 1)


def _timm(unit: str, encoder: Any) -> tuple[str, str]:
    """blocks.1.0.conv_pw and bn1, conv_dw and bn2, conv_pwl and bn3; no expansion: conv_dw, conv_pw."""
    del encoder
    name, _, conv = unit.partition("/")
    if not conv:
        return ("conv_stem", "bn1") if name == "stem" else ("conv_head", "bn2")
    stage, block = _block(name)
    convs = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
    place, where = _place(name, conv), f"blocks.{stage}.{block}"
    return f"{where}.{convs[place]}", f"{where}.bn{place + 1}"


# What only the classifier needs is left where the network has none.
TOP = (r"features\.18\..*", r"classifier\.1\..*")

_torchvisions = Source(_torch(_torchvision, "classifier.1"), IMAGENET, unused=(*TOP, COUNTERS))

SOURCES = {
    "torchvision": _torchvisions,
    "torchvision_v2": dataclasses.replace(
        _torchvisions, preprocessing=dataclasses.replace(IMAGENET, crop=224 / 232)
    ),
    "timm": Source(
        _torch(_timm, "classifier"), IMAGENET, unused=(r"(conv_head|bn2|classifier)\..*", COUNTERS)
    ),
    # Both networks of facebookresearch/astmt, mobilenet_v2_1280 and, with gates, se_mobilenet_v2_1280; the
    # images are those of its experiments/classification/imagenet/train.py.
    "astmt": Source(
        _torch(_astmt, "classifier.1", gates=True),
        IMAGENET,
        prefixes=("module.",),
        unused=(*TOP, COUNTERS),
        inside=("model_state",),
    ),
}

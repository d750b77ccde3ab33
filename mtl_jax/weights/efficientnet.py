"""Published weights of models/backbones/efficientnet.py.

A form is named after its publisher and its member: "timm_b0". The members of a publication differ in the
size of the images that their classifier was made for, some publications in padding and epsilon too, which
the network must share.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from mtl_jax.errors import UserError
from mtl_jax.models.backbones.efficientnet import STAGES
from mtl_jax.models.preprocessing import IMAGENET, SYMMETRIC, Preprocessing
from mtl_jax.weights.source import COUNTERS, TORCH_NORM, Source, Taken, plain, torch_conv, torch_dense


@dataclasses.dataclass(frozen=True)
class Names:
    """What a publication calls the layers.

    Attributes:
      outside: name of each layer outside the blocks.
      inside: name of each layer of a block, below the block's.
      first: the same for blocks without expansion.
      block: (stage from 0, block from 0, blocks of the stages before) -> name of the block.
    """

    outside: Mapping[str, str]
    inside: Mapping[str, str]
    first: Mapping[str, str]
    block: Callable[[int, int, int], str]

    def module(self, path: str, encoder) -> str:
        """Their module of our layer: "stage1_block1/conv2/norm", "stem/conv", "head"."""
        found = re.fullmatch(r"stage(\d)_block(\d+)/(.*)", path)
        if not found:
            return self.outside[path]
        stage, block = int(found[1]) - 1, int(found[2]) - 1
        layers = self.inside if STAGES[stage][0] > 1 else self.first
        return f"{self.block(stage, block, sum(encoder.blocks[:stage]))}.{layers[found[3]]}"

    def taken(self, path: str, encoder) -> Taken:
        layer, _, leaf = path.rpartition("/")
        module = self.module(layer, encoder)
        if layer.endswith("/norm"):
            return plain(f"{module}.{TORCH_NORM[leaf]}")
        if leaf == "bias":
            return plain(f"{module}.bias")
        return (torch_conv if layer.endswith("/conv") else torch_dense)(f"{module}.weight")


TIMM = Names(
    {
        "stem/conv": "conv_stem",
        "stem/norm": "bn1",
        "top/conv": "conv_head",
        "top/norm": "bn2",
        "head": "classifier",
    },
    {
        "conv1/conv": "conv_pw",
        "conv1/norm": "bn1",
        "conv2/conv": "conv_dw",
        "conv2/norm": "bn2",
        "conv2/se/squeeze": "se.conv_reduce",
        "conv2/se/excite": "se.conv_expand",
        "conv3/conv": "conv_pwl",
        "conv3/norm": "bn3",
    },
    {
        "conv2/conv": "conv_dw",
        "conv2/norm": "bn1",
        "conv2/se/squeeze": "se.conv_reduce",
        "conv2/se/excite": "se.conv_expand",
        "conv3/conv": "conv_pw",
        "conv3/norm": "bn2",
    },
    lambda stage, block, before: f"blocks.{stage}.{block}",
)

TORCHVISION = Names(
    {
        "stem/conv": "features.0.0",
        "stem/norm": "features.0.1",
        "top/conv": "features.8.0",
        "top/norm": "features.8.1",
        "head": "classifier.1",
    },
    {
        "conv1/conv": "0.0",
        "conv1/norm": "0.1",
        "conv2/conv": "1.0",
        "conv2/norm": "1.1",
        "conv2/se/squeeze": "2.fc1",
        "conv2/se/excite": "2.fc2",
        "conv3/conv": "3.0",
        "conv3/norm": "3.1",
    },
    {
        "conv2/conv": "0.0",
        "conv2/norm": "0.1",
        "conv2/se/squeeze": "1.fc1",
        "conv2/se/excite": "1.fc2",
        "conv3/conv": "2.0",
        "conv3/norm": "2.1",
    },
    lambda stage, block, before: f"features.{stage + 1}.{block}.block",
)

_PACKAGE_BLOCK = {
    "conv1/conv": "_expand_conv",
    "conv1/norm": "_bn0",
    "conv2/conv": "_depthwise_conv",
    "conv2/norm": "_bn1",
    "conv2/se/squeeze": "_se_reduce",
    "conv2/se/excite": "_se_expand",
    "conv3/conv": "_project_conv",
    "conv3/norm": "_bn2",
}
PACKAGE = Names(  # of efficientnet_pytorch and, from it, efficientnet_lite_pytorch
    {
        "stem/conv": "_conv_stem",
        "stem/norm": "_bn0",
        "top/conv": "_conv_head",
        "top/norm": "_bn1",
        "head": "_fc",
    },
    _PACKAGE_BLOCK,
    _PACKAGE_BLOCK,
    lambda stage, block, before: f"_blocks.{before + block}",
)


def _source(names: Names, padding: str, epsilon: float, preprocessing: Preprocessing) -> Source:
    """Weights that were made with this padding and epsilon: with others they would be worse, unnoticed."""

    def take(path: str, encoder) -> Taken:
        for key, needed in {"padding": padding, "epsilon": epsilon}.items():
            if getattr(encoder, key) != needed:
                raise UserError(
                    f"config.model.encoder.{key} is {getattr(encoder, key)!r}, but these weights were made"
                    f" with {needed!r}: set it so"
                )
        return names.taken(path, encoder)

    unused = tuple(rf"{re.escape(names.outside[layer])}\..*" for layer in ("top/conv", "top/norm", "head"))
    return Source(take, preprocessing, unused=(*unused, COUNTERS))


def _sources(
    publisher: str,
    names: Names,
    padding: str,
    epsilon: float,
    preprocessing: Preprocessing,
    members: Mapping[str, tuple[int, float]],
) -> dict[str, Source]:
    """One for each member: its image size, and the share of the shorter side that such an image covers."""
    return {
        f"{publisher}_{member}": _source(
            names, padding, epsilon, dataclasses.replace(preprocessing, size=size, crop=crop)
        )
        for member, (size, crop) in members.items()
    }


def _cropped(sizes: Mapping[str, int]) -> dict[str, tuple[int, float]]:
    """As Google's evaluation cuts out images: 32 pixels of the shorter side are left over."""
    return {member: (size, size / (size + 32)) for member, size in sizes.items()}


PAPER = _cropped({"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600})
LITE = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

SOURCES = {
    # timm's own training.
    **_sources(
        "timm",
        TIMM,
        "symmetric",
        1e-5,
        IMAGENET,
        {
            "b0": (224, 0.875),
            "b1": (224, 0.875),
            "b2": (256, 0.875),
            "b3": (288, 0.875),
            "b4": (320, 0.875),
            "b5": (448, 1.0),
            "lite0": (224, 0.875),
        },
    ),
    # timm's second training, tag ra4.
    **_sources("timm_ra4", TIMM, "symmetric", 1e-5, SYMMETRIC, {"b0": (224, 0.9), "b1": (240, 0.9)}),
    # Google's weights as timm converted them: all tags of tf_efficientnet_* but AdvProp's, which is `ap`.
    **_sources("timm_tf", TIMM, "same", 1e-3, IMAGENET, PAPER | _cropped({"l2": 800, "l2_475": 475})),
    **_sources("timm_tf_ap", TIMM, "same", 1e-3, SYMMETRIC, PAPER),
    **_sources(
        "timm_tf",
        TIMM,
        "same",
        1e-3,
        SYMMETRIC,
        _cropped({"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 300, "lite4": 380}),
    ),
    # Google's weights as these packages converted them. They pad any image as one of their own size.
    **_sources("efficientnet_pytorch", PACKAGE, "same", 1e-3, IMAGENET, PAPER),
    **_sources("efficientnet_pytorch_adv", PACKAGE, "same", 1e-3, SYMMETRIC, PAPER),
    **_sources(
        "efficientnet_lite_pytorch",
        PACKAGE,
        "same",
        1e-3,
        LITE,
        _cropped({"lite0": 224, "lite1": 240, "lite2": 260, "lite3": 280, "lite4": 300}),
    ),
    # torchvision took timm's b0 to b4 and efficientnet_pytorch's b5 to b7, and pads all of them alike.
    **_sources(
        "torchvision",
        TORCHVISION,
        "symmetric",
        1e-5,
        IMAGENET,
        {
            "b0": (224, 224 / 256),
            "b1": (240, 240 / 256),
            "b2": (288, 1.0),
            "b3": (300, 300 / 320),
            "b4": (380, 380 / 384),
        },
    ),
    **_sources(
        "torchvision",
        TORCHVISION,
        "symmetric",
        1e-3,
        IMAGENET,
        {"b5": (456, 1.0), "b6": (528, 1.0), "b7": (600, 1.0)},
    ),
}

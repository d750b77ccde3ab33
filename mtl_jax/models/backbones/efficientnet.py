"""EfficientNets (Tan & Le, ICML 2019), with dilation for dense prediction, and EfficientNet-Lite.

A small network, B0, found by search, and how to grow it: width and depth are multiplied, both in a fixed
proportion to the size of its images. L2 is the largest (Xie et al., CVPR 2020). The Lite ones (Google,
2020, released in `tensorflow/tpu`), for devices that compute in integers, have ReLU6 for swish, no gates,
and a stem, last stage and top that do not grow.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.backbones.mobilenet_v2 import LEVELS, scaled
from mtl_jax.models.conv import Conv
from mtl_jax.models.modulation import Modulation, SqueezeExcite
from mtl_jax.models.norm import Norm

STEM, TOP = 32, 1280
STAGES = (  # expansion, size of the depthwise kernel, channels, blocks, stride: table 1 of the paper
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
REDUCTION = 4  # of the gates: channels of the block's input over those of the hidden layer
PADDINGS = ("symmetric", "same")
NORMS = ("batch", "group")
OUTPUT_STRIDES = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A member of the family: factors of B0's channels and of its blocks per stage."""

    width: float
    depth: float
    lite: bool = False


VARIANTS = {
    "b0": Variant(1.0, 1.0),
    "b1": Variant(1.0, 1.1),
    "b2": Variant(1.1, 1.2),
    "b3": Variant(1.2, 1.4),
    "b4": Variant(1.4, 1.8),
    "b5": Variant(1.6, 2.2),
    "b6": Variant(1.8, 2.6),
    "b7": Variant(2.0, 3.1),
    "l2": Variant(4.3, 5.3),
    "lite0": Variant(1.0, 1.0, lite=True),
    "lite1": Variant(1.0, 1.1, lite=True),
    "lite2": Variant(1.1, 1.2, lite=True),
    "lite3": Variant(1.2, 1.4, lite=True),
    "lite4": Variant(1.4, 1.8, lite=True),
}


class Unit(nn.Module):
    """Convolution padded in one of two ways, normalisation, activation and gate.

    Attributes:
      size, stride, dilation, groups: of the convolution.
      padding, epsilon: see EfficientNet.
      zero: start with normalisation scale 0.
      active: with activation: swish, or ReLU6 if `lite`.
      gate: channels over those of the gate's hidden layer; 0 for no gate.
    """

    features: int
    size: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    norm: str = "batch"
    epsilon: float = 1e-5
    padding: str = "symmetric"
    zero: bool = False
    active: bool = True
    lite: bool = False
    gate: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), features]."""
        activation = nn.relu6 if self.lite else nn.swish
        # At stride 2, TensorFlow's "SAME" leaves out the first row (column) of padding where there is an
        # even number of them: its first place is centred on the second, as is our second place if one more
        # row comes first. With odd numbers, and at stride 1, both paddings are the same.
        rows, columns = (
            int(self.padding == "same" and self.stride == 2 and n % 2 == 0) for n in x.shape[1:3]
        )
        x = jnp.pad(x, ((0, 0), (rows, 0), (columns, 0), (0, 0))) if rows or columns else x
        conv = Conv(
            self.features, self.size, self.stride, self.dilation, self.groups, dtype=self.dtype, name="conv"
        )
        y = conv(x)[:, rows:, columns:]
        y = Norm(self.norm, self.dtype, self.zero, self.epsilon, name="norm")(y, train)
        y = activation(y) if self.active else y
        return SqueezeExcite(self.gate, activation, self.dtype, name="se")(y) if self.gate else y


class MBConv(nn.Module):
    """1x1 expansion, gated depthwise and linear 1x1 convolutions, beside a shortcut where shapes agree.

    Attributes:
      features: channels of the output.
      expansion: channels between, over those of the input; 1 leaves the first convolution out.
      size, stride, dilation: of the depthwise convolution.
      drop: probability that, in training, an example takes the shortcut alone.
      lite, norm, epsilon, padding: see EfficientNet.
    """

    features: int
    expansion: int = 6
    size: int = 3
    stride: int = 1
    dilation: int = 1
    drop: float = 0.0
    lite: bool = False
    norm: str = "batch"
    epsilon: float = 1e-5
    padding: str = "symmetric"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), features]."""
        common = {"norm": self.norm, "epsilon": self.epsilon, "lite": self.lite, "dtype": self.dtype}
        hidden = self.expansion * x.shape[-1]
        shortcut = self.stride == 1 and x.shape[-1] == self.features
        y = x
        if self.expansion > 1:
            y = Unit(hidden, name="conv1", **common)(y, train)
        y = Unit(
            hidden,
            self.size,
            self.stride,
            self.dilation,
            groups=hidden,
            padding=self.padding,
            gate=0 if self.lite else REDUCTION * self.expansion,
            name="conv2",
            **common,
        )(y, train)
        y = Unit(self.features, zero=shortcut, active=False, name="conv3", **common)(y, train)
        if not shortcut:
            return y
        return x + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3))(y, deterministic=not train)


class EfficientNet(nn.Module):
    """The encoder: stem and seven stages of mobile inverted bottlenecks.

    A stage whose stride would exceed `output_stride` keeps its input's resolution instead, and every
    later depthwise convolution is dilated by the stride that was dropped: its outputs contain those of
    the strided network, but that gates average more places.

    Attributes:
      width: multiplies all numbers of channels, rounded to multiples of 8; of a lite one, not those of
        the stem and the top.
      depth: multiplies the blocks of each stage, rounded up; of a lite one, not those of the first and
        the last stage.
      lite: ReLU6 and no gates.
      norm: "batch" or "group".
      output_stride: 8, 16 or 32; input size over size of the last map.
      padding: of strided convolutions: "symmetric", or TensorFlow's "same", which has less of it above
        and left than below and right. Released weights need the one that they were trained with.
      epsilon: of the norms; TensorFlow's weights need 1e-3.
      drop: probability of the last block to be left out of an example in training (stochastic depth, Huang
        et al., ECCV 2016), which rises linearly from the first block's 0; it needs the rng "dropout".
      top: a last map f[B,1,1,C] for a classifier: 1x1 convolution to 1280 * width channels, and average.
      remat: compute a block's inside again in the backward pass, instead of keeping it.
    """

    width: float = 1.0
    depth: float = 1.0
    lite: bool = False
    norm: str = "batch"
    output_stride: int = 16
    padding: str = "symmetric"
    epsilon: float = 1e-5
    drop: float = 0.0
    top: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    modulation = Modulation()

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        ends = (0, len(STAGES) - 1) if self.lite else ()
        return tuple(
            blocks if stage in ends else math.ceil(self.depth * blocks)
            for stage, (_, _, _, blocks, _) in enumerate(STAGES)
        )

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last convolution's parameters."""
        return f"stage{len(STAGES)}_block{self.blocks[-1]}", "conv3", "conv"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | None = None) -> list[jax.Array]:
        """Normalised image f32[B,H,W,3] -> maps of strides 4, 8, 16, 32 at most (and the top's).

        With width 1 they have 24, 40, 112 and 320 channels.
        """
        del task  # tasks share all of it
        common = {"norm": self.norm, "epsilon": self.epsilon, "lite": self.lite, "dtype": self.dtype}
        ends = 1.0 if self.lite else self.width
        block_type = nn.remat(MBConv, static_argnums=(2,)) if self.remat else MBConv
        x = Unit(scaled(STEM, ends), 3, 2, padding=self.padding, name="stem", **common)(x, train)
        outputs, done, reached, dilation = [], 0, 2, 1
        for stage, (expansion, size, channels, _, wanted) in enumerate(STAGES):
            stride = wanted if reached * wanted <= self.output_stride else 1
            reached, before = reached * stride, dilation
            dilation *= wanted // stride
            for block in range(self.blocks[stage]):
                x = block_type(
                    scaled(channels, self.width),
                    expansion,
                    size,
                    stride if block == 0 else 1,
                    before if block == 0 else dilation,
                    self.drop * done / sum(self.blocks),
                    padding=self.padding,
                    name=f"stage{stage + 1}_block{block + 1}",
                    **common,
                )(x, train)
                done += 1
            outputs.append(x)
        maps = [outputs[stage] for stage in LEVELS]
        if self.top:
            x = Unit(scaled(TOP, ends), name="top", **common)(x, train)
            maps.append(jnp.mean(x, (1, 2), keepdims=True))
        return maps


def build(
    dtype: Any,
    variant: str = "b0",
    width: float = 1.0,
    depth: float = 1.0,
    norm: str = "batch",
    output_stride: int = 16,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    drop: float = 0.2,
    top: bool = False,
    remat: bool = False,
) -> EfficientNet:
    """A member of the family.

    Args:
      dtype: of the computation.
      variant: a key of VARIANTS.
      width, depth: multiply those of the variant.
      norm, output_stride, padding, epsilon, drop, top, remat: see EfficientNet.

    Raises:
      UserError: an option that is none of these.
    """
    choices = {
        "variant": (variant, VARIANTS),
        "norm": (norm, NORMS),
        "output_stride": (output_stride, OUTPUT_STRIDES),
        "padding": (padding, PADDINGS),
    }
    for key, (value, known) in choices.items():
        one_of(f"model.encoder.{key}", value, known)
    for key, value in {"width": width, "depth": depth, "epsilon": epsilon}.items():
        if value <= 0:
            raise UserError(f"config.model.encoder.{key} is {value}: give a positive number")
    if not 0 <= drop < 1:
        raise UserError(f"config.model.encoder.drop is {drop}: give a probability below 1")
    member = VARIANTS[variant]
    return EfficientNet(
        width * member.width,
        depth * member.depth,
        member.lite,
        norm,
        output_stride,
        padding,
        epsilon,
        drop,
        top,
        remat,
        dtype,
    )

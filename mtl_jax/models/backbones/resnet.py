"""Residual networks of bottleneck blocks (He et al., CVPR 2016), with dilation for dense prediction.

The variants are those that weights are published for: the stride in a block's 1x1 or 3x3, the deep stem and
the averaging shortcut of ResNet-C and -D (He et al., CVPR 2019, section 4), grouped 3x3s (ResNeXt; Xie et
al., CVPR 2017), gates (SE-ResNet, with `modulation`) and group normalisation.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OUTPUT_STRIDES = (8, 16, 32)
NORMS = ("batch", "group")
EXPANSION = 4
GROUP_WIDTH = 64  # of a network without groups
UNMODULATED = Modulation()


def base_channels(width: float) -> int:
    """Channels of the stem: 64 * width to the nearest multiple of 8; stages have 4, 8, 16, 32 times it."""
    return max(8, 8 * round(64 * width / 8))


def max_pool(x: jax.Array) -> jax.Array:
    """Largest of 3x3, stride 2: f[B,H,W,C] -> f[B, ceil(H / 2), ceil(W / 2), C].

    Six slices instead of a reduced window: its gradient is 4 to 6 times faster on CPU.
    """
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        stop = x.shape[axis] - 1
        slices = [jax.lax.slice_in_dim(padded, i, stop + i + 1, stride=2, axis=axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, slices)
    return x


def average_pool(x: jax.Array, stride: int) -> jax.Array:
    """Mean of 2x2, beginning at each place: f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), C].

    With stride 2, the mean beyond an odd border is of the pixels that exist; with stride 1, zeros count, as
    the networks were published (timm).
    """
    padding = [(0, 1 if stride == 1 else n % 2) for n in x.shape[1:3]]
    return nn.avg_pool(x, (2, 2), (stride, stride), padding, count_include_pad=stride == 1)


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 convolutions beside a shortcut, which is a 1x1 convolution where shapes differ.

    Attributes:
      features: a quarter of the output's channels; those of the 3x3 convolution, if it has no groups.
      dilation: of the 3x3 convolution.
      stride_in_1x1: the first convolution takes the stride, instead of the 3x3.
      modulation: the gate stands before the addition, the adapter beside the 3x3.
      average_shortcut: the mean of 2x2 takes the shortcut's stride, before its convolution.
      groups: of the 3x3 convolution.
      group_width: channels of each of its groups where `features` is 64, and in proportion elsewhere.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    stride_in_1x1: bool = False
    norm: str = "batch"
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32
    average_shortcut: bool = False
    groups: int = 1
    group_width: int = GROUP_WIDTH

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | jax.Array | None = None) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), 4 * features]."""
        unit = functools.partial(ConvNorm, norm=self.norm, modulation=self.modulation, dtype=self.dtype)
        width = self.groups * (self.features * self.group_width // GROUP_WIDTH)
        inner = functools.partial(unit, width, activation=nn.relu)
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        outputs = EXPANSION * self.features
        y = inner(1, first, name="conv1")(x, train, task)
        y = inner(3, second, self.dilation, self.groups, adapter=True, name="conv2")(y, train, task)
        y = unit(outputs, 1, zero=True, reduction=16, name="conv3")(y, train, task)
        if self.stride > 1 or x.shape[-1] != outputs:
            stride = self.stride
            if self.average_shortcut:
                x, stride = average_pool(x, stride), 1
            x = unit(outputs, 1, stride, name="shortcut")(x, train, task)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The encoder: stem, max pooling, four stages.

    A stage whose stride would exceed `output_stride` keeps its input's resolution instead, and every
    later convolution is dilated by the stride that was dropped: its outputs contain those of the
    strided network. With the stride in the 3x3, the first 3x3 of the stage thus keeps the dilation
    of the stage before (as released DeepLab weights expect); with `stride_in_1x1` all of the stage
    is dilated (Maninis et al., CVPR 2019). The mean of an averaging shortcut is never dilated: with one, the
    last stage of stride 8 holds other values than the strided network's (as in timm).

    Attributes:
      depth: a key of BLOCKS.
      width: multiplies all numbers of channels; see `base_channels`.
      norm: "batch" or "group".
      output_stride: 8, 16 or 32; input size over size of the last map.
      stride_in_1x1: where a block has its stride: in the first 1x1 (He et al.), or in the 3x3 (as
        most released weights).
      modulation: of every block; of it, the stem has the tables (`film`) alone.
      deep_stem: three 3x3 convolutions, the first two of half the channels, instead of the 7x7.
      average_shortcut: shortcuts between stages average 2x2 before their convolution.
      groups, group_width: of the 3x3 convolutions; a ResNeXt 32x4d has 32 groups of width 4.
      top: a fifth map, f[B,1,1,C]: the mean of the last one, which the published classifiers read.
      remat: compute the inside of each block again in the backward pass, instead of keeping it.
    """

    depth: int = 50
    width: float = 1.0
    norm: str = "batch"
    output_stride: int = 16
    stride_in_1x1: bool = False
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32
    deep_stem: bool = False
    average_shortcut: bool = False
    groups: int = 1
    group_width: int = GROUP_WIDTH
    top: bool = False
    remat: bool = False

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last convolution's parameters."""
        return f"stage4_block{BLOCKS[self.depth][-1]}", "conv3", "conv"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | jax.Array | None = None) -> list[jax.Array]:
        """Normalised image f32[B,H,W,3] -> maps of the four stages, strides 4, 8, 16, 32 at most."""
        channels = base_channels(self.width)
        # Of (self, x, train, task), the last two are no arrays to differentiate.
        make_block = nn.remat(Bottleneck, static_argnums=(2, 3)) if self.remat else Bottleneck
        x = max_pool(self._stem(x, channels, train, task))
        maps, reached, dilation = [], 4, 1
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            wanted = 1 if stage == 0 else 2
            stride = wanted if reached * wanted <= self.output_stride else 1
            reached, before = reached * stride, dilation
            dilation *= wanted // stride
            for block in range(blocks):
                first = block == 0
                x = make_block(
                    channels * 2**stage,
                    stride if first else 1,
                    before if first and not self.stride_in_1x1 else dilation,
                    self.stride_in_1x1,
                    self.norm,
                    self.modulation,
                    self.dtype,
                    self.average_shortcut and stage > 0,
                    self.groups,
                    self.group_width,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train, task)
            maps.append(x)
        if self.top:
            maps.append(jnp.mean(x, (1, 2), keepdims=True))
        return maps

    def _stem(self, x, channels, train, task):
        """f[B,H,W,3] -> f[B, ceil(H / 2), ceil(W / 2), channels]."""
        unit = functools.partial(
            ConvNorm,
            norm=self.norm,
            activation=nn.relu,
            modulation=Modulation(film=self.modulation.film),
            dtype=self.dtype,
        )
        if not self.deep_stem:
            return unit(channels, 7, 2, name="stem")(x, train, task)
        for number, features, stride in ((1, channels // 2, 2), (2, channels // 2, 1), (3, channels, 1)):
            x = unit(features, 3, stride, name=f"stem{number}")(x, train, task)
        return x


def build(
    dtype: str,
    depth: int = 50,
    width: float = 1.0,
    norm: str = "batch",
    output_stride: int = 16,
    stride_in_1x1: bool = False,
    modulation: Modulation = UNMODULATED,
    deep_stem: bool = False,
    average_shortcut: bool = False,
    groups: int = 1,
    group_width: int = GROUP_WIDTH,
    top: bool = False,
    remat: bool = False,
) -> ResNet:
    """A ResNet whose computation has this `dtype`; for the options see there.

    Raises:
      UserError: an option that is none of those.
    """
    for key, value, known in (
        ("depth", depth, BLOCKS),
        ("norm", norm, NORMS),
        ("output_stride", output_stride, OUTPUT_STRIDES),
    ):
        one_of(f"model.encoder.{key}", value, known)
    if width <= 0:
        raise UserError(f"config.model.encoder.width is {width}: give a positive factor, as 0.5")
    if groups < 1:
        raise UserError(f"config.model.encoder.groups is {groups}: give 1, or more for a ResNeXt, as 32")
    least = -(-GROUP_WIDTH // base_channels(width))  # below it, a group of the first stage has no channel
    if group_width < least:
        raise UserError(f"config.model.encoder.group_width is {group_width}: give at least {least}")
    return ResNet(
        depth,
        width,
        norm,
        output_stride,
        stride_in_1x1,
        modulation,
        jnp.dtype(dtype),
        deep_stem,
        average_shortcut,
        groups,
        group_width,
        top,
        remat,
    )

"""Residual networks of bottleneck blocks (He et al., CVPR 2016), with dilation for dense prediction."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OUTPUT_STRIDES = (8, 16, 32)
EXPANSION = 4


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


class Bottleneck(nn.Module):
    """1x1 - 3x3 - 1x1 convolutions beside a shortcut, which is a 1x1 convolution where shapes differ.

    Attributes:
      features: channels of the 3x3 convolution; the output has four times as many.
      dilation: of the 3x3 convolution.
      stride_in_1x1: the first convolution takes the stride, instead of the 3x3.
      modulation: the gate stands before the addition, the adapter beside the 3x3.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    stride_in_1x1: bool = False
    norm: str = "batch"
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | jax.Array | None = None) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), 4 * features]."""
        unit = functools.partial(ConvNorm, norm=self.norm, modulation=self.modulation, dtype=self.dtype)
        inner = functools.partial(unit, self.features, activation=nn.relu)
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        outputs = EXPANSION * self.features
        y = inner(1, first, name="conv1")(x, train, task)
        y = inner(3, second, self.dilation, adapter=True, name="conv2")(y, train, task)
        y = unit(outputs, 1, zero=True, reduction=16, name="conv3")(y, train, task)
        if self.stride > 1 or x.shape[-1] != outputs:
            x = unit(outputs, 1, self.stride, name="shortcut")(x, train, task)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The encoder: stem, max pooling, four stages.

    A stage whose stride would exceed `output_stride` keeps its input's resolution instead, and every
    later convolution is dilated by the stride that was dropped: its outputs contain those of the
    strided network. With the stride in the 3x3, the first 3x3 of the stage thus keeps the dilation
    of the stage before (as released DeepLab weights expect); with `stride_in_1x1` all of the stage
    is dilated (Maninis et al., CVPR 2019).

    Attributes:
      depth: a key of BLOCKS.
      width: multiplies all numbers of channels; see `base_channels`.
      norm: "batch" or "group".
      output_stride: 8, 16 or 32; input size over size of the last map.
      stride_in_1x1: where a block has its stride: in the first 1x1 (He et al.), or in the 3x3 (as
        most released weights).
      modulation: of every block; of it, the stem has the tables (`film`) alone.
    """

    depth: int = 50
    width: float = 1.0
    norm: str = "batch"
    output_stride: int = 16
    stride_in_1x1: bool = False
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last convolution's parameters."""
        return f"stage4_block{BLOCKS[self.depth][-1]}", "conv3", "conv"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | jax.Array | None = None) -> list[jax.Array]:
        """Normalised image f32[B,H,W,3] -> maps of the four stages, strides 4, 8, 16, 32 at most."""
        channels = base_channels(self.width)
        stem = ConvNorm(
            channels,
            7,
            2,
            norm=self.norm,
            activation=nn.relu,
            modulation=Modulation(film=self.modulation.film),
            dtype=self.dtype,
            name="stem",
        )
        x = max_pool(stem(x, train, task))
        maps, reached, dilation = [], 4, 1
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            wanted = 1 if stage == 0 else 2
            stride = wanted if reached * wanted <= self.output_stride else 1
            reached, before = reached * stride, dilation
            dilation *= wanted // stride
            for block in range(blocks):
                first = block == 0
                x = Bottleneck(
                    channels * 2**stage,
                    stride if first else 1,
                    before if first and not self.stride_in_1x1 else dilation,
                    self.stride_in_1x1,
                    self.norm,
                    self.modulation,
                    self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train, task)
            maps.append(x)
        return maps

"""MobileNetV2 (Sandler et al., CVPR 2018), with dilation for dense prediction."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.backbones.resnet import OUTPUT_STRIDES
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm

STEM = 32
STAGES = (  # expansion, channels, blocks, stride: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LEVELS = (1, 2, 4, 6)  # stages that are the last of their resolution, from stride 4 on
TOP = 1280  # channels of the last convolution, which serves classification
REDUCTION = 4  # of the gates (Maninis et al., CVPR 2019, as released)
NORMS = ("batch", "group")


def scaled(channels: int, width: float) -> int:
    """channels * width to the nearest multiple of 8, or the next one if that takes off more than a tenth."""
    wanted = channels * width
    rounded = max(8, int(wanted / 8 + 0.5) * 8)
    return rounded if rounded >= 0.9 * wanted else rounded + 8


def blocks_of(depth: float) -> list[int]:
    """Blocks of the seven stages: the first and the last have one at any depth; others are rounded up."""
    counts = [blocks for *_, blocks, _ in STAGES]
    return [counts[0], *(math.ceil(blocks * depth) for blocks in counts[1:-1]), counts[-1]]


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise and linear 1x1 convolutions, beside a shortcut where shapes agree.

    Attributes:
      features: channels of the output.
      expansion: channels between, over those of the input; 1 leaves the first convolution out.
      modulation: the gate stands before the addition; there is no adapter.
    """

    features: int
    expansion: int = 6
    stride: int = 1
    dilation: int = 1
    norm: str = "batch"
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | None = None) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), features]."""
        unit = functools.partial(
            ConvNorm,
            norm=self.norm,
            modulation=self.modulation,
            gate_activation=nn.relu6,
            dtype=self.dtype,
        )
        hidden = self.expansion * x.shape[-1]
        shortcut = self.stride == 1 and x.shape[-1] == self.features
        y = x
        if self.expansion > 1:
            y = unit(hidden, 1, activation=nn.relu6, name="conv1")(y, train, task)
        y = unit(hidden, 3, self.stride, self.dilation, groups=hidden, activation=nn.relu6, name="conv2")(
            y, train, task
        )
        y = unit(self.features, 1, zero=shortcut, reduction=REDUCTION, name="conv3")(y, train, task)
        return x + y if shortcut else y


class MobileNetV2(nn.Module):
    """The encoder: stem and seven stages of inverted residuals.

    A stage whose stride would exceed `output_stride` keeps its input's resolution instead, and it and
    all later stages are dilated by the stride that was dropped.

    Attributes:
      width: multiplies all numbers of channels; see `scaled`.
      norm: "batch" or "group".
      output_stride: 8, 16 or 32; input size over size of the last map.
      modulation: of every block; stem and top are shared by all tasks.
      top: append what the released classifiers read, f[B,1,1,1280]: the average of one more convolution.
        It gets wider with `width`, but never narrower than 1280.
      depth: multiplies the numbers of blocks; see `blocks_of`. Networks of another depth than 1 have the
        stem and the top of width 1, as published (timm's mobilenetv2_110d: width 1.1, depth 1.2; 120d: 1.2
        and 1.4).
      remat: compute what is inside the blocks again for the gradient, instead of keeping it.
    """

    width: float = 1.0
    norm: str = "batch"
    output_stride: int = 16
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32
    top: bool = False
    depth: float = 1.0
    remat: bool = False

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last convolution's parameters."""
        return f"stage{len(STAGES)}_block{STAGES[-1][2]}", "conv3", "conv"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | None = None) -> list[jax.Array]:
        """Normalised image f32[B,H,W,3] -> maps of strides 4, 8, 16, 32 at most, and the top's average.

        With width 1 the maps have 24, 32, 96 and 320 channels.
        """
        ends = self.width if self.depth == 1 else 1.0
        unit = functools.partial(ConvNorm, norm=self.norm, activation=nn.relu6, dtype=self.dtype)
        residual = nn.remat(InvertedResidual, static_argnums=(2, 3)) if self.remat else InvertedResidual
        x = unit(scaled(STEM, ends), 3, 2, name="stem")(x, train)
        outputs, reached, dilation = [], 2, 1
        for stage, blocks in enumerate(blocks_of(self.depth)):
            expansion, channels, _, wanted = STAGES[stage]
            stride = wanted if reached * wanted <= self.output_stride else 1
            reached, dilation = reached * stride, dilation * (wanted // stride)
            for block in range(blocks):
                x = residual(
                    scaled(channels, self.width),
                    expansion,
                    stride if block == 0 else 1,
                    dilation,
                    self.norm,
                    self.modulation,
                    self.dtype,
                    name=f"stage{stage + 1}_block{block + 1}",
                )(x, train, task)
            outputs.append(x)
        maps = [outputs[stage] for stage in LEVELS]
        if self.top:
            x = unit(max(TOP, scaled(TOP, ends)), 1, name="top")(x, train)
            maps.append(jnp.mean(x, (1, 2), keepdims=True))
        return maps


def build(
    dtype: str,
    width: float = 1.0,
    depth: float = 1.0,
    norm: str = "batch",
    output_stride: int = 16,
    modulation: Modulation | None = None,
    top: bool = False,
    remat: bool = False,
) -> MobileNetV2:
    """A MobileNetV2 whose computation has this `dtype`; for the options see there.

    Raises:
      UserError: an option that is none of those.
    """
    one_of("model.encoder.norm", norm, NORMS)
    one_of("model.encoder.output_stride", output_stride, OUTPUT_STRIDES)
    for key, factor in {"width": width, "depth": depth}.items():
        if factor <= 0:
            raise UserError(f"config.model.encoder.{key} is {factor}: give a positive factor, as 1.4")
    kind, modulation = jnp.dtype(dtype), modulation or Modulation()
    return MobileNetV2(width, norm, output_stride, modulation, kind, top, depth, remat)

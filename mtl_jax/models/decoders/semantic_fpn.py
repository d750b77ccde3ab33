"""Semantic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, section 3.1)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.decoders.fpn import FINEST, FPN
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm
from mtl_jax.models.resize import resize


class SemanticBranch(nn.Module):
    """The levels of a pyramid, each brought to the finest one's size step by step, and summed.

    A step is a 3x3 convolution, normalisation, ReLU and bilinear interpolation to the next finer level's
    size: twice the own one, where sizes are even. The finest level has one step without interpolation.

    Attributes:
      features: channels of the result.
      norm: "group" (Kirillov et al.) or "batch".
      modulation: of every unit.
    """

    features: int = 128
    norm: str = "batch"
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the finest level's convolution: of all that the sum reads, the one at its size."""
        return f"level{FINEST}_conv1", "conv"

    @nn.compact
    def __call__(self, levels: list[jax.Array], train: bool, task: str | None = None) -> jax.Array:
        """P2, P3, ... f[B,h,w,C], fine to coarse -> f[B,h,w,features] of the first one's size."""
        sizes = [level.shape[1:3] for level in levels]
        total = 0
        for index, x in enumerate(levels):
            for step in range(max(1, index)):
                x = ConvNorm(
                    self.features,
                    kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
                    norm=self.norm,
                    activation=nn.relu,
                    modulation=self.modulation,
                    adapter=True,
                    reduction=16,
                    dtype=self.dtype,
                    name=f"level{FINEST + index}_conv{step + 1}",
                )(x, train, task)
                x = resize(x, sizes[max(0, index - 1 - step)])
            total += x
        return total


class SemanticFPNDecoder(nn.Module):
    """A feature pyramid of levels 2 to 5 and the branch on it, as a decoder of an encoder's maps.

    Attributes:
      features, norm: of the branch.
      pyramid: channels of the pyramid, which has no normalisation.
      modulation: of every unit of the branch; tasks share the pyramid.
    """

    features: int = 128
    pyramid: int = 256
    norm: str = "batch"
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the convolution that `SemanticBranch.last` is about."""
        return "branch", f"level{FINEST}_conv1", "conv"

    @nn.compact
    def __call__(self, maps: list[jax.Array], train: bool, task: str | None = None) -> jax.Array:
        """Maps of the encoder's stages, strides 4 to 32 -> f[B,h,w,features] at the first one's size."""
        levels = FPN(self.pyramid, dtype=self.dtype, name="fpn")(maps, train, task)
        branch = SemanticBranch(self.features, self.norm, self.modulation, self.dtype, name="branch")
        return branch(levels, train, task)

"""Normalisation by name, and the convolution that it follows."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.conv import Conv

KINDS = ("batch", "group")


class Norm(nn.Module):
    """Batch or group normalisation with learnt scale and shift; statistics are float32.

    Batch statistics are those of the global batch, on however many devices it lies; the running ones
    keep 0.9 of their value per update. 32 groups (Wu & He, ECCV 2018), fewer where a group would
    have less than two channels.

    Attributes:
      kind: "batch" or "group".
      zero: start with scale 0, so that a residual branch starts as the identity.
    """

    kind: str
    dtype: Any = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,H,W,C] -> f[B,H,W,C]; `train` takes the batch's statistics instead of the running ones."""
        options = {
            "epsilon": 1e-5,
            "dtype": self.dtype,
            "scale_init": nn.initializers.zeros if self.zero else nn.initializers.ones,
        }
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, **options)(x)
        return nn.GroupNorm(num_groups=math.gcd(32, max(1, x.shape[-1] // 2)), **options)(x)


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation."""

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    norm: str = "batch"
    zero: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), features]."""
        x = Conv(self.features, self.size, self.stride, self.dilation, dtype=self.dtype, name="conv")(x)
        return Norm(self.norm, self.dtype, self.zero, name="norm")(x, train)

"""Last layers: what turns the features of a task into its raw output."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.conv import Conv, conv
from mtl_jax.models.resize import resize


class DenseHead(nn.Module):
    """1x1 convolution, enlarged to the image's size."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> f32[B,H,W,channels] with (H, W) = size."""
        x = Conv(self.channels, 1, use_bias=True, dtype=self.dtype, name="conv")(features)
        return resize(x.astype(jnp.float32), size)


class SegNetHead(nn.Module):
    """3x3 convolution that keeps the number of channels, then a 1x1; Xavier-normal weights, biases.

    Nothing stands between the two, so they are computed as the one 3x3 convolution that they amount to:
    for few outputs that is a small part of the arithmetic. Features beyond the size are cut off.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> f32[B,H,W,channels] with (H, W) = size, at most (h, w)."""
        inputs, start = features.shape[-1], nn.initializers.xavier_normal()
        kernel1 = self.param("kernel1", start, (3, 3, inputs, inputs))
        bias1 = self.param("bias1", nn.initializers.zeros, (inputs,))
        kernel2 = self.param("kernel2", start, (inputs, self.channels))
        bias2 = self.param("bias2", nn.initializers.zeros, (self.channels,))
        x = conv(features.astype(self.dtype), (kernel1 @ kernel2).astype(self.dtype))
        return x[:, : size[0], : size[1]].astype(jnp.float32) + (bias1 @ kernel2 + bias2)


class GlobalHead(nn.Module):
    """Average over the map, then a linear layer: one output per image."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> f32[B,1,1,channels], whatever the image's size."""
        x = jnp.mean(features, (1, 2), keepdims=True)
        return nn.Dense(self.channels, dtype=self.dtype, name="dense")(x).astype(jnp.float32)

"""Last layers: what turns the features of a task into its raw output."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.conv import Conv
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
    """3x3 convolution that keeps the number of channels, then a 1x1, with nothing between them.

    It reads features of at least the image's size, and cuts off what lies beyond.
    """

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> f32[B,H,W,channels] with (H, W) = size, at most (h, w)."""
        options = {
            "use_bias": True,
            "kernel_init": nn.initializers.xavier_normal(),
            "dtype": self.dtype,
        }
        x = Conv(features.shape[-1], 3, name="conv1", **options)(features)
        x = Conv(self.channels, 1, name="conv2", **options)(x)
        return x[:, : size[0], : size[1]].astype(jnp.float32)


class GlobalHead(nn.Module):
    """Average over the map, then a linear layer: one output per image."""

    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> f32[B,1,1,channels], whatever the image's size."""
        x = jnp.mean(features, (1, 2), keepdims=True)
        return nn.Dense(self.channels, dtype=self.dtype, name="dense")(x).astype(jnp.float32)

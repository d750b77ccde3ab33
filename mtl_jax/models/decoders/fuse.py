"""The head of HRNetV2 (Wang et al., TPAMI 2020, section 3): maps of all resolutions become one."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.conv import Conv
from mtl_jax.models.norm import Norm
from mtl_jax.models.resize import resize


class Fuse(nn.Module):
    """All maps at the finest one's size side by side, a 1x1 convolution with bias, batch norm and ReLU."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[jax.Array], train: bool) -> jax.Array:
        """f[B,h,w,C] of each map, fine to coarse -> f[B,h,w,sum of all C] of the first one's size."""
        x = jnp.concatenate([resize(level, maps[0].shape[1:3]) for level in maps], -1)
        x = Conv(x.shape[-1], 1, use_bias=True, dtype=self.dtype, name="conv")(x)
        return nn.relu(Norm("batch", self.dtype, name="norm")(x, train))

"""Parts of decoders that predict first and then let tasks read each other's features.

They are those of PAD-Net (Xu et al., CVPR 2018) as Vandenhende et al. (MTI-Net, ECCV 2020) have them.
"""

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.backbones.hrnet import EXPANSION, Residual
from mtl_jax.models.conv import Conv
from mtl_jax.models.naming import owned
from mtl_jax.models.norm import ConvNorm


class Blocks(nn.Module):
    """Two residual blocks.

    Attributes:
      width: channels of the result; a multiple of EXPANSION for bottlenecks.
      bottleneck: whether the blocks are bottlenecks.
    """

    width: int
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,h,w,C] -> f[B,h,w,width]."""
        unit = functools.partial(ConvNorm, dtype=self.dtype)
        inner = self.width // EXPANSION if self.bottleneck else self.width
        for name in ("block1", "block2"):
            x = Residual(inner, self.bottleneck, unit, name=name)(x, train)
        return x


class Initial(nn.Module):
    """One task's first features and the prediction from them.

    Attributes:
      channels: of the prediction.
      width, bottleneck: of the features; see Blocks.
    """

    channels: int
    width: int
    bottleneck: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """f[B,h,w,C] -> features f[B,h,w,width], raw prediction f[B,h,w,channels]."""
        x = Blocks(self.width, self.bottleneck, self.dtype, name="blocks")(x, train)
        return x, Conv(self.channels, 1, use_bias=True, dtype=self.dtype, name="predict")(x)


class Distillation(nn.Module):
    """To each task's features f_t, what gates let through of the others' (Vandenhende et al., eq. 1).

    f_t + sum over a != t of sigmoid(attention(f_a)) * message(f_a), with 3x3 convolutions without bias that
    each ordered pair has for itself. Those to task t are `attention_<a>@<t>` and `message_<a>@<t>`.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """{task: f[B,h,w,C]} -> the same shapes."""
        distilled = dict(features)
        for source, target in itertools.permutations(features, 2):
            x = features[source]
            gate, message = (
                Conv(x.shape[-1], dtype=self.dtype, name=owned(f"{kind}_{source}", target))(x)
                for kind in ("attention", "message")
            )
            distilled[target] += nn.sigmoid(gate) * message
        return distilled

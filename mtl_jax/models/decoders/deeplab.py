"""DeepLabv3+ decoder (Chen et al., ECCV 2018): atrous spatial pyramid pooling and a skip connection.

Without the connection it is that of DeepLabv3 (Chen et al., arXiv:1706.05587).
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm
from mtl_jax.models.resize import resize

RATES = (6, 12, 18)  # at output stride 16; they scale with the map's resolution


def _unit(part, train, task, x, features, size, **options):
    """`x` through the unit that `part` of the decoder is made of, but for its `options`."""
    activation = nn.relu6 if part.light else nn.relu
    usual = {
        "groups": math.gcd(x.shape[-1], features) if part.light else 1,
        "adapter": True,
        "reduction": 4 if part.light else 16,
    }
    unit = ConvNorm(
        features,
        size,
        norm=part.norm,
        activation=activation,
        modulation=part.modulation,
        gate_activation=activation,
        dtype=part.dtype,
        **{**usual, **options},
    )
    return unit(x, train, task)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: five views of different reach, merged by a 1x1 convolution.

    Attributes:
      rates: dilations of the three 3x3 convolutions.
      modulation: of every unit; the view of the average has no adapter.
      light: see DeepLabDecoder; the 1x1 view has no groups then, that of the average no gate.
    """

    features: int
    rates: tuple[int, int, int] = RATES
    norm: str = "batch"
    modulation: Modulation = Modulation()
    light: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | None = None) -> jax.Array:
        """f[B,h,w,C] -> f[B,h,w,features]."""
        unit = functools.partial(_unit, self, train, task)
        views = [unit(x, self.features, 1, groups=1, name="point")]
        for index, rate in enumerate(self.rates):
            views.append(unit(x, self.features, 3, dilation=rate, name=f"atrous{index + 1}"))
        average = jnp.mean(x, (1, 2), keepdims=True)
        reduction = None if self.light else 16
        pooled = unit(average, self.features, 1, adapter=False, reduction=reduction, name="pool")
        views.append(jnp.broadcast_to(pooled, views[0].shape))
        return unit(jnp.concatenate(views, -1), self.features, 1, name="merge")


class DeepLabDecoder(nn.Module):
    """ASPP on the last map, enlarged and refined beside the first map.

    Attributes:
      features: W, channels of the result; the skip connection has 48 * W / 256 (Maninis et al.,
        CVPR 2019), so W is a multiple of 16 with it.
      rates: dilations of the ASPP.
      modulation: of every unit.
      skip: whether the first map takes part; without, the last 3x3 unit follows the ASPP at its size.
      light: the form for a MobileNet (Maninis et al., as released): ReLU6 for ReLU, in each convolution
        as many groups as its inputs and outputs allow, and gates of reduction 4 throughout.
    """

    features: int = 256
    rates: tuple[int, int, int] = RATES
    norm: str = "batch"
    modulation: Modulation = Modulation()
    skip: bool = True
    light: bool = False
    dtype: Any = jnp.float32

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last convolution's parameters."""
        return "refine2", "conv"

    @nn.compact
    def __call__(self, maps: list[jax.Array], train: bool, task: str | None = None) -> jax.Array:
        """Maps of the encoder's stages, fine to coarse -> f[B,h,w,W].

        It has the first map's size with the skip connection, and the last one's without.
        """
        unit = functools.partial(_unit, self, train, task)
        aspp = ASPP(
            self.features, self.rates, self.norm, self.modulation, self.light, self.dtype, name="aspp"
        )
        x = aspp(maps[-1], train, task)
        if self.skip:
            high = resize(x, maps[0].shape[1:3])
            low = unit(maps[0], 48 * self.features // 256, 1, reduction=4, name="skip")
            # The order decides which channels share a group.
            x = jnp.concatenate([low, high] if self.light else [high, low], -1)
            x = unit(x, self.features, 3, name="refine1")
        return unit(x, self.features, 3, name="refine2")

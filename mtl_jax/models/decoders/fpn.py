"""Feature pyramid network (Lin et al., CVPR 2017): maps of all strides, each with a deep map's knowledge.

Level l has stride 2^l: an encoder gives C2 ... C5, the pyramid P2 ... P5 and coarser ones.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.conv import Conv
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import Norm

FINEST = 2  # level of an encoder's first map
COARSER = ("pool", "p5", "c5")


class FPN(nn.Module):
    """1x1 convolutions of the encoder's maps, summed from coarse to fine, and a 3x3 convolution of each sum.

    Attributes:
      features: channels of every level.
      first_level, last_level: of the pyramid, 2 to 5 and 5 or more; the encoder's finer maps are not read.
      coarser: where the levels after 5 come from. "pool": every second pixel of the level before (Lin et
        al., for Faster R-CNN). "p5" or "c5": a 3x3 convolution with stride 2, of the pyramid's or the
        encoder's map for level 6 and of the rectified level before for all others (RetinaNet, Lin et al.,
        ICCV 2017, has "c5"; RetinaNets since, that of Ghiasi et al., ICCV 2021 (MuST), among them, "p5").
      norm: "batch" or "group", of every level when all are made (MuST); None for none.
    """

    features: int = 256
    first_level: int = 2
    last_level: int = 5
    coarser: str = "p5"
    norm: str | None = None
    dtype: Any = jnp.float32

    @property
    def modulation(self) -> Modulation:
        """It is the same for all tasks."""
        return Modulation()

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the convolution that makes the finest level."""
        return (f"output{self.first_level}",)

    @nn.compact
    def __call__(self, maps: list[jax.Array], train: bool, task: str | None = None) -> list[jax.Array]:
        """Maps of the encoder's stages, strides 4 to 32, of any size -> f[B,h,w,features] of each level.

        A level up to 5 has the size of the encoder's map, a coarser one half of that before, rounded up.
        """
        # Nothing rectifies these convolutions, so that He's weights would be twice the wanted variance.
        start = nn.initializers.lecun_uniform()
        conv = functools.partial(Conv, self.features, use_bias=True, kernel_init=start, dtype=self.dtype)
        maps = maps[self.first_level - FINEST :]
        levels, merged = [], None
        for level, source in reversed(list(enumerate(maps, self.first_level))):
            lateral = conv(1, name=f"lateral{level}")(source)
            merged = lateral if merged is None else lateral + _enlarge(merged, lateral.shape[1:3])
            levels.insert(0, conv(3, name=f"output{level}")(merged))
        source = maps[-1] if self.coarser == "c5" else levels[-1]
        for level in range(self.first_level + len(levels), self.last_level + 1):
            if self.coarser == "pool":
                levels.append(levels[-1][:, ::2, ::2])
            else:
                levels.append(conv(3, 2, name=f"coarser{level}")(source))
                source = nn.relu(levels[-1])
        if self.norm is None:
            return levels
        return [
            Norm(self.norm, self.dtype, name=f"norm{level}")(x, train)
            for level, x in enumerate(levels, self.first_level)
        ]


def _enlarge(x, size):
    """f[B,h,w,C] -> f[B,H,W,C], (H, W) = size: the nearest pixel, of a map that is half as large or as large.

    Repeated and cut, not looked up: the gradient is a sum over neighbours, no scatter.
    """
    for axis, length in zip((1, 2), size, strict=True):
        repeated = jnp.repeat(x, -(-length // x.shape[axis]), axis)
        x = jax.lax.slice_in_dim(repeated, 0, length, axis=axis)
    return x

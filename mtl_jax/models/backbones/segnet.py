"""SegNet's encoder (Badrinarayanan et al., TPAMI 2017): the convolutions of VGG-16, and pooling that
remembers where each maximum stood."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import KINDS, ConvNorm

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions
STRIDE = 2 ** len(STAGES)

_PLACES = np.arange(4, dtype=np.int8).reshape(1, 1, 2, 1, 2, 1)  # in a 2x2 window, row by row


def scaled(channels: int, width: float) -> int:
    """channels * width, rounded, but at least 4."""
    return max(4, round(channels * width))


def argmax_pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest of each 2x2 window, and where it stands: for f[B,H,W,C] with even H and W.

    Returns:
      pooled f[B,H/2,W/2,C], and index i8[B,H/2,W/2,C] from 0 to 3, row by row; the first of equals. The
      gradient goes to the place of the index alone.
    """
    a, b, c, d = (x[:, row::2, column::2] for row in (0, 1) for column in (0, 1))
    lower = jnp.maximum(c, d) > jnp.maximum(a, b)
    index = jnp.where(lower, 2 + (d > c), b > a).astype(jnp.int8)
    return _pick(x, index), index


@jax.custom_vjp
def unpool(x: jax.Array, index: jax.Array) -> jax.Array:
    """f[B,h,w,C] at the places of an index as of `argmax_pool`, 0 elsewhere: f[B,2h,2w,C]."""
    batch, height, width, channels = x.shape
    windows = jnp.where(index[:, :, None, :, None] == _PLACES, x[:, :, None, :, None], 0)
    return windows.reshape(batch, 2 * height, 2 * width, channels)


@jax.custom_vjp
def _pick(x, index):
    """f[B,2h,2w,C] -> f[B,h,w,C]: of each window what stands at the index."""
    a, b, c, d = (x[:, row::2, column::2] for row in (0, 1) for column in (0, 1))
    return jnp.where(index < 2, jnp.where(index == 0, a, b), jnp.where(index == 2, c, d))


# Each is the other's transpose. XLA would find these gradients too, but slices become sums of padded
# maps: forward and backward pass of the pair take 5 ms instead of 2 for 4x96x128x16 on two CPU cores.
_pick.defvjp(lambda x, index: (_pick(x, index), index), lambda index, g: (unpool(g, index), None))
unpool.defvjp(lambda x, index: (unpool(x, index), index), lambda index, g: (_pick(g, index), None))


unit = functools.partial(
    ConvNorm, use_bias=True, kernel_init=nn.initializers.xavier_normal(), activation=nn.relu
)


class SegNetEncoder(nn.Module):
    """Five stages of 3x3 units, each ending in `argmax_pool`.

    Sizes are made multiples of 32 by repeating the last row and the last column.

    Attributes:
      width: multiplies all numbers of channels; see `scaled`.
      norm: "batch", "group" or "instance".
      modulation: of every unit.
      remat: compute what is inside the units again for the gradient, instead of keeping it.
    """

    width: float = 1.0
    norm: str = "batch"
    modulation: Modulation = Modulation()
    dtype: Any = jnp.float32
    remat: bool = False

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last convolution's parameters."""
        return f"stage{len(STAGES)}_conv{STAGES[-1][1]}", "conv"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | jax.Array | None = None) -> list[jax.Array]:
        """f[B,H,W,C] -> indices i8[B,h,w,c] of the five poolings, fine to coarse, and the latent.

        The latent is f[B, ceil(H / 32), ceil(W / 32), 512 * width].
        """
        missing = [(0, -n % STRIDE) for n in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *missing, (0, 0)), "edge")
        make = unit
        if self.remat:
            # Of (self, x, train, task), the last two are no arrays to differentiate.
            make = functools.partial(nn.remat(ConvNorm, static_argnums=(2, 3)), **unit.keywords)
        indices = []
        for stage, (channels, units) in enumerate(STAGES):
            for number in range(units):
                x = make(
                    scaled(channels, self.width),
                    norm=self.norm,
                    modulation=self.modulation,
                    dtype=self.dtype,
                    name=f"stage{stage + 1}_conv{number + 1}",
                )(x, train, task)
            x, index = argmax_pool(x)
            indices.append(index)
        return [*indices, x]


def build(dtype: str, width: float = 1.0, norm: str = "batch", remat: bool = False) -> SegNetEncoder:
    """A SegNetEncoder whose computation has this `dtype`; for the options see there.

    Raises:
      UserError: an option that is none of those.
    """
    one_of("model.encoder.norm", norm, KINDS)
    if width <= 0:
        raise UserError(f"config.model.encoder.width is {width}: give a positive factor, as 0.5")
    return SegNetEncoder(width, norm, dtype=jnp.dtype(dtype), remat=remat)

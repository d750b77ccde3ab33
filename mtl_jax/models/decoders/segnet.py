"""SegNet's decoder (Badrinarayanan et al., TPAMI 2017): the encoder's mirror, from pooled to full size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.backbones import segnet


class SegNetDecoder(nn.Module):
    """Five stages, each of which begins with `unpool` at its encoder's index; features skip nowhere.

    The first unit of a stage takes the channels to those of the next one.

    Attributes:
      width, norm: as the encoder's.
    """

    width: float = 1.0
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: list[jax.Array], train: bool, task: str | None = None) -> jax.Array:
        """What the encoder returns -> f[B,H,W,64 * width], H and W multiples of 32."""
        *indices, x = maps
        for stage in reversed(range(len(segnet.STAGES))):
            x = segnet.unpool(x, indices[stage])
            channels = segnet.scaled(segnet.STAGES[max(0, stage - 1)][0], self.width)
            for number in range(segnet.STAGES[stage][1]):
                x = segnet.unit(
                    channels, norm=self.norm, dtype=self.dtype, name=f"stage{stage + 1}_conv{number + 1}"
                )(x, train)
        return x

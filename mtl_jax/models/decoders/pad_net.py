"""PAD-Net (Xu et al., CVPR 2018) on the maps of a multi-resolution encoder.

The layers are those that Vandenhende et al. (MTI-Net, ECCV 2020) compare with and have released.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.decoders.distillation import Blocks, Distillation, Initial
from mtl_jax.models.decoders.fuse import Fuse
from mtl_jax.models.naming import owned


class PADNetDecoder(nn.Module):
    """The maps fused, each task's first features and prediction, distillation, each task's last features.

    Attributes:
      channels: of each task's prediction.
      width: channels of the features, a multiple of 4.
    """

    channels: Mapping[str, int]
    width: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], train: bool
    ) -> tuple[dict[str, jax.Array], list[dict[str, jax.Array]]]:
        """Maps f[B,h,w,C] of the encoder, fine to coarse; the results have the first one's (h, w).

        Returns:
          {task: f[B,h,w,width]}, and [{task: raw f[B,h,w,channels]}].
        """
        fused = Fuse(self.dtype, name="fuse")(maps, train)
        first, raw = {}, {}
        for task, channels in self.channels.items():
            initial = Initial(channels, self.width, True, self.dtype, name=owned("initial", task))
            first[task], raw[task] = initial(fused, train)
        distilled = Distillation(self.dtype, name="distillation")(first)
        return {
            task: Blocks(self.width, True, self.dtype, name=owned("final", task))(x, train)
            for task, x in distilled.items()
        }, [raw]

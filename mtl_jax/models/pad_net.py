"""PAD-Net (Xu et al., CVPR 2018): any encoder, first predictions, distillation between tasks, heads."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models.decoders.pad_net import PADNetDecoder
from mtl_jax.models.encoder import build_encoder
from mtl_jax.models.interacting import InteractingNet, check_maps
from mtl_jax.tasks import Task


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    backbone: str = "hrnet",
    encoder: Mapping[str, Any] = MappingProxyType({}),
    width: int = 256,
) -> InteractingNet:
    """A PAD-Net for `tasks`, of which each has one intermediate prediction.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      backbone: a module in models/backbones/ whose four maps have strides 4 to 32: all but "segnet" and
        "vit".
      encoder: options of its `build`.
      width: channels of the tasks' features.

    Raises:
      UserError: an option that is none of these, one task alone, or one without a prediction per pixel.
    """
    network = build_encoder(dtype, backbone, encoder)
    check_maps("pad_net", tasks, least=2)
    if width < 4 or width % 4:
        raise UserError(f"config.model.width is {width}: give a multiple of 4")
    kind = jnp.dtype(dtype)
    channels = {name: task.channels for name, task in tasks.items()}
    return InteractingNet(tasks, network, PADNetDecoder(channels, width, kind), kind)

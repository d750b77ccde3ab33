"""MTI-Net (Vandenhende et al., ECCV 2020): any encoder, distillation at all its resolutions."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from mtl_jax.errors import one_of
from mtl_jax.models.decoders.mti_net import SOFTMAX, MTINetDecoder
from mtl_jax.models.encoder import build_encoder
from mtl_jax.models.interacting import InteractingNet, check_maps
from mtl_jax.tasks import Task


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    backbone: str = "hrnet",
    encoder: Mapping[str, Any] = MappingProxyType({}),
    fpm_softmax: str = "released",
) -> InteractingNet:
    """An MTI-Net for `tasks`, of which each has an intermediate prediction per map of the encoder.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      backbone: a module in models/backbones/ whose four maps have strides 4 to 32: all but "segnet" and
        "vit". The tasks' features have as many channels as its maps.
      encoder: options of its `build`.
      fpm_softmax: over what the feature propagation's weights sum to 1, "released" or "across_tasks"; see
        `task_weights` in models/decoders/mti_net.py.

    Raises:
      UserError: an option that is none of these, one task alone, or one without a prediction per pixel.
    """
    network = build_encoder(dtype, backbone, encoder)
    check_maps("mti_net", tasks, least=2)
    one_of("model.fpm_softmax", fpm_softmax, SOFTMAX)
    kind = jnp.dtype(dtype)
    channels = {name: task.channels for name, task in tasks.items()}
    return InteractingNet(tasks, network, MTINetDecoder(channels, fpm_softmax, kind), kind)

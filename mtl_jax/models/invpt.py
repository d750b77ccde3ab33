"""InvPT (Ye & Xu, Inverted Pyramid Multi-task Transformer, ECCV 2022): a vision transformer, its decoder."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from mtl_jax import names
from mtl_jax.errors import UserError, one_of
from mtl_jax.models.decoders.invpt import InvPTDecoder
from mtl_jax.models.interacting import InteractingNet, check_maps
from mtl_jax.tasks import Task

ENCODER = MappingProxyType({"variant": "l16", "drop_path": 0.15})  # as published


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    encoder: Mapping[str, Any] = MappingProxyType({}),
    width: int = 512,
    remat: bool = False,
) -> InteractingNet:
    """An InvPT for `tasks`, whose intermediate predictions are those of the preliminary decoders.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      encoder: options of the `build` in models/backbones/vit.py, in place of ENCODER's or besides.
      width: channels of the preliminary features. The stages have 64 more, of which the later ones have a
        half and a quarter.
      remat: recompute the decoder's stages for the gradient instead of keeping what they computed; the
        encoder has an option of that name for its own blocks.

    Raises:
      UserError: an option that is none of these, or a task without a prediction per pixel.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    check_maps("invpt", tasks)
    if width < 8 or width % 8:
        raise UserError(f"config.model.width is {width}: give a multiple of 8")
    network = names.build("models.backbones", "vit", {**ENCODER, **encoder}, dtype)
    if network.top:
        raise UserError("config.model.encoder.top is true: leave it out, the decoder reads maps alone")
    if network.taps and len(network.taps) < 3:
        raise UserError(
            f"config.model.encoder.taps is {network.taps}: name three blocks at least, or leave it out"
        )
    kind = jnp.dtype(dtype)
    channels = {name: task.channels for name, task in tasks.items()}
    return InteractingNet(tasks, network, InvPTDecoder(channels, width, remat, kind), kind)

"""What the networks have in common whose tasks read each other's features at the encoder's resolutions."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mtl_jax import names
from mtl_jax.errors import UserError, one_of
from mtl_jax.models.interacting import check_maps
from mtl_jax.tasks import Task

BACKBONES = ("hrnet", "resnet", "efficientnet", "mobilenet_v2")  # with maps of strides 4 to 32


def build_encoder(
    model: str, tasks: Mapping[str, Task], dtype: str, backbone: str, options: Mapping[str, Any]
) -> nn.Module:
    """The encoder of the network `model` for `tasks`, whose four maps have strides 4 to 32.

    Args:
      backbone: one of BACKBONES, a module in models/backbones/.
      options: of its `build`.

    Raises:
      UserError: an option that is none of these, one task alone, or one without a prediction per pixel.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    one_of("model.backbone", backbone, BACKBONES)
    check_maps(model, tasks)
    if len(tasks) < 2:
        raise UserError(
            f"config.model.name {model!r} is a network whose tasks learn from each other: give it a second"
            f" task beside {', '.join(tasks)}, or choose 'semantic_fpn'"
        )
    strides = {} if backbone == "hrnet" else {"output_stride": 32}
    network = names.build("models.backbones", backbone, {**strides, **options}, dtype)
    if network.top:
        raise UserError("config.model.encoder.top is true: leave it out, the decoder reads maps alone")
    return network

"""The encoder of networks that read maps of strides 4, 8, 16 and 32."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mtl_jax import names
from mtl_jax.errors import UserError, one_of

BACKBONES = ("hrnet", "resnet", "efficientnet", "mobilenet_v2")


def build_encoder(dtype: str, backbone: str, options: Mapping[str, Any]) -> nn.Module:
    """A backbone of these.

    Args:
      dtype: of the computation, "float32" or "bfloat16".
      backbone: one of BACKBONES, a module in models/backbones/.
      options: of its `build`.

    Raises:
      UserError: an option that is none of these.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    one_of("model.backbone", backbone, BACKBONES)
    strides = {} if backbone == "hrnet" else {"output_stride": 32}
    network = names.build("models.backbones", backbone, {**strides, **options}, dtype)
    if network.top:
        raise UserError("config.model.encoder.top is true: leave it out, the decoder reads maps alone")
    return network

"""A backbone and the classifier that is released with it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from mtl_jax import names
from mtl_jax.errors import UserError, one_of
from mtl_jax.models.multi_task import MultiTaskNet
from mtl_jax.tasks import Task


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    backbone: str = "resnet",
    encoder: Mapping[str, Any] = MappingProxyType({}),
) -> MultiTaskNet:
    """A classifier for `tasks`, with a linear layer each.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      backbone: a module in models/backbones/ whose `build` takes `top`.
      encoder: its other options; its output stride is 32 unless they say otherwise.

    Raises:
      UserError: an option that is none of these, or a task that has more than one label per image.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    for name, task in tasks.items():
        if task.dense:
            raise UserError(f"task {name!r} has a label per pixel: choose another config.model.name")
    strides = {"output_stride": 32} if backbone in ("resnet", "mobilenet_v2", "efficientnet") else {}
    network = names.build("models.backbones", backbone, {**strides, **encoder, "top": True}, dtype)
    return MultiTaskNet(tasks, network, None, False, jnp.dtype(dtype))

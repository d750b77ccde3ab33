"""Multi-task Semantic FPN (Kirillov et al., CVPR 2019): any encoder, a feature pyramid, branches, heads."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.decoders.fpn import FPN
from mtl_jax.models.decoders.semantic_fpn import SemanticBranch
from mtl_jax.models.encoder import build_encoder
from mtl_jax.models.multi_task import MultiTaskNet
from mtl_jax.tasks import Task

DECODERS = ("shared", "own")


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    backbone: str = "hrnet",
    encoder: Mapping[str, Any] = MappingProxyType({}),
    pyramid_width: int = 256,
    decoder_width: int = 128,
    norm: str = "batch",
    decoder: str = "own",
) -> MultiTaskNet:
    """A Semantic FPN for `tasks`.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      backbone: a module in models/backbones/ whose four maps have strides 4 to 32: all but "segnet" and
        "vit".
      encoder: options of its `build`.
      pyramid_width: channels of the pyramid, levels 2 to 5, which all tasks share.
      decoder_width: channels of the branch on it.
      norm: of the branch, "batch" or "group".
      decoder: a branch that is "shared" by all tasks, or each task's "own".

    Raises:
      UserError: an option that is none of these.
    """
    network = build_encoder(dtype, backbone, encoder)
    one_of("model.norm", norm, ("batch", "group"))
    one_of("model.decoder", decoder, DECODERS)
    for key, value in {"pyramid_width": pyramid_width, "decoder_width": decoder_width}.items():
        if value < 1:
            raise UserError(f"config.model.{key} is {value}: give a number of channels")
    kind = jnp.dtype(dtype)

    def make_decoder(task: str | None, name: str) -> nn.Module:
        del task
        return SemanticBranch(decoder_width, norm, dtype=kind, name=name)

    return MultiTaskNet(tasks, network, make_decoder, decoder == "own", kind, FPN(pyramid_width, dtype=kind))

"""Multi-task DeepLabv3(+): a dilated encoder, atrous spatial pyramid pooling, and a head per task."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mtl_jax import names
from mtl_jax.errors import UserError, one_of
from mtl_jax.models import modulation
from mtl_jax.models.backbones import resnet
from mtl_jax.models.decoders import deeplab, ubernet
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.multi_task import MultiTaskNet
from mtl_jax.tasks import Task

BACKBONES = ("resnet", "mobilenet_v2", "efficientnet")  # those that can be dilated
NORMS = ("batch", "group")  # statistics of an instance would be those of one pixel in the ASPP's average
DECODERS = {  # and the gates that each can have
    "shared": modulation.SE,
    "own": ("none", "task"),
    "ubernet": ("none",),
}


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    backbone: str = "resnet",
    depth: int | None = None,
    width: float = 1.0,
    norm: str = "batch",
    output_stride: int = 16,
    stride_in_1x1: bool = False,
    decoder_width: int = 256,
    decoder: str = "shared",
    skip: bool = True,
    encoder_se: str = "none",
    decoder_se: str = "none",
    adapters: bool = False,
    task_norm: bool | None = None,
    encoder: Mapping[str, Any] = MappingProxyType({}),
) -> MultiTaskNet:
    """A DeepLabv3+, or a DeepLabv3, for `tasks`.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      backbone: the encoder, "resnet", "efficientnet", or "mobilenet_v2", whose decoder is the light form.
      depth: of a resnet, 26 (by default), 50, 101 or 152 layers.
      width: multiplies the encoder's channels.
      norm: "batch" or "group".
      output_stride: 8, 16 or 32.
      stride_in_1x1: of a resnet; see backbones/resnet.py.
      decoder_width: channels of the decoder, a multiple of 16; an "ubernet" has as many as its task.
      decoder: "shared" by all tasks, with a 1x1 head each; or each task's "own"; or "ubernet", each
        task's own too, of two 1x1 convolutions.
      skip: the encoder's first map refines what the ASPP gives (DeepLabv3+); without (DeepLabv3), the
        features are as coarse as the last map.
      encoder_se, decoder_se: squeeze-and-excitation gates, "none", "shared" by all tasks, or one set
        per "task".
      adapters: residual adapters per task in a residual encoder and in a shared decoder.
      task_norm: normalisation per task: everywhere, nowhere, or (None) in each part, encoder and
        decoder, that has gates or adapters per task. A task's own decoder has its own in any case.
      encoder: further options of the backbone, those of `build` in backbones/NAME.py.

    Raises:
      UserError: an option that is none of these, or that means nothing to the backbone or the decoder.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    one_of("model.backbone", backbone, BACKBONES)
    one_of("model.norm", norm, NORMS)
    one_of("model.output_stride", output_stride, resnet.OUTPUT_STRIDES)
    one_of("model.decoder", decoder, DECODERS)
    one_of("model.encoder_se", encoder_se, modulation.SE)
    one_of("model.decoder_se", decoder_se, DECODERS[decoder], f"with the decoder {decoder!r} ")
    if decoder == "ubernet" and not skip:
        raise UserError("config.model.skip means nothing to the decoder 'ubernet': leave it out")
    if width <= 0:
        raise UserError(f"config.model.width is {width}: give a positive factor")
    if decoder_width <= 0 or decoder_width % 16:
        raise UserError(f"config.model.decoder_width is {decoder_width}: give a multiple of 16")
    kind = jnp.dtype(dtype)

    def modulated(se: str) -> Modulation:
        own = se == "task" or adapters
        return Modulation(se, adapters, own if task_norm is None else task_norm)

    own = {"depth": depth, "stride_in_1x1": stride_in_1x1, "adapters": adapters}
    if backbone != "resnet":
        for key, value in own.items():
            if value:
                raise UserError(
                    f"config.model.{key} means nothing to the backbone {backbone!r}: leave it out"
                )
    options = {"width": width, "norm": norm, "output_stride": output_stride}
    if backbone == "resnet":
        one_of("model.depth", depth or 26, resnet.BLOCKS)
        options |= {"depth": depth or 26, "stride_in_1x1": stride_in_1x1}
    if (mine := modulated(encoder_se)) != Modulation():
        options["modulation"] = mine
    network = names.build("models.backbones", backbone, {**options, **encoder}, dtype)

    rates = tuple(rate * 16 // output_stride for rate in deeplab.RATES)

    def make_decoder(task: str | None, name: str) -> nn.Module:
        if decoder == "ubernet":
            return ubernet.UberNetDecoder(tasks[task].channels, norm, kind, name=name)
        gates = modulated(decoder_se) if decoder == "shared" else Modulation(decoder_se)
        light = backbone == "mobilenet_v2"
        return deeplab.DeepLabDecoder(decoder_width, rates, norm, gates, skip, light, kind, name=name)

    return MultiTaskNet(tasks, network, make_decoder, decoder != "shared", kind)

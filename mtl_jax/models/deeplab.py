"""Multi-task DeepLabv3(+): one encoder, one decoder for all tasks or one for each, one head per task.

With modulation (models/modulation.py), what is shared behaves differently for each task, and a task's
prediction runs the modules that all tasks share and its own, no other's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models import modulation
from mtl_jax.models.backbones import mobilenet_v2, resnet
from mtl_jax.models.decoders import deeplab, ubernet
from mtl_jax.models.heads import DenseHead, GlobalHead
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BACKBONES = ("resnet", "mobilenet_v2")
NORMS = ("batch", "group")  # statistics of an instance would be those of one pixel in the ASPP's average
DECODERS = {  # and the gates that each can have
    "shared": modulation.SE,
    "own": ("none", "task"),
    "ubernet": ("none",),
}


class DeepLab(nn.Module):
    """A model as models/prediction.py describes it.

    `init` makes the parameters of the tasks that it is called with: name all of them. Submodules are
    `encoder`, `decoder` or `decoder@<task>`, and `head@<task>`. A task with one label per image
    reads the encoder's last map.

    Attributes:
      tasks: by name; a dense one has a prediction per pixel, any other one per image.
      encoder: (image, train, task) -> maps, fine to coarse.
      make_decoder: (task, or None for all; name) -> a module (maps, train, task) -> features.
      own_decoders: a decoder for each task.
      dtype: of the heads' computation.
    """

    tasks: Mapping[str, Task]
    encoder: nn.Module
    make_decoder: Callable[[str | None, str], nn.Module]
    own_decoders: bool
    dtype: Any

    def setup(self):
        dense = [name for name, task in self.tasks.items() if task.dense]
        owners = dense if self.own_decoders else [None]
        self.decoders = {task: self.make_decoder(task, owned("decoder", task)) for task in owners}
        self.heads = {
            name: (DenseHead if task.dense else GlobalHead)(
                task.channels, self.dtype, name=owned("head", name)
            )
            for name, task in self.tasks.items()
        }

    def encode(self, image: jax.Array, task: str, train: bool) -> list[jax.Array]:
        """Image f32[B,H,W,3] RGB in [0, 1] -> maps of the encoder's four stages."""
        mean, std = jnp.array(IMAGENET_MEAN), jnp.array(IMAGENET_STD)
        return self.encoder((image - mean) / std, train, task)

    def decode(self, maps: list[jax.Array], task: str, train: bool) -> jax.Array:
        """Maps of the encoder -> features f[B,h,w,C], what the task's head reads."""
        if not self.tasks[task].dense:
            return maps[-1]
        return self.decoders[task if self.own_decoders else None](maps, train, task)

    def features(self, image: jax.Array, task: str, train: bool) -> jax.Array:
        """f32[B,H,W,3] -> f[B,h,w,C], what the task's head reads."""
        return self.decode(self.encode(image, task, train), task, train)

    def predict(self, features: jax.Array, task: str, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> raw f32[B,H,W,channels]; [B,1,1,channels] for one label per image."""
        return self.heads[task](features, size)

    def __call__(self, image: jax.Array, tasks: Sequence[str], train: bool) -> Prediction:
        """f32[B,H,W,3] -> Prediction of `tasks`; what they have in common runs once, the rest for each."""
        one_encoding = not self.encoder.modulation.per_task
        one_decoding = one_encoding and not self.own_decoders and not self.decoders[None].modulation.per_task
        all_dense = all(task.dense for task in self.tasks.values())
        encoded, features, maps, decoded = {}, {}, None, None
        for task in tasks:
            if maps is None or not one_encoding:
                maps = self.encode(image, task, train)
                if one_encoding and not (one_decoding and all_dense):
                    maps = self._mark("maps", maps)
            encoded[task] = features[task] = maps[-1]
            if self.tasks[task].dense:
                if decoded is None or not one_decoding:
                    decoded = self.decode(maps, task, train)
                    if one_decoding and all_dense:
                        decoded = self._mark("features", decoded)
                features[task] = decoded
        outputs = {task: self.predict(features[task], task, image.shape[1:3]) for task in tasks}
        return Prediction(outputs, features, encoded)

    def _mark(self, name: str, shared: Any) -> Any:
        return shared if self.is_initializing() else self.perturb(name, shared)

    @property
    def last_shared(self) -> tuple[str, ...]:
        """Path, in the parameters, of the last convolution that all tasks share."""
        if self.own_decoders or not all(task.dense for task in self.tasks.values()):
            return ("encoder", *self.encoder.last)
        return ("decoder", "refine2", "conv")


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
) -> DeepLab:
    """A DeepLabv3+, or a DeepLabv3, for `tasks`.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      backbone: the encoder, "resnet" or "mobilenet_v2", whose decoder is the light form.
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

    Raises:
      UserError: an option that is none of these, or that means nothing to the backbone or the decoder.
    """
    _check("dtype", dtype, ("float32", "bfloat16"))
    _check("model.backbone", backbone, BACKBONES)
    _check("model.norm", norm, NORMS)
    _check("model.output_stride", output_stride, resnet.OUTPUT_STRIDES)
    _check("model.decoder", decoder, DECODERS)
    _check("model.encoder_se", encoder_se, modulation.SE)
    _check("model.decoder_se", decoder_se, DECODERS[decoder], f"with the decoder {decoder!r} ")
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

    if backbone == "resnet":
        depth = 26 if depth is None else depth
        _check("model.depth", depth, resnet.BLOCKS)
        encoder = resnet.ResNet(depth, width, norm, output_stride, stride_in_1x1, modulated(encoder_se), kind)
    else:
        for key, value in {"depth": depth, "stride_in_1x1": stride_in_1x1, "adapters": adapters}.items():
            if value:
                raise UserError(
                    f"config.model.{key} means nothing to the backbone {backbone!r}: leave it out"
                )
        encoder = mobilenet_v2.MobileNetV2(width, norm, output_stride, modulated(encoder_se), kind)

    rates = tuple(rate * 16 // output_stride for rate in deeplab.RATES)

    def make_decoder(task: str | None, name: str) -> nn.Module:
        if decoder == "ubernet":
            return ubernet.UberNetDecoder(tasks[task].channels, norm, kind, name=name)
        mine = modulated(decoder_se) if decoder == "shared" else Modulation(decoder_se)
        light = backbone == "mobilenet_v2"
        return deeplab.DeepLabDecoder(decoder_width, rates, norm, mine, skip, light, kind, name=name)

    return DeepLab(tasks, encoder, make_decoder, decoder != "shared", kind)


def _check(key, value, known, where=""):
    if value not in known:
        raise UserError(f"config.{key} is {value!r}: {where}choose one of {', '.join(map(str, known))}")

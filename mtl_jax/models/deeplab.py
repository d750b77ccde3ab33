"""Multi-task DeepLabv3+: one encoder, one decoder for all tasks or one for each, one head per task."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models import norm as norms
from mtl_jax.models.backbones import resnet
from mtl_jax.models.decoders import deeplab
from mtl_jax.models.heads import DenseHead, GlobalHead
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import Task

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DeepLab(nn.Module):
    """A model as models/prediction.py describes it.

    `init` makes the parameters of the tasks that it is called with: name all of them. Submodules are
    `encoder`, `decoder` or `decoder_<task>`, and `head_<task>`. A task with one label per image
    reads the encoder's last map.

    Attributes:
      tasks: by name; a dense one has a prediction per pixel, any other one per image.
      depth, width, norm, output_stride, stride_in_1x1: see backbones/resnet.py.
      decoder_width: channels of the decoder.
      shared_decoder: one decoder for all dense tasks, or one for each.
      dtype: of the computation.
    """

    tasks: Mapping[str, Task]
    depth: int
    width: float
    norm: str
    output_stride: int
    stride_in_1x1: bool
    decoder_width: int
    shared_decoder: bool
    dtype: Any

    def setup(self):
        self.encoder = resnet.ResNet(
            self.depth, self.width, self.norm, self.output_stride, self.stride_in_1x1, self.dtype
        )
        rates = tuple(rate * 16 // self.output_stride for rate in deeplab.RATES)
        options = (self.decoder_width, rates, self.norm, self.dtype)
        dense = [name for name, task in self.tasks.items() if task.dense]
        if self.shared_decoder:
            self.decoder = deeplab.DeepLabDecoder(*options)
        else:
            self.decoder = {name: deeplab.DeepLabDecoder(*options) for name in dense}
        self.head = {
            name: (DenseHead if task.dense else GlobalHead)(task.channels, self.dtype)
            for name, task in self.tasks.items()
        }

    def encode(self, image: jax.Array, train: bool) -> list[jax.Array]:
        """Image f32[B,H,W,3] RGB in [0, 1] -> maps of the encoder's four stages."""
        mean, std = jnp.array(IMAGENET_MEAN), jnp.array(IMAGENET_STD)
        return self.encoder((image - mean) / std, train)

    def decode(self, maps: list[jax.Array], tasks: Sequence[str], train: bool) -> dict[str, jax.Array]:
        """Features f[B,h,w,C] of each of the tasks; a shared decoder runs once."""
        dense = [task for task in tasks if self.tasks[task].dense]
        features = {task: maps[-1] for task in tasks}
        if self.shared_decoder:
            return features | dict.fromkeys(dense, self.decoder(maps, train) if dense else None)
        return features | {task: self.decoder[task](maps, train) for task in dense}

    def features(self, image: jax.Array, task: str, train: bool) -> jax.Array:
        """f32[B,H,W,3] -> f[B,h,w,C], what the task's head reads."""
        return self.decode(self.encode(image, train), (task,), train)[task]

    def predict(self, features: jax.Array, task: str, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> raw f32[B,H,W,channels]; [B,1,1,channels] for one label per image."""
        return self.head[task](features, size)

    def __call__(self, image: jax.Array, tasks: Sequence[str], train: bool) -> Prediction:
        """f32[B,H,W,3] -> Prediction of `tasks`; the encoder runs once, other tasks' parts do not."""
        maps = self.encode(image, train)
        features = self.decode(maps, tasks, train)
        outputs = {task: self.predict(features[task], task, image.shape[1:3]) for task in tasks}
        return Prediction(outputs, features, maps[-1])


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    depth: int = 26,
    width: float = 1.0,
    norm: str = "batch",
    output_stride: int = 16,
    stride_in_1x1: bool = False,
    decoder_width: int = 256,
    shared_decoder: bool = True,
) -> DeepLab:
    """A DeepLabv3+ with a residual encoder for `tasks`.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      depth: 26, 50, 101 or 152 layers.
      width: multiplies the encoder's channels.
      norm: "batch" or "group".
      output_stride: 8, 16 or 32.
      stride_in_1x1: see backbones/resnet.py.
      decoder_width: channels of the decoder, a multiple of 16.
      shared_decoder: one decoder for all tasks, with a 1x1 head each, or a decoder per task.

    Raises:
      UserError: an option that is none of these.
    """
    _check("dtype", dtype, ("float32", "bfloat16"))
    _check("model.depth", depth, resnet.BLOCKS)
    _check("model.norm", norm, norms.KINDS)
    _check("model.output_stride", output_stride, resnet.OUTPUT_STRIDES)
    if width <= 0:
        raise UserError(f"config.model.width is {width}: give a positive factor")
    if decoder_width <= 0 or decoder_width % 16:
        raise UserError(f"config.model.decoder_width is {decoder_width}: give a multiple of 16")
    return DeepLab(
        tasks,
        depth,
        width,
        norm,
        output_stride,
        stride_in_1x1,
        decoder_width,
        shared_decoder,
        jnp.dtype(dtype),
    )


def _check(key, value, known):
    if value not in known:
        raise UserError(f"config.{key} is {value!r}: choose one of {', '.join(map(str, known))}")

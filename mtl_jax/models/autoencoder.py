"""Networks over maps of labels and predictions, which help to train a network and are then dropped.

Each reads every example by itself: a result does not depend on the rest of the batch. There are two
architectures of both kinds: the SegNet, and the ResNet-50 of output stride 8 with a DeepLabv3 decoder.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.backbones import resnet, segnet
from mtl_jax.models.decoders import deeplab
from mtl_jax.models.decoders.segnet import SegNetDecoder
from mtl_jax.models.heads import DenseHead, SegNetHead
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.naming import owned

ARCHITECTURES = ("segnet", "resnet50")


def _encoder(part, film=0):
    modulation = Modulation(film=film)
    if part.arch == "segnet":
        return segnet.SegNetEncoder(part.width, "instance", modulation, part.dtype)
    return resnet.ResNet(50, part.width, "instance", 8, modulation=modulation, dtype=part.dtype)


def _decoder(part):
    if part.arch == "segnet":
        return SegNetDecoder(part.width, "instance", part.dtype)
    features = resnet.EXPANSION * resnet.base_channels(part.width)
    rates = tuple(2 * rate for rate in deeplab.RATES)  # for the output stride 8
    # Groups, since the average of the ASPP is one pixel of each channel.
    return deeplab.DeepLabDecoder(features, rates, "group", skip=False, dtype=part.dtype)


class AutoEncoder(nn.Module):
    """Encoder, decoder and head over maps, as many channels as they have (g of Nishi et al., CVPR 2024).

    With other channels in its output than in its input it maps one task to another (Li et al., CVPR 2022).

    Attributes:
      channels: of the output.
      arch: one of ARCHITECTURES.
      width: multiplies the channels of the layers between.
    """

    channels: int
    arch: str = "segnet"
    width: float = 1.0
    dtype: Any = jnp.float32

    def setup(self):
        self.encoder, self.decoder = _encoder(self), _decoder(self)
        head = SegNetHead if self.arch == "segnet" else DenseHead
        self.head = head(self.channels, self.dtype)

    def encode(self, x: jax.Array) -> list[jax.Array]:
        """f32[B,H,W,C] -> what `decode` reads; last the latent f[B,h,w,D], of non-negative values.

        With width 1, D is 512 at stride 32 (segnet) or 2048 at stride 8 (resnet50).
        """
        return self.encoder(x, train=True)

    def decode(self, maps: list[jax.Array], size: tuple[int, int]) -> jax.Array:
        """What `encode` returns -> raw f32[B,H,W,channels] at the size (H, W) of the input."""
        return self.head(self.decoder(maps, train=True), size)

    def __call__(self, x: jax.Array) -> jax.Array:
        """f32[B,H,W,C] -> raw f32[B,H,W,channels]."""
        return self.decode(self.encode(x), x.shape[1:3])


class MappingEncoder(nn.Module):
    """One encoder for the maps of all tasks, conditioned on the pair compared (Li et al., CVPR 2022).

    Submodules are a unit `input@<task>` for each task and the `encoder`, in which every normalisation is
    followed by a column of tables `film`. The latent is as large as that of a network of the same
    architecture and width: SegNet, or DeepLab with a ResNet-50 of output stride 8.

    Attributes:
      widths: task -> channels of its map.
      columns: of the tables: one for each pair of tasks.
      arch: one of ARCHITECTURES.
      width: multiplies all other numbers of channels.
    """

    widths: Mapping[str, int]
    columns: int
    arch: str = "segnet"
    width: float = 1.0
    dtype: Any = jnp.float32

    def setup(self):
        first = (
            segnet.scaled(segnet.STAGES[0][0], self.width)
            if self.arch == "segnet"
            else resnet.base_channels(self.width)
        )
        unit = functools.partial(segnet.unit, first, norm="instance", dtype=self.dtype)
        self.inputs = {task: unit(name=owned("input", task)) for task in self.widths}
        self.encoder = _encoder(self, self.columns)

    def embed(self, x: jax.Array, task: str) -> jax.Array:
        """Map f32[B,H,W,widths[task]] -> f[B,H,W,64 * width]."""
        return self.inputs[task](x, train=True)

    def encode(self, x: jax.Array, column: jax.Array) -> jax.Array:
        """What `embed` returns, and the column i32[B] of each example -> latent f[B,h,w,D]."""
        return self.encoder(x, True, column)[-1]

    def __call__(self, maps: Mapping[str, jax.Array], column: jax.Array) -> dict[str, jax.Array]:
        """{task: f32[B,H,W,width]}, i32[B] -> {task: latent f[B,h,w,D]}."""
        return {task: self.encode(self.embed(x, task), column) for task, x in maps.items()}

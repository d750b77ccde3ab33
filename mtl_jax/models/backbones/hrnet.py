"""HRNetV2 (Wang et al., TPAMI 2020): branches of strides 4 to 32 side by side, which exchange their maps.

There is no dilation: the map of stride 4 is as deep as the others.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm
from mtl_jax.models.resize import resize


class Depth(NamedTuple):
    """What the members of one depth have in common.

    Attributes:
      bottlenecks: of stage 1.
      inner: channels of their 3x3 convolutions.
      modules: of stages 2, 3 and 4.
      blocks: of each branch of a module.
    """

    bottlenecks: int
    inner: int
    modules: tuple[int, int, int]
    blocks: int


DEPTHS = {  # as released for ImageNet: W18 ... W64, "W18 small v2" and, with width 16, "W18 small v1"
    "full": Depth(4, 64, (1, 4, 3), 4),
    "small_v2": Depth(2, 64, (1, 3, 2), 2),
    "small_v1": Depth(1, 32, (1, 1, 1), 2),
}
NORMS = ("batch", "group")
UPSAMPLING = ("bilinear", "nearest")
STEM = 64
EXPANSION = 4  # of a bottleneck
TOP_INNER, TOP = 32, 2048  # channels of the first bottleneck and the last convolution before the classifier


def settled(x: jax.Array) -> jax.Array:
    """f[B,H,W,C] as it is, which XLA on CPU is thereby made to store.

    It would compute x again in everything that reads it, all along a chain of shortcuts and into the
    gradient: W18 at 64x64 then takes 24 instead of 5 s to compile, its gradient 113 instead of
    25 s, and eight blocks on 48x48x18 53 instead of 36 ms to run. Of the operations that XLA fuses with no
    other, this one leaves every value as it is: the second tap of the window lies on the padding's zeros.
    """
    if jax.default_backend() != "cpu":
        return x
    height = x.shape[1]
    return jax.lax.reduce_window(
        x,
        np.zeros((), x.dtype),
        jax.lax.add,
        window_dimensions=(1, 2, 1, 1),
        window_strides=(1, 1, 1, 1),
        padding=((0, 0), (0, height), (0, 0), (0, 0)),
        window_dilation=(1, height, 1, 1),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions, or a bottleneck (1x1 - 3x3 - 1x1), beside a shortcut.

    The shortcut is a 1x1 convolution where channels differ.

    Attributes:
      features: channels of the 3x3 convolutions; a bottleneck's output has four times as many.
      unit: makes a ConvNorm.
    """

    features: int
    bottleneck: bool
    unit: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,H,W,C] -> f[B,H,W,features], or four times as many channels."""
        inner = functools.partial(self.unit, self.features, activation=nn.relu)
        if self.bottleneck:
            outputs, size = EXPANSION * self.features, 1
            y = inner(1, name="conv1")(x, train)
            y = inner(3, name="conv2")(y, train)
        else:
            outputs, size = self.features, 3
            y = inner(3, name="conv1")(x, train)
        last = "conv3" if self.bottleneck else "conv2"
        y = self.unit(outputs, size, zero=True, name=last)(y, train)
        if x.shape[-1] != outputs:
            x = self.unit(outputs, 1, name="shortcut")(x, train)
        return settled(nn.relu(x + y))


class Exchange(nn.Module):
    """Blocks on each branch, then to each branch the sum of all, brought to its resolution and channels.

    From a coarser branch a map comes by a 1x1 convolution and upsampling (`up2to1`), from a finer one by
    3x3 convolutions of stride 2 (`down1to3_1`, `down1to3_2`), of which the last changes the channels.

    Attributes:
      blocks: of each branch.
      upsampling: see HRNet.
      unit: makes a ConvNorm.
    """

    blocks: int
    upsampling: str
    unit: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, maps: list[jax.Array], train: bool) -> list[jax.Array]:
        """Maps of all branches, fine to coarse -> maps of the same shapes."""
        maps = [self._branch(i, x, train) for i, x in enumerate(maps)]
        branches = range(len(maps))
        sums = [sum(self._moved(maps, source, target, train) for source in branches) for target in branches]
        return [settled(nn.relu(total)) for total in sums]

    def _branch(self, branch, x, train):
        for block in range(self.blocks):
            name = f"branch{branch + 1}_block{block + 1}"
            x = Residual(x.shape[-1], False, self.unit, name=name)(x, train)
        return x

    def _moved(self, maps, source, target, train):
        x, like = maps[source], maps[target]
        if source > target:
            x = self.unit(like.shape[-1], 1, name=f"up{source + 1}to{target + 1}")(x, train)
            return upsample(x, like.shape[1:3], 2 ** (source - target), self.upsampling)
        for step in range(source + 1, target + 1):
            x = self.unit(
                like.shape[-1] if step == target else x.shape[-1],
                3,
                2,
                activation=None if step == target else nn.relu,
                name=f"down{source + 1}to{target + 1}_{step - source}",
            )(x, train)
        return x


def upsample(x: jax.Array, size: tuple[int, int], factor: int, kind: str) -> jax.Array:
    """f[B,h,w,C] -> f[B,H,W,C], where h = ceil(H / factor).

    Bilinear is between the pixels' centres when both maps are laid over each other. Nearest repeats each
    pixel `factor` times and cuts what is too much, so that it stays over the pixels that it was made of.
    """
    if kind == "bilinear":
        return resize(x, size)
    for axis in (1, 2):
        x = jnp.repeat(x, factor, axis)
    return x[:, : size[0], : size[1]]


class HRNet(nn.Module):
    """The encoder: stem, a stage of bottlenecks at stride 4, then stages of two, three and four branches.

    Attributes:
      width: channels of the finest branch (18 in W18); each coarser one has twice as many.
      depth: a key of DEPTHS.
      upsampling: how coarse maps reach fine branches: "bilinear", as in the released networks for dense
        prediction, or "nearest", as in the ImageNet classifiers from which both kinds start.
      norm: "batch" or "group".
      momentum: of batch norm's running statistics; 0.99 as in multi-task networks (Vandenhende et al.,
        ECCV 2020, as released), where the ImageNet classifiers have 0.9.
      top: append what the ImageNet classifier reads, f[B,1,1,2048].
      remat: compute what is inside blocks and modules again for the gradient, instead of keeping it.
    """

    width: int = 18
    depth: str = "full"
    upsampling: str = "bilinear"
    norm: str = "batch"
    momentum: float = 0.99
    top: bool = False
    remat: bool = False
    dtype: Any = jnp.float32

    modulation = Modulation()

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the parameters of the convolution to the coarsest map from the branch next to it."""
        return f"stage4_module{DEPTHS[self.depth].modules[-1]}", "down3to4_1", "conv"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | None = None) -> list[jax.Array]:
        """Normalised image f32[B,H,W,3] -> maps of strides 4, 8, 16, 32 with width * 1, 2, 4, 8 channels."""
        del task
        bottlenecks, inner, modules, blocks = DEPTHS[self.depth]
        unit = functools.partial(ConvNorm, norm=self.norm, dtype=self.dtype, momentum=self.momentum)
        residual, exchange = Residual, Exchange
        if self.remat:
            residual, exchange = (nn.remat(block, static_argnums=(2,)) for block in (Residual, Exchange))
        for number in (1, 2):
            x = unit(STEM, 3, 2, activation=nn.relu, name=f"stem{number}")(x, train)
        for block in range(bottlenecks):
            x = residual(inner, True, unit, name=f"stage1_block{block + 1}")(x, train)
        maps = [x]
        for stage, repeats in enumerate(modules, 2):
            maps = self._entered(maps, stage, unit, train)
            for module in range(repeats):
                name = f"stage{stage}_module{module + 1}"
                maps = exchange(blocks, self.upsampling, unit, name=name)(maps, train)
        return [*maps, self._pooled(maps, residual, unit, train)] if self.top else maps

    def _entered(self, maps, stage, unit, train):
        """The branches of a stage: those of the one before, with the wanted channels, and a coarser one."""
        entered = []
        for branch in range(stage):
            new = branch == len(maps)
            x, channels = maps[-1 if new else branch], self.width * 2**branch
            if new or x.shape[-1] != channels:
                name = f"transition{stage}_branch{branch + 1}"
                x = unit(channels, 3, 2 if new else 1, activation=nn.relu, name=name)(x, train)
            entered.append(x)
        return entered

    def _pooled(self, maps, residual, unit, train):
        """What the ImageNet classifier reads: each map widened and the finer ones added to the coarser."""
        biased = functools.partial(unit, use_bias=True, activation=nn.relu)
        total = None
        for branch, x in enumerate(maps):
            x = residual(TOP_INNER * 2**branch, True, unit, name=f"top_widen{branch + 1}")(x, train)
            if total is not None:
                x += biased(x.shape[-1], 3, 2, name=f"top_down{branch}")(total, train)
            total = x
        return jnp.mean(biased(TOP, 1, name="top_last")(total, train), (1, 2), keepdims=True)


def build(
    dtype: str,
    width: int = 18,
    depth: str = "full",
    upsampling: str = "bilinear",
    norm: str = "batch",
    momentum: float = 0.99,
    top: bool = False,
    remat: bool = False,
) -> HRNet:
    """An HRNet whose computation has this `dtype`; for the options see there.

    Raises:
      UserError: an option that is none of those.
    """
    for key, value, known in (
        ("depth", depth, DEPTHS),
        ("upsampling", upsampling, UPSAMPLING),
        ("norm", norm, NORMS),
    ):
        one_of(f"model.encoder.{key}", value, known)
    if width < 1:
        raise UserError(
            f"config.model.encoder.width is {width}: give the channels of the finest branch, as 18"
        )
    if not 0 <= momentum < 1:
        raise UserError(f"config.model.encoder.momentum is {momentum}: give a share from 0 up to 1, as 0.99")
    return HRNet(width, depth, upsampling, norm, momentum, top, remat, jnp.dtype(dtype))

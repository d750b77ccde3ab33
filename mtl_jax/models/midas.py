"""MiDaS v2.1: depth from one image, of any camera (Ranftl et al., TPAMI 2020, arXiv:1907.01341).

It tells inverse depth up to an unknown scale and shift, larger where nearer. The structure is that of the
release `isl-org/MiDaS` v2_1: an encoder, and a decoder that refines its last map with each finer one.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models.backbones import efficientnet, resnet
from mtl_jax.models.conv import Conv
from mtl_jax.models.resize import resize

VARIANTS = ("large", "small")
STRIDE = 32  # sides of its images are multiples
LEVELS = 4


class Residual(nn.Module):
    """Two 3x3 convolutions, each of what is rectified, beside a shortcut.

    Attributes:
      rectified: the shortcut carries what the first convolution reads. In the large network, as released,
        the ReLU works in place and so changes the input; its weights were trained with that.
    """

    rectified: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,h,w,C] -> f[B,h,w,C]."""
        y = nn.relu(x)
        shortcut = y if self.rectified else x
        for name in ("conv1", "conv2"):
            y = Conv(x.shape[-1], use_bias=True, dtype=self.dtype, name=name)(nn.relu(y))
        return shortcut + y


class Fusion(nn.Module):
    """The refined coarser maps and this one, summed, refined and enlarged.

    Attributes:
      outputs: channels of the result.
      light: see MiDaS.
    """

    outputs: int
    light: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, coarser: jax.Array | None) -> jax.Array:
        """f[B,h,w,C], and the same of the coarser maps unless this is the last -> f[B,2h,2w,outputs]."""
        if coarser is not None:
            x = coarser + Residual(not self.light, self.dtype, name="own")(x)
        x = Residual(not self.light, self.dtype, name="sum")(x)
        x = _resample(x, (2 * x.shape[1], 2 * x.shape[2]), _linear)
        return Conv(self.outputs, 1, use_bias=True, dtype=self.dtype, name="output")(x) if self.light else x


class MiDaS(nn.Module):
    """The network, from a normalised image to inverse depth.

    Attributes:
      encoder: (image, train) -> four maps of strides 4, 8, 16 and 32.
      features: channels of the decoder at its finest level.
      light: the form of the small release: channels double with each coarser level, and a 1x1 convolution
        after each step halves them again; shortcuts are the inputs as they are.
    """

    encoder: nn.Module
    features: int = 256
    light: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array, train: bool) -> jax.Array:
        """f32[B,H,W,3] -> f32[B,H,W,1], not negative; raises UserError unless 32 divides H and W."""
        size = image.shape[1:3]
        if size[0] % STRIDE or size[1] % STRIDE:
            raise UserError(f"MiDaS gets an image of {size[0]} x {size[1]}: give multiples of {STRIDE}")
        widths = [self.features * 2**level if self.light else self.features for level in range(LEVELS)]
        outputs = [self.features, *widths[:-1]]
        maps = self.encoder(image, train)
        x = None
        for level in reversed(range(LEVELS)):
            source = Conv(widths[level], dtype=self.dtype, name=f"lateral{level + 1}")(maps[level])
            x = Fusion(outputs[level], self.light, self.dtype, name=f"fusion{level + 1}")(source, x)
        x = Conv(self.features // 2, use_bias=True, dtype=self.dtype, name="output1")(x)
        x = Conv(32, use_bias=True, dtype=self.dtype, name="output2")(resize(x, size))
        x = Conv(1, 1, use_bias=True, dtype=self.dtype, name="output3")(nn.relu(x))
        return nn.relu(x.astype(jnp.float32))


def estimate(network: Callable[[jax.Array], jax.Array], image: jax.Array, longest: int = 384) -> jax.Array:
    """Inverse depth of images of any size, as the release finds it: bicubic to the working size and back.

    Args:
      network: a MiDaS with its variables: normalised f32[B,h,w,3] -> f32[B,h,w,1].
      image: normalised, f32[B,H,W,3].
      longest: see `working_size`.

    Returns:
      f32[B,H,W,1], relative and without unit; beside sharp edges it may be a little below 0.
    """
    inner = working_size(image.shape[1:3], longest)
    return _resample(network(_resample(image, inner, _cubic)), image.shape[1:3], _cubic)


def working_size(size: tuple[int, int], longest: int = 384) -> tuple[int, int]:
    """(height, width) of an image -> those that the release works with: the longer side is `longest`, the
    shorter one in proportion, both to the nearest multiple of 32. It is 384 for the large network and 256
    for the small one.
    """
    scale = longest / max(size)
    height, width = (STRIDE * max(1, min(round(n * scale / STRIDE), longest // STRIDE)) for n in size)
    return height, width


def _resample(x, size, weights):
    """f[B,h,w,C] -> f[B,H,W,C] by the weights of inputs in each output, f[H,h] and f[W,w]."""
    if x.shape[1:3] == tuple(size):
        return x
    rows, columns = (jnp.asarray(weights(*n), x.dtype) for n in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("bhwc,ih,jw->bijc", x, rows, columns, precision=jax.lax.Precision.HIGHEST)


def _linear(length, size):
    """Linear interpolation at `size` places from the first pixel's centre to the last one's."""
    places = np.arange(size) * ((length - 1) / (size - 1))
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(length)))


def _cubic(length, size):
    """Cubic convolution (Keys, 1981) with a = -0.75, OpenCV's and torch's; the border is repeated."""
    places = (np.arange(size) + 0.5) * (length / size) - 0.5
    taps = np.floor(places)[:, None] + np.arange(-1, 3)
    d = np.abs(places[:, None] - taps)
    values = np.where(d <= 1, (1.25 * d - 2.25) * d * d + 1, ((-0.75 * d + 3.75) * d - 6) * d + 3)
    weights = np.zeros((size, length))
    np.add.at(weights, (np.arange(size)[:, None], np.clip(taps, 0, length - 1).astype(int)), values)
    return weights


def make(dtype: Any, variant: str = "large") -> MiDaS:
    """A released network: "large" on a ResNeXt-101 32x8d, or "small" on an EfficientNet-Lite3.

    Raises:
      UserError: another variant.
    """
    dtype = jnp.dtype(dtype)
    if variant == "large":
        encoder = resnet.ResNet(101, output_stride=STRIDE, groups=32, group_width=8, dtype=dtype)
        return MiDaS(encoder, dtype=dtype)
    if variant == "small":
        member = efficientnet.VARIANTS["lite3"]
        encoder = efficientnet.EfficientNet(
            member.width,
            member.depth,
            lite=True,
            output_stride=STRIDE,
            padding="same",
            epsilon=1e-3,
            dtype=dtype,
        )
        return MiDaS(encoder, 64, light=True, dtype=dtype)
    raise UserError(f"there is no MiDaS {variant!r}: choose one of {', '.join(VARIANTS)}")

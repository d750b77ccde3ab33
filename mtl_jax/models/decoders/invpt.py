"""InvPT decoder (Ye & Xu, Inverted Pyramid Multi-task Transformer, ECCV 2022, section 3).

The paper leaves numbers open; those here are of the authors' release. Maps of all tasks are f[B,N,h,w,C],
in the order of the tasks.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.backbones.vit import INIT
from mtl_jax.models.conv import Conv, ConvTranspose
from mtl_jax.models.naming import owned
from mtl_jax.models.norm import ConvNorm
from mtl_jax.models.resize import resize

PREDICTION = 64  # channels that the first stage has beyond the preliminary features
STAGES = 3  # each has half the channels and twice the side of the one before
HEADS = 2
EXPANSION = 4  # of the hidden layer of a stage's perceptron
EPSILON = 1e-5  # of every normalisation


class Preliminary(nn.Module):
    """One task's own decoder: features and a first prediction from them, then both mixed.

    Attributes:
      width: channels of the features.
      channels: of the prediction.
      mixed: channels of the mixture.
    """

    width: int
    channels: int
    mixed: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """f[B,h,w,C] -> mixture f[B,h,w,mixed], raw prediction f[B,h,w,channels]."""
        for name, width in (("conv1", x.shape[-1]), ("conv2", self.width)):
            x = ConvNorm(width, activation=nn.relu, dtype=self.dtype, name=name)(x, train)
        raw = Conv(self.channels, 1, use_bias=True, dtype=self.dtype, name="predict")(x)
        both = jnp.concatenate([x, raw], -1)
        return Conv(self.mixed, 1, use_bias=True, dtype=self.dtype, name="mix")(both), raw


class Enlarge(nn.Module):
    """Bilinear interpolation, then two 3x3 convolutions of dilation 2."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int], train: bool) -> jax.Array:
        """f[B,h,w,C] -> f[B,*size,width]."""
        x = resize(x, size)
        for name in ("conv1", "conv2"):
            unit = ConvNorm(self.width, dilation=2, activation=nn.relu, dtype=self.dtype, name=name)
            x = unit(x, train)
        return x


class Attention(nn.Module):
    """Every second pixel of each task's map attends to means of all tasks' maps.

    The scores of one stage are its message to the next, which mixes them with its own.

    Attributes:
      pool: side of the squares that are averaged; those at the lower and right border may be smaller.
    """

    tasks: tuple[str, ...]
    pool: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, message: jax.Array | None, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps, and the scores of the stage before if there is one -> maps, scores.

        f[B,N,h,w,C] -> f[B,N,ceil(h/2),ceil(w/2),C]; the scores are those of K means and HEADS heads
        before the softmax, f32[B,N,ceil(h/2),ceil(w/2),K,HEADS].
        """
        batch, width = x.shape[0], x.shape[-1]

        def sparse(task: str) -> nn.Module:
            return ConvNorm(width, stride=2, groups=width, dtype=self.dtype, name=owned("query_conv", task))

        def heads(name: str, maps: jax.Array) -> jax.Array:
            y = nn.Dense(width, dtype=self.dtype, kernel_init=INIT, name=name)(maps)
            return y.reshape(batch, -1, HEADS, width // HEADS)

        places, means = _each(self.tasks, sparse, x, train), _means(x, self.pool)
        grid = places.shape[1:4]
        query, key, value = heads("query", places), heads("key", means), heads("value", means)
        scores = jnp.einsum("bqhc,bkhc->bqkh", query, key, preferred_element_type=jnp.float32)
        scores = scores.reshape(batch, *grid, -1, HEADS) * width**-0.5  # the released scale: of all heads
        if message is not None:
            message = _resize(message.reshape(*message.shape[:4], -1), grid[1:]).reshape(scores.shape)
            scores = nn.Dense(HEADS, name="fuse")(jnp.concatenate([scores, message], -1))
        weights = nn.softmax(scores, axis=-2).astype(value.dtype)
        y = jnp.einsum("bqkh,bkhc->bqhc", weights.reshape(batch, -1, *scores.shape[-2:]), value)
        y = nn.Dense(width, dtype=self.dtype, kernel_init=INIT, name="out")(y.reshape(batch, *grid, width))
        return y, scores


class Stage(nn.Module):
    """An UP-Transformer block: maps are enlarged, attend to each other, and pass a perceptron.

    Attributes:
      width: channels of its maps.
      pool: see Attention.
    """

    tasks: tuple[str, ...]
    width: int
    pool: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, skip: jax.Array | None, message: jax.Array | None, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Maps, the encoder's map, the scores of the stage before -> maps, scores of Attention.

        f[B,N,h,w,C], f[B,H,W,width] -> f[B,N,H,W,width]; the first stage has None of both and keeps
        the maps' size and channels.
        """
        if skip is not None:
            x = _each(self.tasks, self._enlarge, x, skip.shape[1:3], train) + skip[:, None]
        y = nn.LayerNorm(EPSILON, self.dtype, name="norm1")(x)
        y, scores = Attention(self.tasks, self.pool, self.dtype, name="attention")(y, message, train)
        x += _resize(y, x.shape[2:4])
        y = nn.LayerNorm(EPSILON, self.dtype, name="norm2")(x)
        y = nn.Dense(EXPANSION * self.width, dtype=self.dtype, kernel_init=INIT, name="mlp1")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(self.width, dtype=self.dtype, kernel_init=INIT, name="mlp2")(y), scores

    def _enlarge(self, task: str) -> nn.Module:
        return Enlarge(self.width, self.dtype, name=owned("enlarge", task))


class Result(nn.Module):
    """What a stage adds to the sum: its maps, normalised over all tasks' channels at a pixel in one.

    Attributes:
      width: channels of the result; each task has a 1x1 convolution to them where the maps have others.
    """

    tasks: tuple[str, ...]
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,N,h,w,C] -> f[B,N,h,w,width]."""
        joint = (1, -1)
        x = nn.LayerNorm(EPSILON, self.dtype, reduction_axes=joint, feature_axes=joint, name="norm")(x)
        if x.shape[-1] == self.width:
            return x

        def widen(task: str) -> nn.Module:
            return Conv(self.width, 1, use_bias=True, dtype=self.dtype, name=owned("conv", task))

        return _each(self.tasks, widen, x)


class InvPTDecoder(nn.Module):
    """Preliminary decoders at half the encoder's resolution, three stages, and the sum of their maps.

    The first stage has the preliminary decoders' resolution, the second the encoder's, the third twice
    that. Nothing in it is random: the stochastic depth that the release configures (0.15) comes to 0 with
    one block per stage. The release holds layers whose output nothing reads: a 3x3 convolution of the
    encoder's third map, a mixture of scores and 1x1 convolutions of the sum in the first stage, and a
    normalisation behind the last one. They are left out here and part of the published number of
    parameters.

    Attributes:
      channels: of each task's prediction.
      width: channels of the preliminary features; a multiple of 8.
      remat: recompute the stages for the gradient instead of keeping what they computed.
    """

    channels: Mapping[str, int]
    width: int = 512
    remat: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], train: bool
    ) -> tuple[dict[str, jax.Array], list[dict[str, jax.Array]]]:
        """The encoder's maps f[B,h,w,C], of which the first, second and last are read.

        Returns:
          {task: f[B,4h,4w,width + 64]}, and [{task: raw f[B,ceil(h/2),ceil(w/2),channels]}].
        """
        first, second, *_, last = maps
        tasks, widest = tuple(self.channels), self.width + PREDICTION
        widths = [widest // 2**number for number in range(STAGES)]
        height, width = last.shape[1:3]
        start = resize(last, (-(-height // 2), -(-width // 2)))
        mixed, raw = {}, {}
        for task, channels in self.channels.items():
            decoder = Preliminary(self.width, channels, widest, self.dtype, name=owned("preliminary", task))
            mixed[task], raw[task] = decoder(start, train)
        skips = (
            None,
            Conv(widths[1], use_bias=True, dtype=self.dtype, name="skip1")(second),
            ConvTranspose(widths[2], 3, use_bias=True, dtype=self.dtype, name="skip2")(first),
        )

        block = nn.remat(Stage, static_argnums=(4,)) if self.remat else Stage
        x, scores, total = jnp.stack([mixed[task] for task in tasks], 1), None, 0
        for number, skip in enumerate(skips):
            stage = block(tasks, widths[number], 2 ** (number + 1), self.dtype, name=f"stage{number}")
            x, scores = stage(x, skip, scores, train)
            y = Result(tasks, widest, self.dtype, name=f"result{number}")(x)
            total += _resize(y, (4 * height, 4 * width))

        def project(task: str) -> nn.Module:
            return ConvNorm(
                widest,
                use_bias=True,
                kernel_init=INIT,
                activation=nn.relu,
                dtype=self.dtype,
                name=owned("project", task),
            )

        return {task: project(task)(total[:, i], train) for i, task in enumerate(tasks)}, [raw]


def _each(tasks: tuple[str, ...], make: Callable[[str], nn.Module], x: jax.Array, *args: Any) -> jax.Array:
    """Runs each task's own module on its map of f[B,N,h,w,C]."""
    return jnp.stack([make(task)(x[:, i], *args) for i, task in enumerate(tasks)], 1)


def _resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """f[B,N,h,w,C] -> f[B,N,*size,C]."""
    return jax.vmap(lambda y: resize(y, size), 1, 1)(x)


def _means(x: jax.Array, side: int) -> jax.Array:
    """Means of squares f[B,N,h,w,C] -> f[B,N,ceil(h/side),ceil(w/side),C], at the border of what is there."""
    window = (1, side, side)
    padding = ((0, 0), *((0, -n % side) for n in x.shape[2:4]))
    exact = x.astype(jnp.float32)  # the sums
    return nn.avg_pool(exact, window, window, padding, count_include_pad=False).astype(x.dtype)

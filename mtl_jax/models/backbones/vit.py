"""Vision transformers (Dosovitskiy et al., ICLR 2021) whose tokens are maps for dense prediction."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.errors import UserError, one_of
from mtl_jax.models.modulation import Modulation

# Width, depth, heads, patch: table 1 of the paper, and table 2 of Steiner et al. (TMLR 2022) for Ti and S.
VARIANTS = {
    "ti16": (192, 12, 3, 16),
    "s16": (384, 12, 6, 16),
    "s32": (384, 12, 6, 32),
    "b16": (768, 12, 12, 16),
    "b32": (768, 12, 12, 32),
    "l16": (1024, 24, 16, 16),
    "l32": (1024, 24, 16, 32),
}
EXPANSION = 4  # of the hidden layer of a block's perceptron
EPSILON = 1e-6  # of every normalisation

INIT = nn.initializers.truncated_normal(0.02)


def resample(position: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Position embeddings f[h,w,C] for a grid of another size, f[*size,C].

    Bicubic (Keys, a = -1/2) between the centres of patches, with a wider kernel where the grid shrinks
    (antialiasing), as timm has it.
    """
    if position.shape[:2] == tuple(size):
        return position
    return jax.image.resize(position, (*size, position.shape[2]), "cubic", antialias=True)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Softmax attention f[B,T,N,D] of T tokens in N heads, weights in float32 -> f[B,T,N,D]."""
    if jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(query, key, value)
    # Forward 19 against 47 ms, gradient 82 against 149 ms for 2x577x12x64.
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.matmul(query, key.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores *= query.shape[-1] ** -0.5
    return jnp.matmul(nn.softmax(scores).astype(value.dtype), value).swapaxes(1, 2)


class Block(nn.Module):
    """Attention among all tokens, then a perceptron on each: both normalise first and are added.

    Attributes:
      heads: of the attention; a divisor of C.
      drop: probability that an example goes without a branch in training (stochastic depth, Huang et
        al., ECCV 2016).
    """

    heads: int
    drop: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,T,C] -> f[B,T,C]; draws from the rng "dropout" if training with `drop`."""
        width = x.shape[-1]
        norm = functools.partial(nn.LayerNorm, EPSILON, self.dtype)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=INIT)
        drop = functools.partial(nn.Dropout, self.drop, (1, 2), deterministic=not train)
        y = dense(3 * width, name="qkv")(norm(name="norm1")(x))
        heads = y.reshape(*y.shape[:2], 3, self.heads, width // self.heads)
        y = attention(*(heads[:, :, i] for i in range(3))).reshape(x.shape)
        x += drop()(dense(width, name="out")(y))
        y = dense(EXPANSION * width, name="mlp1")(norm(name="norm2")(x))
        return x + drop()(dense(width, name="mlp2")(nn.gelu(y, approximate=False)))


class ViT(nn.Module):
    """The encoder: patches and a class token, position embeddings, blocks, a last normalisation.

    All maps have the grid of the patches. The image may have any size: it is filled up with zeros on the
    right and below to whole patches, and the position embeddings are resampled to its grid.

    Attributes:
      width: C, channels of the tokens.
      depth: blocks.
      heads: of the attention; a divisor of `width`.
      patch: side of a patch, in pixels.
      grid: rows and columns of the position embeddings; best those of the training crop.
      taps: the blocks, counted from 1, after which the tokens are maps, rising and ending with the last
        one; by default those after each quarter (Ye & Xu, ECCV 2022: 6, 12, 18 and 24 of L).
      drop_path: `drop` of the last block; the first has 0, and it rises linearly.
      remat: recompute the blocks for the gradient instead of keeping what they computed.
      top: the normalised class token too, which the released classifiers read.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    grid: tuple[int, int] = (24, 24)
    taps: tuple[int, ...] = ()
    drop_path: float = 0.0
    remat: bool = False
    top: bool = False
    dtype: Any = jnp.float32

    @property
    def modulation(self) -> Modulation:
        """None: tasks share all of it."""
        return Modulation()

    @property
    def last(self) -> tuple[str, ...]:
        """Path of the last dense layer's parameters."""
        return f"block{self.depth}", "mlp2"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | None = None) -> list[jax.Array]:
        """Normalised image f32[B,H,W,3] -> maps f[B, ceil(H / patch), ceil(W / patch), C], one per tap.

        The last one has passed the last normalisation, the others have not. With `top`, f[B,1,1,C] follows.
        """
        del task
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=INIT, name="embed")(_patches(x, self.patch))
        batch, *grid, width = x.shape
        position = self.param("position", INIT, (*self.grid, width))
        x = (x + resample(position, grid).astype(self.dtype)).reshape(batch, -1, width)
        token = self.param("class_token", nn.initializers.zeros, (width,))
        token = token + self.param("class_position", INIT, (width,))  # not in place: it may be the caller's
        x = jnp.concatenate([jnp.broadcast_to(token.astype(self.dtype), (batch, 1, width)), x], 1)

        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        taps = self.taps or quarters(self.depth)
        maps = []
        for number in range(1, self.depth + 1):
            drop = self.drop_path * (number - 1) / max(1, self.depth - 1)
            x = block(self.heads, drop, self.dtype, name=f"block{number}")(x, train)
            if number == self.depth:
                x = nn.LayerNorm(EPSILON, self.dtype, name="norm")(x)
            if number in taps:
                maps.append(x[:, 1:].reshape(batch, *grid, width))
        return [*maps, x[:, :1, None]] if self.top else maps


def quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter, counted from 1."""
    return tuple(depth * part // 4 for part in range(1, 5))


def _patches(x: jax.Array, side: int) -> jax.Array:
    """f[B,H,W,C] -> f[B, ceil(H / side), ceil(W / side), side * side * C], zeros where the image ends."""
    batch, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = x.shape[1] // side, x.shape[2] // side
    x = x.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
    return x.reshape(batch, rows, columns, side * side * channels)


def build(
    dtype: Any,
    variant: str = "b16",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    patch: int | None = None,
    grid: tuple[int, int] = (24, 24),
    taps: tuple[int, ...] = (),
    drop_path: float = 0.0,
    remat: bool = False,
    top: bool = False,
) -> ViT:
    """The encoder of a published size.

    Args:
      dtype: of the computation.
      variant: a key of VARIANTS.
      width, depth, heads, patch: instead of the variant's.
      grid, taps, drop_path, remat, top: see ViT. Published weights have a grid of 14x14 (224 pixels) or
        24x24 (384); they are resampled to this one.

    Raises:
      UserError: an option that makes no network.
    """
    one_of("model.encoder.variant", variant, VARIANTS)
    given = {"width": width, "depth": depth, "heads": heads, "patch": patch}
    sizes = {
        key: usual if value is None else value
        for (key, value), usual in zip(given.items(), VARIANTS[variant], strict=True)
    }
    grid, taps = tuple(grid), tuple(taps)
    for key, value in sizes.items():
        if value < 1:
            raise UserError(f"config.model.encoder.{key} is {value}: give a positive number")
    width, depth, heads = sizes["width"], sizes["depth"], sizes["heads"]
    if width % heads:
        raise UserError(f"config.model.encoder.heads is {heads}: give a divisor of the width {width}")
    if len(grid) != 2 or min(grid) < 1:
        raise UserError(f"config.model.encoder.grid is {grid}: give rows and columns of patches")
    if not taps and depth % 4:
        raise UserError(
            f"config.model.encoder.taps is empty, and {depth} blocks have no quarters: name the blocks"
            f" whose tokens are maps, the last of them {depth}"
        )
    if taps and (list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] != depth):
        raise UserError(
            f"config.model.encoder.taps is {taps}: give rising numbers of blocks, the last {depth}"
        )
    if not 0 <= drop_path < 1:
        raise UserError(f"config.model.encoder.drop_path is {drop_path}: give a probability below 1")
    return ViT(
        **sizes, grid=grid, taps=taps, drop_path=drop_path, remat=remat, top=top, dtype=jnp.dtype(dtype)
    )

"""Random views of images for self-supervision, in JAX: windows, colours, blur, mirror images and turns.

All functions take one image f32[H,W,3] in [0, 1], and give one; `jax.vmap` them over images and keys.
"""

import functools

import jax
import jax.numpy as jnp

from mtl_jax.data.rand_augment import LUMA

Size = tuple[int, int]

# Of the random resized crop (Szegedy et al., CVPR 2015): shares of the area, width / height, trials.
AREA, ASPECT, TRIALS = (0.08, 1.0), (3 / 4, 4 / 3), 10

# MoCo v2 (Chen et al., 2020): probabilities, by how much the strengths of `jitter` differ from those that
# change nothing, and the range of sigma in pixels.
JITTERED, GREY, BLURRED, MIRRORED = 0.8, 0.2, 0.5, 0.5
STILL, SPREAD = (1.0, 1.0, 1.0, 0.0), (0.4, 0.4, 0.4, 0.1)
SIGMA = (0.1, 2.0)
REACH = 8  # pixels on either side that a blurred one sees, four times the largest sigma


def windows(rng: jax.Array, image: jax.Array, window: Size, shift: int, size: Size) -> list[jax.Array]:
    """Windows A, at a random place, and B, (shift, shift) further down and right, resized to `size` each.

    A begins uniformly in [0, H - shift - h) x [0, W - shift - w), for `window` (h, w).
    """
    room = [full - shift - part for full, part in zip(image.shape[:2], window, strict=True)]
    corner = jax.random.randint(rng, (2,), 0, jnp.asarray(room))
    return [crop(image, corner + offset, jnp.asarray(window), size) for offset in (0, shift)]


def contrast_views(
    rng: jax.Array, image: jax.Array, window: Size, shift: int, size: Size
) -> tuple[jax.Array, jax.Array]:
    """The query and the key view f32[*size,3]: `windows` A and B, each changed on its own."""
    place, *keys = jax.random.split(rng, 3)
    query, key = map(changed, keys, windows(place, image, window, shift, size))
    return query, key


def rotation_view(rng: jax.Array, image: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """A square view f32[side,side,3] turned counter-clockwise by k quarters, and k i32[], all equally likely.

    A square is turned within itself: no border shows by how much.
    """
    place, mirror, turn = jax.random.split(rng, 3)
    view = mirrored(mirror, random_resized_crop(place, image, (side, side)))
    quarters = jax.random.randint(turn, (), 0, 4)
    return jax.lax.switch(quarters, [functools.partial(jnp.rot90, k=k) for k in range(4)], view), quarters


def random_resized_crop(rng: jax.Array, image: jax.Array, size: Size) -> jax.Array:
    """A box of random area, shape and place, resized: torchvision's RandomResizedCrop."""
    shape, place = jax.random.split(rng)
    extent = draw_extent(shape, image.shape[:2])
    corner = jnp.floor(jax.random.uniform(place, (2,)) * (jnp.asarray(image.shape[:2]) - extent + 1))
    return crop(image, corner.astype(jnp.int32), extent, size)


def draw_extent(rng: jax.Array, full: Size) -> jax.Array:
    """Height and width i32[2] of a random box: the first trial's that fits, or the largest of its shape."""
    area, aspect = jax.random.split(rng)
    share = jax.random.uniform(area, (TRIALS,), minval=AREA[0], maxval=AREA[1]) * full[0] * full[1]
    low, high = jnp.log(jnp.asarray(ASPECT))
    ratio = jnp.exp(jax.random.uniform(aspect, (TRIALS,), minval=low, maxval=high))
    extents = jnp.round(jnp.sqrt(jnp.stack([share / ratio, share * ratio], -1)))
    largest = jnp.round(jnp.asarray([min(full[0], full[1] / ASPECT[0]), min(full[1], full[0] * ASPECT[1])]))
    extents = jnp.concatenate([extents, largest[None]]).astype(jnp.int32)
    fits = jnp.all((extents > 0) & (extents <= jnp.asarray(full)), -1)
    return extents[jnp.argmax(fits)]


def crop(image: jax.Array, corner: jax.Array, extent: jax.Array, size: Size) -> jax.Array:
    """The box at `corner` i32[2] of `extent` i32[2] (rows, columns), resized bilinearly to `size`.

    Where it is reduced, each pixel is a weighted mean of all that it covers (antialiasing).
    """
    rows, columns = map(_weights, corner, extent, image.shape[:2], size)
    return jnp.einsum("ih,hwc,jw->ijc", rows, image, columns, precision="highest")


def _weights(first: jax.Array, length: jax.Array, full: int, out: int) -> jax.Array:
    """f32[out,full]: how much of each pixel of a line is in each of `out` that its part is resized to."""
    scale = length / out
    centre = (jnp.arange(out) + 0.5) * scale
    pixel = jnp.arange(full) - first + 0.5
    weight = jnp.maximum(1 - jnp.abs(pixel - centre[:, None]) / jnp.maximum(scale, 1.0), 0.0)
    weight = jnp.where((pixel > 0) & (pixel < length), weight, 0.0)
    return weight / jnp.sum(weight, -1, keepdims=True)


def changed(rng: jax.Array, image: jax.Array) -> jax.Array:
    """The image in other colours, or grey, blurred, mirrored: each, or not, at random."""
    colours, grey, soft, mirror = jax.random.split(rng, 4)
    image = _sometimes(JITTERED, colours, jittered, image)
    image = _sometimes(GREY, grey, lambda _, image: jnp.broadcast_to(luma(image), image.shape), image)
    image = _sometimes(BLURRED, soft, _blurred, image)
    return mirrored(mirror, image)


def _sometimes(probability: float, rng: jax.Array, change, image: jax.Array) -> jax.Array:
    chance, rng = jax.random.split(rng)
    return jnp.where(jax.random.bernoulli(chance, probability), change(rng, image), image)


def mirrored(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Left and right exchanged, or not."""
    return _sometimes(MIRRORED, rng, lambda _, image: image[:, ::-1], image)


def _blurred(rng: jax.Array, image: jax.Array) -> jax.Array:
    return blur(image, jax.random.uniform(rng, minval=SIGMA[0], maxval=SIGMA[1]))


def jittered(rng: jax.Array, image: jax.Array) -> jax.Array:
    """Random brightness, contrast, saturation and hue, changed in random order."""
    amounts, order = jax.random.split(rng)
    strength = jnp.asarray(STILL) + jnp.asarray(SPREAD) * jax.random.uniform(amounts, (4,), minval=-1.0)
    return jitter(image, strength, jax.random.permutation(order, 4))


def jitter(image: jax.Array, strength: jax.Array, order: jax.Array) -> jax.Array:
    """The four changes by `strength` f32[4], in the `order` i32[4] of their numbers."""
    changes = (brightness, contrast, saturation, hue)
    branches = [functools.partial(_change, change, number) for number, change in enumerate(changes)]
    for number in order:
        image = jax.lax.switch(number, branches, strength, image)
    return image


def _change(change, number: int, strength: jax.Array, image: jax.Array) -> jax.Array:
    return change(image, strength[number])


def luma(image: jax.Array) -> jax.Array:
    """f32[H,W,1], how bright each pixel is."""
    return jnp.sum(image * jnp.asarray(LUMA), -1, keepdims=True)


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _mixed(image, jnp.zeros(()), factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Stretched about the image's mean grey."""
    return _mixed(image, jnp.mean(luma(image)), factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Stretched about each pixel's grey."""
    return _mixed(image, luma(image), factor)


def _mixed(image: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0.0, 1.0)


def hue(image: jax.Array, turn: jax.Array) -> jax.Array:
    """Every colour turned by so much of the colour circle; its largest and smallest channel's values stay."""
    value = jnp.max(image, -1, keepdims=True)
    spread = value - jnp.min(image, -1, keepdims=True)
    red, green, blue = jnp.split(image, 3, -1)
    is_red, is_green, _ = jnp.split(image == value, 3, -1)
    beside = jnp.where(is_red, green - blue, jnp.where(is_green, blue - red, red - green))
    sixth = beside / jnp.where(spread > 0, spread, 1.0) + jnp.where(is_red, 0, jnp.where(is_green, 2, 4))
    place = (sixth + 6 * turn + jnp.asarray([5.0, 3.0, 1.0])) % 6
    return value - spread * jnp.clip(jnp.minimum(place, 4 - place), 0.0, 1.0)


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Gaussian blur, of 2 REACH + 1 pixels each way; the image goes on as its mirror image."""
    weights = jax.nn.softmax(-0.5 * (jnp.arange(-REACH, REACH + 1) / sigma) ** 2)
    for axis in (0, 1):
        border = [(REACH, REACH) if axis == n else (0, 0) for n in range(3)]
        padded, length = jnp.pad(image, border, "reflect"), image.shape[axis]
        image = sum(
            weight * jax.lax.slice_in_dim(padded, at, at + length, axis=axis)
            for at, weight in enumerate(weights)
        )
    return image

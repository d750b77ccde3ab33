"""RandAugment (Cubuk et al., 2020) with photometric operations alone, so that dense labels stay true.

The operations are those of Pillow's ImageEnhance and ImageOps, in TensorFlow for the input pipeline. Each
takes and returns an image f32[H,W,3] in [0,1]; choice and strengths are those of Nishi et al., CVPR 2024.
"""

from collections.abc import Callable

import tensorflow as tf

LEVELS = 6  # 0 to 5, of the 31 that RandAugment knows: the colours change mildly
LUMA = (0.299, 0.587, 0.114)  # grey value of R, G, B (ITU-R BT.601)


def rand_augment(image: tf.Tensor, seed: tf.Tensor, operations: int) -> tf.Tensor:
    """So many random operations, one after another.

    Args:
      image: f32[H,W,3] in [0,1].
      seed: int[2]; equal seeds give equal results.
      operations: how many.

    Returns:
      f32[H,W,3] in [0,1].
    """
    which, levels, signs = draw(seed, operations)
    for k in range(operations):
        image = apply(image, which[k], levels[k], signs[k])
    return image


def draw(seed: tf.Tensor, operations: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(i32[n] index of the operation, i32[n] level, f32[n] sign -1 or 1), each even and independent."""
    uniform = tf.random.stateless_uniform([3, operations], seed)
    which = tf.cast(uniform[0] * len(OPERATIONS), tf.int32)
    return which, tf.cast(uniform[1] * LEVELS, tf.int32), tf.where(uniform[2] < 0.5, -1.0, 1.0)


def apply(image: tf.Tensor, which: tf.Tensor, level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    """The operation number `which` of OPERATIONS at a level; `sign` says whether it adds or takes away."""
    strength = tf.cast(level, tf.float32)
    changed = tf.switch_case(which, [lambda op=op: op(image, strength, sign) for op in OPERATIONS.values()])
    return tf.ensure_shape(changed, image.shape)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """0 is black, 1 the image."""
    return clip(image * factor)


def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """0 is the grey picture, 1 the image."""
    mix = factor * tf.eye(3) + (1 - factor) * tf.constant(LUMA)[:, None]
    return clip(tf.reshape(tf.reshape(image, (-1, 3)) @ mix, tf.shape(image)))


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """0 is the image's mean grey everywhere, 1 the image."""
    mean = tf.tensordot(_over_pixels(tf.reduce_mean, image), tf.constant(LUMA), 1)
    return clip(image * factor + (1 - factor) * mean)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """0 is the image smoothed by the 3x3 weights 1, in the centre 5, 1 the image; its border stays."""
    rows = image[:-2] + image[1:-1] + image[2:]
    inner = image[1:-1, 1:-1]
    smooth = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * inner) * (1 / 13)
    return clip(image + tf.pad((factor - 1) * (inner - smooth), ((1, 1), (1, 1), (0, 0))))


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the `bits` (i32) highest bits of each 8-bit value."""
    kept = tf.bitwise.left_shift(-1, 8 - bits)
    return _from_bytes(tf.bitwise.bitwise_and(_to_bytes(image), kept))


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the 8-bit values from `threshold` (f32, 0 to 255) on."""
    value = tf.round(image * 255)
    high = tf.cast(value >= threshold, tf.float32)
    return (value + high * (255 - 2 * value)) * (1 / 255)  # tf.where takes ten times as long


def auto_contrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to [0, 1]; a channel of one value stays."""
    low, high = _over_pixels(tf.reduce_min, image), _over_pixels(tf.reduce_max, image)
    flat = high <= low
    low, scale = tf.where(flat, 0.0, low), tf.where(flat, 1.0, 1 / (high - low))
    return clip((image - _row(low, image)) * _row(scale, image))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes the histogram of 8-bit values of each channel as even as a map of values can."""
    value = _to_bytes(image) + _row(256 * tf.range(3), image)  # one histogram for all channels
    counts = tf.reshape(tf.math.bincount(tf.reshape(value, [-1]), minlength=768, maxlength=768), (3, 256))
    below = tf.cumsum(counts, axis=1, exclusive=True)
    step = tf.reduce_max(tf.where(counts > 0, below, 0), axis=1, keepdims=True) // 255  # all but the last
    even = (below + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(even, 255), tf.range(256))
    return tf.gather(_from_bytes(tf.reshape(table, [-1])), value)


def clip(image: tf.Tensor) -> tf.Tensor:
    """To [0, 1], in a third of clip_by_value's time."""
    return tf.raw_ops.ClipByValue(t=image, clip_value_min=0.0, clip_value_max=1.0)


OPERATIONS = {
    "identity": lambda image, level, sign: image,
    "brightness": lambda image, level, sign: brightness(image, 1 + sign * 0.03 * level),
    "color": lambda image, level, sign: color(image, 1 + sign * 0.03 * level),
    "contrast": lambda image, level, sign: contrast(image, 1 + sign * 0.03 * level),
    "sharpness": lambda image, level, sign: sharpness(image, 1 + sign * 0.03 * level),
    "posterize": lambda image, level, sign: posterize(image, tf.where(level < 4, 8, 7)),
    "solarize": lambda image, level, sign: solarize(image, 255 - 8.5 * level),
    "auto_contrast": lambda image, level, sign: auto_contrast(image),
    "equalize": lambda image, level, sign: equalize(image),
}
"""(image, level f32 in 0 to 5, sign) -> image, by name."""


# TensorFlow is slow where the innermost loop would run over three channels: hence the next two.


def _over_pixels(reduce: Callable[..., tf.Tensor], image: tf.Tensor) -> tf.Tensor:
    """f32[3]: over the rows, then the columns."""
    return reduce(reduce(image, axis=0), axis=0)


def _row(channels: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
    """[W,3]: a value per channel, as broad as the image."""
    return tf.broadcast_to(channels, tf.shape(image)[1:])


def _to_bytes(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(image * 255), tf.int32)


def _from_bytes(value: tf.Tensor) -> tf.Tensor:
    return tf.cast(value, tf.float32) * (1 / 255)

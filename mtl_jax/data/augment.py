"""Random changes of one training example: seeded, without state, the same geometry for image and labels."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from mtl_jax.tasks.base import Task

tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX

GREY = 0.5  # padding of images: near zero after the usual normalisation


class Geometry(NamedTuple):
    """How the canvas that the network sees is filled from the image; every field is a scalar tensor.

    The image's rows [top, top + height) are resized to the rows [above, above + inner_height) of the
    canvas, columns alike; then the canvas is turned about its centre, counter-clockwise as seen, and
    mirrored left to right.
    """

    top: tf.Tensor
    height: tf.Tensor
    above: tf.Tensor
    inner_height: tf.Tensor
    left: tf.Tensor
    width: tf.Tensor
    beside: tf.Tensor
    inner_width: tf.Tensor
    scale: tf.Tensor
    radians: tf.Tensor
    flip: tf.Tensor


Warp = Callable[[tf.Tensor, str, float], tf.Tensor]
"""(array [h,w,C], interpolation, fill) -> [H,W,C]; keeps the dtype, or turns it to f32 where it must mix."""


def augment(
    image: tf.Tensor,
    labels: Mapping[str, tf.Tensor],
    tasks: Mapping[str, Task],
    size: tuple[int, int],
    options: Any,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """Random scale, crop or padding, rotation, mirroring and colours of one example.

    Args:
      image: uint8[h,w,3].
      labels: canonical labels [h,w,C] by task; those of tasks that are not dense keep their values.
      tasks: the tasks by name.
      size: (H, W) of the result.
      options: `flip` (bool), `scale` ((lo, hi), of which one factor is drawn evenly), `rotate` (up to so many
        degrees either way), `color` (relative strength of brightness, contrast and saturation).
      seed: int[2]; equal seeds give equal results.

    Returns:
      f32[H,W,3] in [0,1], and the labels [H,W,C] in `label_dtype`, `fill` where they are unknown.
    """
    draw = tf.random.stateless_uniform([8], seed)
    geometry = _draw_geometry(tf.shape(image)[:2], size, options, draw[:5])
    warp = _turned(geometry, size) if options.rotate else _upright(geometry, size, options)
    image = tf.cast(warp(image, "bilinear", 255 * GREY), tf.float32) * (1 / 255)
    if options.color:
        image = _jitter(image, 1 + options.color * (2 * draw[5:] - 1))
    return image, {name: _warp_label(label, tasks[name], geometry, warp) for name, label in labels.items()}


def _draw_geometry(native: tf.Tensor, size: tuple[int, int], options: Any, draw: tf.Tensor) -> Geometry:
    lo, hi = options.scale
    scale = lo + (hi - lo) * draw[0]
    return Geometry(
        *_draw_side(native[0], size[0], scale, draw[1]),
        *_draw_side(native[1], size[1], scale, draw[2]),
        scale=scale,
        radians=(2 * draw[3] - 1) * (options.rotate * (math.pi / 180)),
        flip=(draw[4] < 0.5) & bool(options.flip),
    )


def _draw_side(native: tf.Tensor, wanted: int, scale: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """(start, length) in the image and (start, length) on the canvas, along one axis.

    Both are whole pixels, so that at scale 1 every value is copied and none is blurred.
    """

    def rounded(x: tf.Tensor) -> tf.Tensor:
        return tf.maximum(1, tf.cast(tf.round(x), tf.int32))

    def place_in(room: tf.Tensor) -> tf.Tensor:
        return tf.cast(place * tf.cast(room + 1, tf.float32), tf.int32)

    length = tf.minimum(native, rounded(wanted / scale))
    inner = tf.minimum(wanted, rounded(tf.cast(native, tf.float32) * scale))
    return place_in(native - length), length, place_in(wanted - inner), inner


def _upright(g: Geometry, size: tuple[int, int], options: Any) -> Warp:
    """Without rotation: crop, resize, pad, mirror; about twice as fast as the general transform."""
    keeps_scale = tuple(options.scale) == (1.0, 1.0)

    def nearest(x: tf.Tensor, fill: float) -> tf.Tensor:
        height, width, channels = tf.unstack(tf.shape(x))
        count = height * width  # also the index of `fill`, which is put behind the last pixel
        rows = _sources(g.top, g.height, g.above, g.inner_height, size[0], height)
        columns = _sources(g.left, g.width, g.beside, g.inner_width, size[1], count)
        columns = tf.cond(g.flip, lambda: tf.reverse(columns, [0]), lambda: columns)
        index = tf.minimum(rows[:, None] * width + columns, count)
        pixels = tf.pad(
            tf.reshape(x, (count, channels)), ((0, 1), (0, 0)), constant_values=tf.cast(fill, x.dtype)
        )
        return tf.ensure_shape(tf.gather(pixels, index), (*size, x.shape[2]))

    def block(x: tf.Tensor, fill: float) -> tf.Tensor:
        x = x[g.top : g.top + g.height, g.left : g.left + g.width]
        if not keeps_scale:
            x = tf.image.resize(x, (g.inner_height, g.inner_width))
        below, right = size[0] - g.above - g.inner_height, size[1] - g.beside - g.inner_width
        x = tf.pad(x, ((g.above, below), (g.beside, right), (0, 0)), constant_values=tf.cast(fill, x.dtype))
        x = tf.cond(g.flip, lambda: tf.reverse(x, [1]), lambda: x)
        return tf.ensure_shape(x, (*size, x.shape[2]))

    def warp(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return block(x, fill) if keeps_scale or interpolation == "bilinear" else nearest(x, fill)

    return warp


def _sources(
    start: tf.Tensor, length: tf.Tensor, before: tf.Tensor, inner: tf.Tensor, count: int, outside: tf.Tensor
) -> tf.Tensor:
    """i32[count]: the image row (or column) whose pixel covers the centre of each canvas row."""
    at = tf.range(count) - before
    return tf.where((at >= 0) & (at < inner), start + (2 * at + 1) * length // (2 * inner), outside)


def _turned(g: Geometry, size: tuple[int, int]) -> Warp:
    """With rotation: one transform straight from the image, which also fills the corners from it."""
    matrix = _canvas_to_image(g, size)

    def warp(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x[None] if interpolation == "nearest" else tf.cast(x[None], tf.float32),
            transforms=matrix[None],
            output_shape=size,
            fill_value=fill,
            interpolation=interpolation.upper(),
            fill_mode="CONSTANT",
        )[0]

    return warp


def _canvas_to_image(g: Geometry, size: tuple[int, int]) -> tf.Tensor:
    """f32[8]: (x, y) of the canvas -> (a0 x + a1 y + a2, b0 x + b1 y + b2) of the image.

    Pixel centres are at whole numbers; rows point down, so a turn that is seen counter-clockwise takes
    (x, y) to (x cos + y sin, -x sin + y cos), and this is its inverse.
    """
    cos, sin = tf.cos(g.radians), tf.sin(g.radians)
    mirror = tf.where(g.flip, -1.0, 1.0)
    y0, x0 = (size[0] - 1) / 2, (size[1] - 1) / 2
    top, height, above, inner_height, left, width, beside, inner_width = (
        tf.cast(v, tf.float32) for v in g[:8]
    )
    step_y, step_x = height / inner_height, width / inner_width  # image pixels per canvas pixel
    start_y = step_y * (y0 - above + 0.5) - 0.5 + top  # where the canvas' centre lies in the image
    start_x = step_x * (x0 - beside + 0.5) - 0.5 + left
    a0, a1 = step_x * cos * mirror, -step_x * sin
    b0, b1 = step_y * sin * mirror, step_y * cos
    zero = tf.zeros(())
    return tf.stack([a0, a1, start_x - a0 * x0 - a1 * y0, b0, b1, start_y - b0 * x0 - b1 * y0, zero, zero])


def _warp_label(label: tf.Tensor, task: Task, g: Geometry, warp: Warp) -> tf.Tensor:
    """Places by `warp`, values by the task."""
    if not task.dense:
        return tf.cast(label, task.label_dtype)
    if task.interpolation == "nearest":
        label = tf.cast(warp(_able_to_hold(task.fill, label), "nearest", task.fill), task.label_dtype)
    else:  # a mixture with an unknown value is unknown
        label = tf.cast(label, task.label_dtype)
        known = task.known(label)
        mixed = warp(tf.where(known, label, 0), "bilinear", 0.0)
        label = tf.where(warp(tf.cast(known, label.dtype), "bilinear", 0.0) > 0.999, mixed, task.fill)
    label = task.rotate(task.rescale(label, g.scale), g.radians)
    return tf.cond(g.flip, lambda: task.flip(label), lambda: label)


def _able_to_hold(fill: float, label: tf.Tensor) -> tf.Tensor:
    """The label, made float if `fill` needs it; else as stored, which is quicker to resample."""
    return tf.cast(label, tf.float32) if math.isnan(fill) and not label.dtype.is_floating else label


def _jitter(image: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast and saturation of f32[H,W,3], times `factors` f32[3].

    They are one affine map of the colours: saturation mixes each colour with its grey value (ITU-R
    BT.601 weights), contrast stretches about the image's mean.
    """
    brightness, contrast, saturation = tf.unstack(factors)
    grey = tf.constant([[0.299], [0.587], [0.114]]) * tf.ones((1, 3))
    colours = brightness * contrast * (saturation * tf.eye(3) + (1 - saturation) * grey)
    shift = brightness * (1 - contrast) * tf.reduce_mean(image)
    mixed = tf.reshape(tf.reshape(image, (-1, 3)) @ colours, tf.shape(image)) + shift
    return tf.raw_ops.ClipByValue(
        t=mixed, clip_value_min=0.0, clip_value_max=1.0
    )  # a third of clip_by_value's time

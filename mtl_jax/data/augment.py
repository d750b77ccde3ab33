"""Random changes of one training example: seeded, without state, the same geometry for image and labels."""

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
"""(array [h,w,C], interpolation, fill) -> [H,W,C]"""


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
    image = warp(tf.cast(image, tf.float32) * (1 / 255), "bilinear", GREY)
    if options.color:
        image = _jitter(image, 1 + options.color * (2 * draw[5:] - 1))
    return image, {
        name: _warp_label(tf.cast(label, tasks[name].label_dtype), tasks[name], geometry, warp)
        if tasks[name].dense
        else tf.cast(label, tasks[name].label_dtype)
        for name, label in labels.items()
    }


def _draw_geometry(native: tf.Tensor, size: tuple[int, int], options: Any, draw: tf.Tensor) -> Geometry:
    lo, hi = options.scale
    scale = lo + (hi - lo) * draw[0]
    return Geometry(
        *_draw_side(native[0], size[0], scale, draw[1]),
        *_draw_side(native[1], size[1], scale, draw[2]),
        scale=scale,
        radians=(2 * draw[3] - 1) * (options.rotate * (3.141592653589793 / 180)),
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
    """Without rotation: crop, resize, pad, mirror; 2.5 times as fast as the general transform."""
    keeps_scale = tuple(options.scale) == (1.0, 1.0)

    def warp(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        x = x[g.top : g.top + g.height, g.left : g.left + g.width]
        if not keeps_scale:
            x = tf.image.resize(x, (g.inner_height, g.inner_width), interpolation)
        below, right = size[0] - g.above - g.inner_height, size[1] - g.beside - g.inner_width
        x = tf.pad(x, ((g.above, below), (g.beside, right), (0, 0)), constant_values=tf.cast(fill, x.dtype))
        x = tf.cond(g.flip, lambda: x[:, ::-1], lambda: x)
        return tf.ensure_shape(x, (*size, None))

    return warp


def _turned(g: Geometry, size: tuple[int, int]) -> Warp:
    """With rotation: one transform straight from the image, which also fills the corners from it."""
    matrix = _canvas_to_image(g, size)

    def warp(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x[None],
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
    return tf.stack(
        [a0, a1, start_x - a0 * x0 - a1 * y0, b0, b1, start_y - b0 * x0 - b1 * y0, zero, zero]
    )


def _warp_label(label: tf.Tensor, task: Task, g: Geometry, warp: Warp) -> tf.Tensor:
    """Places by `warp`, values by the task."""
    if task.interpolation == "nearest":
        label = warp(label, "nearest", task.fill)
    else:  # a mixture with an unknown value is unknown
        known = tf.cast(task.known(label), label.dtype)
        mixed = warp(tf.where(known > 0, label, 0), "bilinear", 0.0)
        label = tf.where(warp(known, "bilinear", 0.0) > 0.999, mixed, tf.cast(task.fill, label.dtype))
    label = task.rotate(task.rescale(label, g.scale), g.radians)
    return tf.cond(g.flip, lambda: task.flip(label), lambda: label)


def _jitter(image: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast and saturation of f32[H,W,3], times `factors` f32[3].

    They are one affine map of the colours: saturation mixes each colour with its grey value (ITU-R
    BT.601 weights), contrast stretches about the image's mean.
    """
    brightness, contrast, saturation = tf.unstack(factors)
    grey = tf.constant([[0.299], [0.587], [0.114]]) * tf.ones((1, 3))
    colours = brightness * contrast * (saturation * tf.eye(3) + (1 - saturation) * grey)
    shift = brightness * (1 - contrast) * tf.reduce_mean(image)
    return tf.clip_by_value(tf.tensordot(image, colours, 1) + shift, 0.0, 1.0)

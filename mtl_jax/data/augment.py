"""Random changes of one training example: seeded, without state, the same geometry for image and labels."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from mtl_jax.data.rand_augment import LUMA, clip, rand_augment
from mtl_jax.tasks.base import Task
from mtl_jax.views import View

tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX

GREY = 0.5  # padding of images: near zero after the usual normalisation

Example = tuple[tf.Tensor, dict[str, tf.Tensor]]
"""(image, labels by task)"""


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
    views: Mapping[str, View] = {},
) -> tuple[Example, dict[str, Example]]:
    """Random scale, crop or padding, rotation, mirroring, zoom and colours of one example.

    Zoom and colours are drawn anew for each view; its name, not its place among the others, decides on them.

    Args:
      image: uint8[h,w,3].
      labels: canonical labels [h,w,C] by task; those that are no maps are moved by `Task.place`.
      tasks: the tasks by name.
      size: (H, W) of the result.
      options: `flip` (bool), `scale` ((lo, hi), of which one factor is drawn evenly), `rotate` (up to so many
        degrees either way), `zoom` (factors from 1 on, of which `zoom_crop` draws one; none: no zoom crop),
        `color` (relative strength of brightness, contrast and saturation), `rand_augment` (number of
        operations).
      seed: int[2]; equal seeds give equal results.
      views: further views by name; each stands behind the one that it is made from.

    Returns:
      The example: f32[H,W,3] in [0,1], and the labels [*label_size,C] in `label_dtype`, `fill` where they
      are unknown; and such an example for each view.
    """
    geometry = _draw_geometry(tf.shape(image)[:2], size, options, _draw(seed)[:5])
    warp = _turned(geometry, size) if options.rotate else _upright(geometry, size, options)
    image = tf.cast(warp(image, "bilinear", 255 * GREY), tf.float32) * (1 / 255)
    labels = {name: _warp_label(label, tasks[name], geometry, warp, size) for name, label in labels.items()}

    own = View(zoom=bool(options.zoom))  # the example itself: None among the views
    placed, coloured = {None: (image, labels)}, {}
    for name, view in {None: own, **views}.items():
        key = seed if name is None else _seed_for(seed, f"view {name}")
        image, labels = placed[view.of]
        if view.zoom:
            image, labels = zoom_crop(image, labels, tasks, options.zoom, _seed_for(key, "zoom"))
        placed[name] = image, labels
        coloured[name] = _change_colours(image, options, key), labels
    return coloured.pop(None), coloured


def place(label: tf.Tensor, task: Task, matrix: tf.Tensor, size: tuple[Any, Any]) -> tf.Tensor:
    """`Task.place` of a label that is no map: [*label_size,C] in `label_dtype`, of known size."""
    label = task.place(tf.cast(label, task.label_dtype), matrix, size)
    return tf.ensure_shape(label, (*task.label_size(size), task.label_channels))


def zoom_crop(
    image: tf.Tensor,
    labels: Mapping[str, tf.Tensor],
    tasks: Mapping[str, Task],
    factors: Sequence[float],
    seed: tf.Tensor,
) -> Example:
    """An even choice of `factors` and of all places: crops floor(H/s) x floor(W/s), resized back to H x W.

    Corners stay corners where values are mixed, and canvas row k shows crop row floor(k h/H) where they are
    copied (RandomScaleCrop of Liu et al., CVPR 2019); factor 1 changes nothing.

    Args:
      image: f32[H,W,3], of known size.
      labels: [*label_size,C] in `label_dtype` by task, as `augment` returns them; likewise the result.
      tasks: the tasks by name.
      factors: enlargements, from 1 on.
      seed: int[2].
    """
    size = tuple(image.shape[:2])
    draw = tf.random.stateless_uniform([3], seed)

    def evenly(place: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return tf.cast(place * tf.cast(count, tf.float32), tf.int32)

    which = evenly(draw[0], len(factors))
    lengths = tf.constant([[int(side / s) for side in size] for s in factors])[which]
    factor = tf.constant(factors, tf.float32)[which]
    starts = evenly(draw[1:], tf.constant(size) - lengths + 1)
    rows, columns = (starts[a] + tf.range(size[a]) * lengths[a] // size[a] for a in (0, 1))

    def warp(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        del fill  # the crop has no outside
        if interpolation == "nearest":
            return tf.gather(tf.gather(x, rows), columns, axis=1)
        (top, left), (below, right) = tf.unstack(starts), tf.unstack(starts + lengths)
        crop = x[top:below, left:right]
        return tf.raw_ops.ResizeBilinear(images=crop[None], size=size, align_corners=True)[0]

    def zoomed(label: tf.Tensor, task: Task) -> tf.Tensor:
        if task.label_is_map:
            return task.rescale(_resample(label, task, warp), factor)
        enlargement = tf.cast(tf.constant(size) / lengths, tf.float32)
        shift = -enlargement * tf.cast(starts, tf.float32)
        return place(label, task, tf.concat([tf.linalg.diag(enlargement), shift[:, None]], axis=1), size)

    return warp(image, "bilinear", GREY), {name: zoomed(x, tasks[name]) for name, x in labels.items()}


def _seed_for(seed: tf.Tensor, purpose: str) -> tf.Tensor:
    """i64[2]: another seed, for random numbers that have nothing to do with those of `seed`."""
    number = tf.constant(zlib.crc32(purpose.encode()), tf.int64)
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), number)


def _draw(seed: tf.Tensor) -> tf.Tensor:
    """f32[8]: five numbers for the geometry, three for the colours."""
    return tf.random.stateless_uniform([8], seed)


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


def _image_to_canvas(g: Geometry, size: tuple[int, int]) -> tf.Tensor:
    """f32[2,3]: (y, x, 1) of the image -> (y, x) of the canvas, where pixel k spans [k, k + 1]."""
    a0, a1, a2, b0, b1, b2 = tf.unstack(_canvas_to_image(g, size)[:6])
    back = tf.stack([[b1, b0], [a1, a0]])
    start = tf.stack([[b2], [a2]]) + 0.5 - 0.5 * tf.reduce_sum(back, axis=1, keepdims=True)
    forth = tf.linalg.inv(back)
    return tf.concat([forth, -forth @ start], axis=1)


def _warp_label(label: tf.Tensor, task: Task, g: Geometry, warp: Warp, size: tuple[int, int]) -> tf.Tensor:
    """Places by `warp`, values by the task."""
    if not task.label_is_map:
        return place(label, task, _image_to_canvas(g, size), size)
    label = _resample(label, task, warp)
    label = task.rotate(task.rescale(label, g.scale), g.radians)
    return tf.cond(g.flip, lambda: task.flip(label), lambda: label)


def _resample(label: tf.Tensor, task: Task, warp: Warp) -> tf.Tensor:
    """[H,W,C] in `label_dtype`: a mixture with an unknown value is unknown."""
    if task.interpolation == "nearest":
        return tf.cast(warp(_able_to_hold(task.fill, label), "nearest", task.fill), task.label_dtype)
    label = tf.cast(label, task.label_dtype)
    known = task.known(label)
    mixed = warp(tf.where(known, label, 0), "bilinear", 0.0)
    return tf.where(warp(tf.cast(known, label.dtype), "bilinear", 0.0) > 0.999, mixed, task.fill)


def _able_to_hold(fill: float, label: tf.Tensor) -> tf.Tensor:
    """The label, made float if `fill` needs it; else as stored, which is quicker to resample."""
    return tf.cast(label, tf.float32) if math.isnan(fill) and not label.dtype.is_floating else label


def _change_colours(image: tf.Tensor, options: Any, seed: tf.Tensor) -> tf.Tensor:
    if options.color:
        image = _jitter(image, 1 + options.color * (2 * _draw(seed)[5:] - 1))
    if options.rand_augment:
        image = rand_augment(image, _seed_for(seed, "rand_augment"), options.rand_augment)
    return image


def _jitter(image: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast and saturation of f32[H,W,3], times `factors` f32[3].

    They are one affine map of the colours: saturation mixes each colour with its grey value, contrast
    stretches about the image's mean.
    """
    brightness, contrast, saturation = tf.unstack(factors)
    grey = tf.constant(LUMA)[:, None] * tf.ones((1, 3))
    colours = brightness * contrast * (saturation * tf.eye(3) + (1 - saturation) * grey)
    shift = brightness * (1 - contrast) * tf.reduce_mean(image)
    return clip(tf.reshape(tf.reshape(image, (-1, 3)) @ colours, tf.shape(image)) + shift)

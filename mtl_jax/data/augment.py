"""Random changes of one training example: seeded, without state, the same geometry for image and labels."""

import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mtl_jax.data.dataset import Example
from mtl_jax.data.rand_augment import LUMA, rand_augment
from mtl_jax.tasks.base import Array, Task, namespace
from mtl_jax.views import View

tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX

GREY = 128 / 255  # padding of images: near zero after the usual normalisation; a level of uint8

Pair = tuple[tf.Tensor, dict[str, tf.Tensor]]
"""(image, labels by task)"""


class Changed(NamedTuple):
    """An example, as compact as it can be.

    Attributes:
      image: uint8[H,W,3], or f32[H,W,3] in [0,1] if more than its size has changed.
      labels: by task, [*label_size,C] in `label_dtype`, or as stored if no value has changed.
      colours: f32[3] for `jitter`, which is done late, on the device; or None.
    """

    image: tf.Tensor
    labels: dict[str, tf.Tensor]
    colours: tf.Tensor | None


class Geometry(NamedTuple):
    """How the canvas that the network sees is filled from the image: numbers, or scalar tensors.

    The image's rows [top, top + height) are resized to the rows [above, above + inner_height) of the
    canvas, columns alike; then the canvas is turned about its centre, counter-clockwise as seen, and
    mirrored left to right.
    """

    top: Any
    height: Any
    above: Any
    inner_height: Any
    left: Any
    width: Any
    beside: Any
    inner_width: Any
    scale: Any
    radians: Any
    flip: Any


Move = tuple[tf.Tensor, str, float]
"""(array [h,w,C], interpolation, fill)"""

Warp = Callable[[Sequence[Move]], list[tf.Tensor]]
"""Moves arrays -> [H,W,C] each; keeps the dtype, or turns it to f32 where it must mix."""


def draw(seed: int, position: int) -> np.ndarray:
    """f32[8] in [0, 1): five numbers for the geometry, three for the colours.

    A function of its arguments alone, whatever the version of NumPy. (TensorFlow takes longer to draw them.)
    """
    key = np.array([int(seed) % 2**64, int(position)], np.uint64)
    return (np.random.Philox(key=key).random_raw(8) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def cut(
    example: Example, numbers: np.ndarray, tasks: Mapping[str, Task], size: tuple[int, int], options: Any
) -> list[np.ndarray]:
    """What of an example the canvas shows: its numbers f32[14], the image, and the labels, for `augment`.

    Without rotation the image is cut, and maps that are copied are at their places already: of all that is
    decoded only this is handed over to TensorFlow.

    Args:
      example: image and labels.
      numbers: what `draw` gives.
      tasks: the tasks by name.
      size, options: as of `augment`.
    """
    image = example["image"]
    labels = {name: able_to_hold(task.fill, example["labels"][name]) for name, task in tasks.items()}
    g = _choose(image.shape[:2], size, options, numbers)
    vector = np.array([*g, *numbers[5:]], np.float32)
    if options.rotate:
        return [vector, image, *labels.values()]

    rows, columns = _sources(g.height, g.inner_height), _sources(g.width, g.inner_width)
    columns = columns[::-1] if g.flip else columns
    left = size[1] - g.inner_width - g.beside if g.flip else g.beside
    window = np.s_[g.top : g.top + g.height, g.left : g.left + g.width]

    def cut_label(label: np.ndarray, task: Task) -> np.ndarray:
        if not task.label_is_map:
            return label
        if task.interpolation == "nearest":
            return _copy(label[window], rows, columns, (g.above, left), size, task.fill)
        return label[window]

    return [vector, image[window], *(cut_label(labels[name], task) for name, task in tasks.items())]


def able_to_hold(fill: float, label: np.ndarray) -> np.ndarray:
    """The label, made float if `fill` needs it; else as stored, which is quicker to move."""
    return label.astype(np.float32) if math.isnan(fill) and label.dtype.kind != "f" else label


def augment(
    vector: tf.Tensor,
    image: tf.Tensor,
    labels: Mapping[str, tf.Tensor],
    tasks: Mapping[str, Task],
    size: tuple[int, int],
    options: Any,
    seed: tf.Tensor,
    views: Mapping[str, View] = {},
) -> tuple[Changed, dict[str, Changed]]:
    """Random scale, crop or padding, rotation, mirroring, zoom and colours of one example.

    Zoom and colours are drawn anew for each view; its name, not its place among the others, decides on them.

    Args:
      vector, image, labels: what `cut` gives of canonical labels [h,w,C]; those that are no maps are moved
        by `Task.place`.
      tasks: the tasks by name.
      size: (H, W) of the result.
      options: `flip` (bool), `scale` ((lo, hi), of which one factor is drawn evenly), `rotate` (up to so many
        degrees either way), `zoom` (factors from 1 on, of which `zoom_crop` draws one; none: no zoom crop),
        `color` (relative strength of brightness, contrast and saturation), `rand_augment` (number of
        operations).
      seed: int[2], of all that is drawn besides `vector`; equal seeds give equal results.
      views: further views by name; each stands behind the one that it is made from.

    Returns:
      The example, its labels `fill` where they are unknown; and such an example for each view.
    """
    scale, radians, flip = tf.unstack(vector[8:11])
    geometry = Geometry(*tf.unstack(tf.cast(vector[:8], tf.int32)), scale, radians, flip > 0)
    warp = _turned(geometry, size) if options.rotate else _upright(geometry, size, options)
    image, labels = _warp(
        image, labels, tasks, warp, functools.partial(_image_to_canvas, geometry, size), size
    )
    labels = {name: _adjust(label, tasks[name], geometry, options) for name, label in labels.items()}

    own = View(zoom=bool(options.zoom))  # the example itself: None among the views
    placed, coloured = {None: (image, labels)}, {}
    for name, view in {None: own, **views}.items():
        key = seed if name is None else _seed_for(seed, f"view {name}")
        image, labels = placed[view.of]
        if view.zoom:
            image, labels = zoom_crop(image, labels, tasks, options.zoom, _seed_for(key, "zoom"))
        placed[name] = image, labels
        numbers = vector[11:] if name is None else tf.random.stateless_uniform([3], key)
        image, colours = _change_colours(image, numbers, options, key)
        coloured[name] = Changed(image, labels, colours)
    return coloured.pop(None), coloured


def as_float(image: tf.Tensor) -> tf.Tensor:
    """f32[H,W,3] in [0,1] of such an image or of uint8."""
    return image if image.dtype.is_floating else tf.cast(image, tf.float32) * (1 / 255)


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
) -> Pair:
    """An even choice of `factors` and of all places: crops floor(H/s) x floor(W/s), resized back to H x W.

    Corners stay corners where values are mixed, and canvas row k shows crop row floor(k h/H) where they are
    copied (RandomScaleCrop of Liu et al., CVPR 2019); factor 1 changes nothing.

    Args:
      image: f32[H,W,3] in [0,1] or uint8, of known size.
      labels: [*label_size,C] by task; these and the result are as `augment` returns them.
      tasks: the tasks by name.
      factors: enlargements, from 1 on.
      seed: int[2].
    """
    size = tuple(image.shape[:2])
    numbers = tf.random.stateless_uniform([3], seed)

    def evenly(place: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return tf.cast(place * tf.cast(count, tf.float32), tf.int32)

    which = evenly(numbers[0], len(factors))
    lengths = tf.constant([[int(side / s) for side in size] for s in factors])[which]
    factor = tf.constant(factors, tf.float32)[which]
    starts = evenly(numbers[1:], tf.constant(size) - lengths + 1)
    rows, columns = (starts[a] + tf.range(size[a]) * lengths[a] // size[a] for a in (0, 1))

    def copy(arrays: list[tf.Tensor]) -> list[tf.Tensor]:
        if not arrays:
            return []
        taken = tf.numpy_function(_take, [rows, columns, *arrays], [x.dtype for x in arrays], stateful=False)
        return [tf.ensure_shape(x, old.shape) for x, old in zip(tf.nest.flatten(taken), arrays, strict=True)]

    def mix(x: tf.Tensor) -> tf.Tensor:
        (top, left), (below, right) = tf.unstack(starts), tf.unstack(starts + lengths)
        crop = x[top:below, left:right]
        return tf.raw_ops.ResizeBilinear(images=crop[None], size=size, align_corners=True)[0]

    def matrix() -> tf.Tensor:
        enlargement = tf.cast(tf.constant(size) / lengths, tf.float32)
        shift = -enlargement * tf.cast(starts, tf.float32)
        return tf.concat([tf.linalg.diag(enlargement), shift[:, None]], axis=1)

    def warp(moves: Sequence[Move]) -> list[tf.Tensor]:
        copied = iter(copy([x for x, kind, _ in moves if kind == "nearest"]))
        return [next(copied) if kind == "nearest" else mix(x) for x, kind, _ in moves]

    image, labels = _warp(image, labels, tasks, warp, matrix, size)
    enlarged = {n: tasks[n].rescale(_measured(x, tasks[n]), factor) for n, x in labels.items()}
    return image, enlarged


def _seed_for(seed: tf.Tensor, purpose: str) -> tf.Tensor:
    """i64[2]: another seed, for random numbers that have nothing to do with those of `seed`."""
    number = tf.constant(zlib.crc32(purpose.encode()), tf.int64)
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), number)


def _choose(native: tuple[int, int], size: tuple[int, int], options: Any, numbers: np.ndarray) -> Geometry:
    lo, hi = options.scale
    scale = lo + (hi - lo) * float(numbers[0])
    return Geometry(
        *_choose_side(native[0], size[0], scale, float(numbers[1])),
        *_choose_side(native[1], size[1], scale, float(numbers[2])),
        scale=scale,
        radians=(2 * float(numbers[3]) - 1) * math.radians(options.rotate),
        flip=bool(options.flip and numbers[4] < 0.5),
    )


def _choose_side(native: int, wanted: int, scale: float, place: float) -> tuple[int, int, int, int]:
    """(start, length) in the image and (start, length) on the canvas, along one axis.

    Both are whole pixels, so that at scale 1 every value is copied and none is blurred.
    """
    length = min(native, max(1, round(wanted / scale)))
    inner = min(wanted, max(1, round(native * scale)))
    return int(place * (native - length + 1)), length, int(place * (wanted - inner + 1)), inner


def _sources(length: int, inner: int) -> np.ndarray:
    """i64[inner]: which of `length` rows (or columns) covers the centre of each new one."""
    return (2 * np.arange(inner) + 1) * length // (2 * inner)


def _copy(
    x: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, int],
    fill: float,
) -> np.ndarray:
    """[H,W,C]: these rows and columns, put on the canvas from `corner` on."""
    (inner,) = _take(rows, columns, x)
    if inner.shape[:2] == size:
        return inner
    canvas = np.full((*size, x.shape[2]), fill).astype(x.dtype)
    top, left = corner
    canvas[top : top + len(rows), left : left + len(columns)] = inner
    return canvas


def _take(rows: np.ndarray, columns: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """These rows and columns of each; NumPy takes a fraction of the time of `tf.gather`."""
    return [x[rows].take(columns, axis=1) for x in arrays]


def _upright(g: Geometry, size: tuple[int, int], options: Any) -> Warp:
    """Without rotation: resizes, pads and mirrors what was cut."""
    below, right = size[0] - g.above - g.inner_height, size[1] - g.beside - g.inner_width

    def mix(x: tf.Tensor, fill: float) -> tf.Tensor:
        if tuple(options.scale) != (1.0, 1.0):
            inner = tf.stack([g.inner_height, g.inner_width])
            floats = tf.cast(x, tf.float32)[None]  # is quicker than uint8
            mixed = tf.raw_ops.ResizeBilinear(images=floats, size=inner, half_pixel_centers=True)[0]
            x = tf.cast(mixed + 0.5, x.dtype) if x.dtype == tf.uint8 else mixed
        x = tf.pad(x, ((g.above, below), (g.beside, right), (0, 0)), constant_values=tf.cast(fill, x.dtype))
        x = tf.cond(g.flip, lambda: tf.reverse(x, [1]), lambda: x)
        return tf.ensure_shape(x, (*size, x.shape[2]))

    return lambda moves: [
        tf.ensure_shape(x, (*size, x.shape[2])) if kind == "nearest" else mix(x, fill)
        for x, kind, fill in moves
    ]


def _turned(g: Geometry, size: tuple[int, int]) -> Warp:
    """With rotation: one transform straight from the image, which also fills the corners from it."""
    matrix = _canvas_to_image(g, size)

    def move(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x[None] if interpolation == "nearest" else tf.cast(x[None], tf.float32),
            transforms=matrix[None],
            output_shape=size,
            fill_value=fill,
            interpolation=interpolation.upper(),
            fill_mode="CONSTANT",
        )[0]

    return lambda moves: [move(*each) for each in moves]


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


def _warp(
    image: tf.Tensor,
    labels: Mapping[str, tf.Tensor],
    tasks: Mapping[str, Task],
    warp: Warp,
    matrix: Callable[[], tf.Tensor],
    size: tuple[int, int],
) -> Pair:
    """Image and labels at their new places; `matrix` is the same move as of `Task.place`."""
    maps = {name: _moves(x, tasks[name]) for name, x in labels.items() if tasks[name].label_is_map}
    grey = GREY if image.dtype.is_floating else 255 * GREY
    new, *rest = warp([(image, "bilinear", grey), *(move for moves in maps.values() for move in moves)])
    if new.dtype != image.dtype:
        new = new * (1 / 255)
    moved, rest = {}, iter(rest)
    for name, label in labels.items():
        if name in maps:
            moved[name] = _moved([next(rest) for _ in maps[name]], tasks[name])
        else:
            moved[name] = place(label, tasks[name], matrix(), size)
    return new, moved


def _moves(label: tf.Tensor, task: Task) -> list[Move]:
    """What of a label is moved: itself, or its known values and where they are, if these are mixed."""
    if task.interpolation == "nearest":
        return [(label, "nearest", task.fill)]
    label = tf.cast(label, task.label_dtype)
    known = task.known(label)
    return [(tf.where(known, label, 0), "bilinear", 0.0), (tf.cast(known, label.dtype), "bilinear", 0.0)]


def _moved(arrays: list[tf.Tensor], task: Task) -> tf.Tensor:
    """The label from what `_moves` became: a mixture with an unknown value is unknown."""
    if task.interpolation == "nearest":
        return arrays[0]
    mixed, known = arrays
    return tf.where(known > 0.999, mixed, task.fill)


def _adjust(label: tf.Tensor, task: Task, g: Geometry, options: Any) -> tf.Tensor:
    """The values that a label has at its new places."""
    if not task.label_is_map:
        return label
    if tuple(options.scale) != (1.0, 1.0):
        label = task.rescale(_measured(label, task), g.scale)
    if options.rotate:
        label = task.rotate(_measured(label, task), g.radians)
    return tf.cond(g.flip, lambda: task.flip(label), lambda: label)


def _measured(label: tf.Tensor, task: Task) -> tf.Tensor:
    """The label, ready for a change of its values, in `label_dtype`; classes, which have none, as stored."""
    return tf.cast(label, task.label_dtype) if label.dtype.is_floating else label


def _change_colours(
    image: tf.Tensor, numbers: tf.Tensor, options: Any, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The image, and what is left for `jitter` to do."""
    colours = 1 + options.color * (2 * numbers - 1) if options.color else None
    if not options.rand_augment:
        return image, colours
    image = as_float(image) if colours is None else jitter(as_float(image), colours)
    return rand_augment(image, _seed_for(seed, "rand_augment"), options.rand_augment), None


def jitter(image: Array, colours: Array) -> Array:
    """Changes brightness, contrast and saturation by factors, and clips; for TensorFlow, NumPy and JAX.

    They are one affine map of the colours: saturation mixes each colour with its grey value, contrast
    stretches about the image's mean.

    Args:
      image: f32[...,H,W,3] in [0,1]; likewise the result.
      colours: f32[...,3], the factors.
    """
    numpy = namespace(image)
    brightness, contrast, saturation = (colours[..., k, None, None, None] for k in range(3))
    grey = sum(weight * image[..., k : k + 1] for k, weight in enumerate(LUMA))
    mean = numpy.mean(image, axis=(-3, -2, -1), keepdims=True)
    stretched = contrast * (grey + saturation * (image - grey)) + (1 - contrast) * mean
    return numpy.clip(brightness * stretched, 0.0, 1.0)

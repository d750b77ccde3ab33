"""Random changes of one training example: seeded, without state, the same geometry for image and labels."""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from mtl_jax.data.dataset import Example
from mtl_jax.data.look_up import to_float32
from mtl_jax.data.rand_augment import LUMA, rand_augment
from mtl_jax.tasks.base import Array, Task, namespace
from mtl_jax.views import View

tf.config.set_visible_devices([], "GPU")  # the accelerator's memory belongs to JAX

GREY = 128 / 255  # padding of images: near zero after the usual normalisation; a level of uint8

Pair = tuple[Array, dict[str, Array]]
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
    """How the canvas that the network sees is filled from the image.

    The image's rows [top, top + height) are resized to the rows [above, above + inner_height) of the
    canvas, columns alike; then the canvas is turned about its centre, counter-clockwise as seen, and
    mirrored left to right.
    """

    top: int
    height: int
    above: int
    inner_height: int
    left: int
    width: int
    beside: int
    inner_width: int
    scale: float
    radians: float
    flip: bool


Move = tuple[Array, str, float]
"""(array [h,w,C], interpolation, fill)"""

Warp = Callable[[Sequence[Move]], list[Array]]
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
    """An example on the canvas, for `augment`: f32[3], or f32[12] to be turned; the image; and the labels.

    Maps that are to be turned stay as they are, since that is TensorFlow's; all others are at their places
    and have the values that they get there. (TensorFlow takes several times as long.)

    Args:
      example: image and labels.
      numbers: what `draw` gives.
      tasks: the tasks by name.
      size, options: as of `augment`.
    """
    g = _choose(example["image"].shape[:2], size, options, numbers)
    image, labels = example["image"], {name: example["labels"][name] for name in tasks}
    window = np.s_[:] if options.rotate else np.s_[g.top : g.top + g.height, g.left : g.left + g.width]
    maps = {n: able_to_hold(tasks[n].fill, x[window]) for n, x in labels.items() if tasks[n].label_is_map}
    turn = ()
    if options.rotate:
        turn = (*_canvas_to_image(g, size).ravel(), g.scale, g.radians, g.flip)
    else:
        image, maps = _warp(image[window], maps, tasks, _upright(g, size))
        maps = {name: _adjust(x, tasks[name], g, options) for name, x in maps.items()}
    if len(maps) < len(labels):
        back = _inverse(_canvas_to_image(g, size))
        maps |= {n: place(x, tasks[n], back, size) for n, x in labels.items() if n not in maps}
    return [np.array([*numbers[5:], *turn], np.float32), image, *(maps[name] for name in tasks)]


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
      vector, image, labels: what `cut` gives of canonical labels [h,w,C].
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
    if options.rotate:
        maps = {name: x for name, x in labels.items() if tasks[name].label_is_map}
        image, maps = _warp(image, maps, tasks, _turned(vector[3:9], size))
        labels = {**labels, **{n: _adjust_turned(x, tasks[n], vector, options) for n, x in maps.items()}}
    image = tf.ensure_shape(image, (*size, 3))
    labels = {n: tf.ensure_shape(x, (*tasks[n].label_size(size), x.shape[2])) for n, x in labels.items()}

    own = View(zoom=bool(options.zoom))  # the example itself: None among the views
    placed, coloured = {None: (image, labels)}, {}
    for name, view in {None: own, **views}.items():
        key = seed if name is None else _seed_for(seed, f"view {name}")
        image, labels = placed[view.of]
        if view.zoom:
            image, labels = zoom_crop(image, labels, tasks, options.zoom, _seed_for(key, "zoom"))
        placed[name] = image, labels
        numbers = vector[:3] if name is None else tf.random.stateless_uniform([3], key)
        image, colours = _change_colours(image, numbers, options, key)
        coloured[name] = Changed(image, labels, colours)
    return coloured.pop(None), coloured


def as_float(image: tf.Tensor) -> tf.Tensor:
    """f32[H,W,3] in [0,1] of such an image or of uint8."""
    return image if image.dtype.is_floating else tf.cast(image, tf.float32) * (1 / 255)


def place(label: Array, task: Task, matrix: Array, size: tuple[Any, Any]) -> Array:
    """`Task.place` of a label that is no map: [*label_size,C] in `label_dtype`; of NumPy or TensorFlow."""
    return task.place(namespace(label).asarray(label, task.label_dtype), matrix, size)


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

    def warp(moves: Sequence[Move]) -> list[tf.Tensor]:
        copied = iter(copy([x for x, kind, _ in moves if kind == "nearest"]))
        return [next(copied) if kind == "nearest" else mix(x) for x, kind, _ in moves]

    enlargement = tf.cast(tf.constant(size) / lengths, tf.float32)
    shift = -enlargement * tf.cast(starts, tf.float32)
    matrix = tf.concat([tf.linalg.diag(enlargement), shift[:, None]], axis=1)
    maps = {name: x for name, x in labels.items() if tasks[name].label_is_map}
    image, maps = _warp(image, maps, tasks, warp)
    maps = {n: tasks[n].rescale(_measured(x, tasks[n]), factor) for n, x in maps.items()}
    rest = {n: place(x, tasks[n], matrix, size) for n, x in labels.items() if n not in maps}
    return image, {name: {**maps, **rest}[name] for name in labels}


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


def _take(rows: np.ndarray, columns: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """These rows and columns of each; NumPy takes a fraction of the time of `tf.gather`."""
    return [x[rows].take(columns, axis=1) for x in arrays]


def _upright(g: Geometry, size: tuple[int, int]) -> Warp:
    """Without rotation: resizes, mirrors and pads what was cut, in NumPy."""
    rows, columns = _sources(g.height, g.inner_height), _sources(g.width, g.inner_width)
    columns = columns[::-1] if g.flip else columns
    left = size[1] - g.inner_width - g.beside if g.flip else g.beside
    inner = (g.inner_height, g.inner_width)

    def mix(x: np.ndarray) -> np.ndarray:
        channels = x.shape[2]
        if x.shape[:2] != inner:
            x = cv2.resize(x, inner[::-1], interpolation=cv2.INTER_LINEAR)
        return (cv2.flip(x, 1) if g.flip else x).reshape(*inner, channels)

    def move(x: np.ndarray, interpolation: str, fill: float) -> np.ndarray:
        x = mix(x) if interpolation == "bilinear" else _take(rows, columns, x)[0]
        if inner == size:
            return x
        canvas = np.full((*size, x.shape[2]), fill, x.dtype)
        canvas[g.above : g.above + inner[0], left : left + inner[1]] = x
        return canvas

    return lambda moves: [move(*each) for each in moves]


def _turned(canvas_to_image: tf.Tensor, size: tuple[int, int]) -> Warp:
    """With rotation: one transform straight from the image, which also fills the corners from it."""
    transform = tf.concat([canvas_to_image, tf.zeros(2)], 0)

    def move(x: tf.Tensor, interpolation: str, fill: float) -> tf.Tensor:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=x[None] if interpolation == "nearest" else tf.cast(x[None], tf.float32),
            transforms=transform[None],
            output_shape=size,
            fill_value=fill,
            interpolation=interpolation.upper(),
            fill_mode="CONSTANT",
        )[0]

    return lambda moves: [move(*each) for each in moves]


def _canvas_to_image(g: Geometry, size: tuple[int, int]) -> np.ndarray:
    """[2,3]: (x, y, 1) of the canvas -> (x, y) of the image, with pixel centres at whole numbers.

    Rows point down, so a turn that is seen counter-clockwise takes (x, y) to (x cos + y sin,
    -x sin + y cos), and this is its inverse.
    """
    cos, sin = math.cos(g.radians), math.sin(g.radians)
    mirror = -1 if g.flip else 1
    y0, x0 = (size[0] - 1) / 2, (size[1] - 1) / 2
    step_y, step_x = g.height / g.inner_height, g.width / g.inner_width  # image pixels per canvas pixel
    start_y = step_y * (y0 - g.above + 0.5) - 0.5 + g.top  # where the canvas' centre lies in the image
    start_x = step_x * (x0 - g.beside + 0.5) - 0.5 + g.left
    a0, a1 = step_x * cos * mirror, -step_x * sin
    b0, b1 = step_y * sin * mirror, step_y * cos
    return np.array([[a0, a1, start_x - a0 * x0 - a1 * y0], [b0, b1, start_y - b0 * x0 - b1 * y0]])


def _inverse(canvas_to_image: np.ndarray) -> np.ndarray:
    """f32[2,3]: (y, x, 1) of the image -> (y, x) of the canvas, where pixel k spans [k, k + 1]."""
    back = canvas_to_image[::-1, 1::-1]
    start = canvas_to_image[::-1, 2:] + 0.5 - 0.5 * back.sum(1, keepdims=True)
    forth = np.linalg.inv(back)
    return np.concatenate([forth, -forth @ start], axis=1).astype(np.float32)


def _warp(image: Array, maps: Mapping[str, Array], tasks: Mapping[str, Task], warp: Warp) -> Pair:
    """Image and labels that are maps, at their new places; of NumPy or TensorFlow."""
    moves = {name: _moves(x, tasks[name]) for name, x in maps.items()}
    grey = (image, "bilinear", 255 * GREY if image.dtype == np.uint8 else GREY)
    new, *rest = warp([grey, *(move for each in moves.values() for move in each)])
    if new.dtype != image.dtype:
        new = new * (1 / 255)
    rest = iter(rest)
    return new, {name: _moved([next(rest) for _ in each], tasks[name]) for name, each in moves.items()}


def _moves(label: Array, task: Task) -> list[Move]:
    """What of a label is moved: itself, or its known values and where they are, if these are mixed."""
    if task.interpolation == "nearest":
        return [(label, "nearest", task.fill)]
    numpy, label = namespace(label), _floats(label, task)
    known = task.known(label)
    if isinstance(label, np.ndarray) and known.all():
        return [(label, "bilinear", task.fill)]
    known_values = numpy.where(known, label, numpy.asarray(0, label.dtype))
    return [(known_values, "bilinear", 0.0), (numpy.asarray(known, label.dtype), "bilinear", 0.0)]


def _moved(arrays: list[Array], task: Task) -> Array:
    """The label from what `_moves` became: a mixture with an unknown value is unknown."""
    if len(arrays) == 1:
        return arrays[0]
    mixed, known = arrays
    numpy = namespace(mixed)
    return numpy.where(known > 0.999, mixed, numpy.asarray(task.fill, mixed.dtype))


def _adjust(label: np.ndarray, task: Task, g: Geometry, options: Any) -> np.ndarray:
    """The values that a map has at its new places."""
    if tuple(options.scale) != (1.0, 1.0):
        label = task.rescale(_measured(label, task), g.scale)
    return task.flip(label) if g.flip else label


def _adjust_turned(label: tf.Tensor, task: Task, vector: tf.Tensor, options: Any) -> tf.Tensor:
    """The same of a map that has been turned as well."""
    scale, radians, flip = tf.unstack(vector[9:12])
    if tuple(options.scale) != (1.0, 1.0):
        label = task.rescale(_measured(label, task), scale)
    label = task.rotate(_measured(label, task), radians)
    return tf.cond(flip > 0, lambda: task.flip(label), lambda: label)


def _measured(label: Array, task: Task) -> Array:
    """The label, ready for a change of its values, in `label_dtype`; classes, which have none, as stored."""
    numpy = isinstance(label, np.ndarray)
    return _floats(label, task) if (label.dtype.kind == "f" if numpy else label.dtype.is_floating) else label


def _floats(label: Array, task: Task) -> Array:
    return to_float32(label) if isinstance(label, np.ndarray) else tf.cast(label, task.label_dtype)


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

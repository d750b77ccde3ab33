"""Examples -> batches -> devices.

A batch is {"image": f32[B,H,W,3] in [0,1], "labels": {task: [B,H,W,C]}, "valid": {task: f32[B,H,W,1]},
"id": i32[B]}; a label that is no map has the size that `Task.label_size` tells. `valid` is 0 where the label
is unknown or not given (the label is 0 there too) and 1 elsewhere; `id` is the example's index in its split,
-1 in rows that only fill up the last batch (valid is 0 all over them). Further views of a training batch are
in "views": {name: {"image", "labels", "valid"}}, or {name: {"image"}} where the labels are those of the view
that it is made from; images that are drawn on their own in "streams": {name: {"image", "id"}}.

On its way to the device a batch is compact, and `finish` makes the one above of it: most images are uint8 and
their "colours" f32[B,3] are not changed yet, labels have the dtype in which they are stored, and "given"
{task: bool[B]} stands for `valid`.
"""

import atexit
import dataclasses
import functools
import os
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from absl import logging

from mtl_jax.data.augment import GREY, Changed, able_to_hold, augment, cut, draw, jitter, place
from mtl_jax.data.dataset import Dataset, Example, Split
from mtl_jax.data.resample import covering
from mtl_jax.errors import UserError
from mtl_jax.tasks.base import Array, Task, namespace
from mtl_jax.views import Stream, View

Batch = dict[str, Any]

GROUP = 8  # most examples that are read by one call from TensorFlow into Python, which takes its time
MANY_SIZES = 8  # from here on compiling for every image size costs more than padding


@dataclasses.dataclass
class Batches:
    """Batches of NumPy arrays; this host's rows of each.

    Attributes:
      compact: as they travel to the device.
      tasks: the tasks by name.
    """

    compact: Generator[Batch]
    tasks: Mapping[str, Task]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return finish(next(self.compact), self.tasks)

    def close(self) -> None:
        self.compact.close()


def finish(batch: Batch, tasks: Mapping[str, Task]) -> Batch:
    """The batch of a compact one; works on NumPy and on JAX arrays, under `jit` too."""
    given = batch.get("given", {})  # a stream's batch has no labels
    finished = {**_finish_view(batch, given, tasks), "id": batch["id"]}
    if "views" in batch:
        finished["views"] = {name: _finish_view(view, given, tasks) for name, view in batch["views"].items()}
    if "streams" in batch:
        finished["streams"] = {name: finish(part, {}) for name, part in batch["streams"].items()}
    return finished


def _finish_view(view: Batch, given: Mapping[str, Array], tasks: Mapping[str, Task]) -> Batch:
    """Image, labels and validity of a batch; what is not `given` is unknown all over."""
    image = view["image"]
    numpy = namespace(image)
    if image.dtype != numpy.float32:
        image = image.astype("float32") * np.float32(1 / 255)
    finished = {"image": jitter(image, view["colours"]) if "colours" in view else image}
    if "labels" in view:
        known = {n: tasks[n].known(x) & given[n][:, None, None, None] for n, x in view["labels"].items()}
        finished["labels"] = {
            n: numpy.where(known[n], x, 0).astype(tasks[n].label_dtype) for n, x in view["labels"].items()
        }
        finished["valid"] = {n: mask.astype("float32") for n, mask in known.items()}
    return finished


@functools.partial(jax.jit, static_argnames=("tasks", "sharding"))
def _finish_on_device(
    batch: Batch, tasks: tuple[tuple[str, Task], ...], sharding: jax.sharding.Sharding
) -> Batch:
    return jax.lax.with_sharding_constraint(finish(batch, dict(tasks)), sharding)


def cached(split: Split) -> Split:
    """The same split, keeping every example in memory, decoded, once it was read."""
    return dataclasses.replace(split, load=functools.cache(split.load))


def open_split(dataset: Dataset, name: str, tasks: Sequence[str], data: Any) -> Split:
    """A split of a dataset, treating damaged examples as data.on_error and data.max_skipped say."""
    split = dataset.split(name, tuple(tasks))
    return skipping(split, data.max_skipped) if data.on_error == "skip" else split


def skipping(split: Split, share: float) -> Split:
    """The same split, leaving out the examples that cannot be read, and saying so of each.

    Args:
      split: the examples.
      share: how much of the split may be left out.

    Raises:
      UserError (while loading): that is exceeded.
    """
    skipped: dict[int, str] = {}

    def load(index: int) -> Example | None:
        try:
            return split.load(index)
        except UserError as error:
            if index not in skipped:
                skipped[index] = str(error)
                count = f"{len(skipped)} of {len(split)} examples left out"
                if len(skipped) > share * len(split):
                    raise UserError(
                        f"{count}, more than config.data.max_skipped = {share}: {error}"
                    ) from error
                logging.warning("%s: %s", count, error)
            return None

    return dataclasses.replace(split, load=load)


def train_batches(
    split: Split,
    tasks: Mapping[str, Task],
    data: Any,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
    views: Mapping[str, View] = {},
) -> Batches:
    """Endless augmented batches; number s depends on (seed, s) alone.

    The examples run through one permutation of the split after another, across the borders of batches.

    Args:
      split: the examples.
      tasks: the tasks by name.
      data: config.data (batch_size, size, augment, cache).
      seed: of the order and of all augmentation.
      start: number of the first batch.
      shard: (k, n): this host gets rows [k B/n, (k+1) B/n) of every batch.
      views: further views of every example by name; each stands behind the one that it is made from.

    Raises:
      UserError: the batch cannot be shared among the hosts, the split is empty, images differ in size while
        data.size is None, or a view is a zoom crop while data.augment.zoom is empty; while iterating,
        whatever reading an example raises.
    """
    _check_zoom(views, data.augment.zoom)
    rows = _rows_per_host("data.batch_size", data.batch_size, shard[1])
    size = tuple(data.size) if data.size else _only_size(split)
    options = data.augment

    def drawn(example: Example, position: int) -> list[np.ndarray]:
        return cut(example, draw(seed, position), tasks, size, options)

    load, failure = _loader(cached(split) if data.cache else split, drawn, [0])

    def locate(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position = row // rows * data.batch_size + shard[0] * rows + row % rows
        return _shuffled(position, len(split), seed), position

    def example(index: tf.Tensor, position: tf.Tensor, loaded: list[tf.Tensor]) -> Batch:
        key = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int64), position)
        there, vector, image, *labels = loaded
        labels = dict(zip(tasks, labels, strict=True))
        own, others = augment(vector, image, labels, tasks, size, options, key, views)
        batch = {**_view(own), "given": _given(split, tasks, index, there), "id": _id(index, there)}
        if views:
            batch["views"] = {name: _view(others[name], labelled=view.zoom) for name, view in views.items()}
        return batch

    places = tf.data.Dataset.range(start * rows, np.iinfo(np.int64).max).map(locate)
    most = 1 if views or options.rand_augment else GROUP  # these take longer, to be traced as well
    return Batches(_batches(places, load, example, rows, failure, most), tasks)


def stream_batches(
    split: Split,
    stream: Stream,
    name: str,
    data: Any,
    seed: int,
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Batches:
    """Endless batches {"image", "id"} of a stream; number s depends on (name, seed, s) alone.

    Args:
      split: the images; their labels are not read.
      seed, start, shard: as of `train_batches`.

    Raises:
      UserError: the images do not fill a batch; else as `train_batches`.
    """
    rows = _rows_per_host("data.batch_size", data.batch_size, shard[1])
    per_epoch = len(split) // data.batch_size
    if not per_epoch:
        raise UserError(
            f"the method's stream {name!r} has {len(split)} images, which do not fill a batch of"
            f" {data.batch_size}: lower config.data.batch_size"
        )
    own_seed = zlib.crc32(f"{name} {seed}".encode())

    def load_canvas(index: int) -> Example | None:
        example = split.load(index)
        return example and {"image": covering(example["image"], stream.size), "labels": {}}

    canvases = dataclasses.replace(
        split, load=load_canvas, measure=lambda: np.full((len(split), 2), stream.size)
    )
    load, failure = _loader(
        cached(canvases) if data.cache else canvases, lambda example: [example["image"]], []
    )

    def locate(row: tf.Tensor) -> tf.Tensor:
        batch, place = row // rows, shard[0] * rows + row % rows
        position = batch // per_epoch * len(split) + batch % per_epoch * data.batch_size + place
        return (_shuffled(position, len(split), own_seed),)

    def example(index: tf.Tensor, loaded: list[tf.Tensor]) -> Batch:
        there, image = loaded
        return {"image": tf.ensure_shape(image, (*stream.size, 3)), "id": _id(index, there)}

    places = tf.data.Dataset.range(start * rows, np.iinfo(np.int64).max).map(locate)
    return Batches(_batches(places, load, example, rows, failure, GROUP), {})


def beside(batches: Batches, streams: Mapping[str, Batches]) -> Batches:
    """The batches, each with the next one of every stream."""
    if not streams:
        return batches

    def joined() -> Generator[Batch]:
        try:
            for batch in batches.compact:
                yield {**batch, "streams": {name: next(part.compact) for name, part in streams.items()}}
        finally:
            for part in (batches, *streams.values()):
                part.close()

    return Batches(joined(), batches.tasks)


def eval_batches(
    split: Split, tasks: Mapping[str, Task], data: Any, shard: tuple[int, int] = (0, 1)
) -> Batches:
    """One pass over the split, nothing augmented; hosts get equally many batches, each example once in all.

    With data.eval_size None the images keep their size, and batches hold images of one size (in the
    split's order within each size); otherwise images are padded at the bottom and right to (H, W).

    Raises:
      UserError: the batch cannot be shared among the hosts, or an image is larger than data.eval_size;
        while iterating, whatever reading an example raises.
    """
    rows = _rows_per_host("data.eval_batch_size", data.eval_batch_size, shard[1])
    canvas = tuple(data.eval_size) if data.eval_size else None
    groups = _size_groups(split) if canvas is None else [np.arange(len(split))]
    if canvas:
        _check_fits(split, canvas)
    elif len(groups) > MANY_SIZES:
        warnings.warn(
            f"the images have {len(groups)} different sizes, and the evaluation is compiled for each:"
            " set data.eval_size to (height, width) of the largest",
            stacklevel=2,
        )

    def whole(example: Example, real: bool) -> list[np.ndarray]:
        del real
        image, labels = example["image"], example["labels"]
        still = np.eye(2, 3, dtype=np.float32)
        return [
            image,
            *(
                able_to_hold(t.fill, labels[n])
                if t.label_is_map
                else place(labels[n], t, still, image.shape[:2])
                for n, t in tasks.items()
            ),
        ]

    load, failure = _loader(split, whole, [False])

    def example(index: tf.Tensor, real: tf.Tensor, loaded: list[tf.Tensor]) -> Batch:
        there, image, *labels = loaded
        there &= real
        labels = dict(zip(tasks, labels, strict=True))
        if canvas:
            image = _pad(image, canvas, 255 * GREY)
            labels = {
                n: _pad(x, canvas, tasks[n].fill) if tasks[n].label_is_map else x for n, x in labels.items()
            }
        given = _given(split, tasks, index, there)
        return {"image": image, "labels": labels, "given": given, "id": _id(index, there)}

    places = tf.data.Dataset.from_tensor_slices(_eval_rows(groups, data.eval_batch_size, shard))
    return Batches(_batches(places, load, example, rows, failure, GROUP), tasks)


def to_device(batches: Batches, sharding: jax.sharding.Sharding, depth: int = 2) -> Iterator[Batch]:
    """Global arrays from this host's batches, `depth` batches ahead in a background thread.

    Args:
      batches: what this process holds of each global batch.
      sharding: of every array; its first axis must be the batch.
      depth: how many batches to hold ready.
    """
    tasks = tuple(batches.tasks.items())

    def take() -> Batch | None:
        batch = next(batches.compact, None)
        if batch is None:
            return None
        to_global = functools.partial(jax.make_array_from_process_local_data, sharding)
        return _finish_on_device(jax.tree.map(to_global, batch), tasks, sharding)

    worker = ThreadPoolExecutor(1, "to_device")  # one thread: keeps the order
    try:
        ahead = deque(worker.submit(take) for _ in range(depth))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(worker.submit(take))
            yield batch
    finally:  # reached as well when the consumer drops this generator
        worker.shutdown(cancel_futures=True)


def _rows_per_host(key: str, batch_size: int, hosts: int) -> int:
    if batch_size < 1 or batch_size % hosts:
        raise UserError(
            f"{key} = {batch_size} does not divide evenly among {hosts} hosts: use a multiple of {hosts}"
        )
    return batch_size // hosts


def _shuffled(position: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Example index at a position of the endless stream, without a table of the permutation."""
    key = tf.stack([seed, position // count])
    return tf.random.experimental.index_shuffle(position % count, key, max_index=count - 1)


def _loader(
    split: Split, arrange: Callable[..., list[np.ndarray]], others: Sequence[Any]
) -> tuple[Callable[..., list[list[tf.Tensor]]], list[Exception]]:
    """A function of indices [G] -> G lists [is it there, what `arrange` makes of it]; and its errors.

    Args:
      split: the examples.
      arrange: (example, *others) -> arrays; of which the last are image and labels.
      others: for example; the function takes G of each.
    """
    if not len(split):
        raise UserError("the split has no examples")
    first = next((example for i in range(len(split)) if (example := split.load(i)) is not None), None)
    if first is None:
        raise UserError("every example of the split was left out")
    like = [np.bool_(True), *arrange(first, *others)]
    failure: list[Exception] = []

    def read(index: int, *others: Any) -> list[np.ndarray]:
        example = split.load(int(index))
        there = np.bool_(example is not None)
        return [there, *arrange(example if there else _nothing(split.sizes[index], first), *others)]

    def read_group(*places: np.ndarray) -> list[np.ndarray]:
        try:
            return [array for place in zip(*places, strict=True) for array in read(*place)]
        except Exception as error:  # TensorFlow would turn it into text; `_iterate` raises it again
            failure.append(error)
            raise

    def load(*places: tf.Tensor) -> list[list[tf.Tensor]]:
        count = places[0].shape[0]
        arrays = tf.numpy_function(read_group, places, [x.dtype for x in like] * count)
        for array, known in zip(arrays, like * count, strict=True):
            array.set_shape(known.shape if known.ndim < 3 else (None, None, known.shape[2]))
        return [arrays[k : k + len(like)] for k in range(0, len(arrays), len(like))]

    return load, failure


def _nothing(size: np.ndarray, like: Example) -> Example:
    """In the place of an example that was left out; its labels are not given."""
    maps = like["image"].shape[:2]
    shapes = {n: (*size, x.shape[2]) if x.shape[:2] == maps else x.shape for n, x in like["labels"].items()}
    labels = {name: np.zeros(shapes[name], x.dtype) for name, x in like["labels"].items()}
    return {"image": np.full((*size, 3), 255 * GREY, like["image"].dtype), "labels": labels}


def _check_zoom(views: Mapping[str, View], factors: Sequence[float]) -> None:
    zoomed = [name for name, view in views.items() if view.zoom]
    if zoomed and not factors:
        raise UserError(
            f"the method's view {zoomed[0]!r} is a zoom crop, but config.data.augment.zoom is empty:"
            " set it to factors such as (1.0, 1.2, 1.5)"
        )


def _given(
    split: Split, tasks: Mapping[str, Task], index: tf.Tensor, there: tf.Tensor
) -> dict[str, tf.Tensor]:
    """bool by task: whether the label of the example is given."""
    if split.given is None:
        return dict.fromkeys(tasks, there)
    return {name: tf.constant(split.given[name], tf.bool)[index] & there for name in tasks}


def _id(index: tf.Tensor, there: tf.Tensor) -> tf.Tensor:
    return tf.where(there, tf.cast(index, tf.int32), -1)


def _view(changed: Changed, labelled: bool = True) -> Batch:
    """A row of a compact batch; without its labels, if they are those of another view."""
    late = {} if changed.colours is None else {"colours": changed.colours}
    return {"image": changed.image, **({"labels": changed.labels} if labelled else {}), **late}


def _batches(
    places: tf.data.Dataset,
    load: Callable[..., list[list[tf.Tensor]]],
    example: Callable[..., Batch],
    rows: int,
    failure: list[Exception],
    most: int,
) -> Generator[Batch]:
    """`example` of all `places` and of what `load` loads there, in order, `rows` at a time.

    They are loaded in groups of at most `most`, which makes no difference but to speed.
    """
    count = next(n for n in range(most, 0, -1) if rows % n == 0)

    def group(*place: tf.Tensor) -> Batch:
        each = zip(*(tf.unstack(x) for x in place), load(*place), strict=True)
        return tf.nest.map_structure(lambda *parts: tf.stack(parts), *(example(*one) for one in each))

    grouped = parallel(places.batch(count, drop_remainder=True), group)
    nested = count < rows
    if nested:
        grouped = grouped.batch(rows // count, drop_remainder=True)
    running = _iterate(grouped.prefetch(2), nested, failure)
    _running.add(running)
    return running


def parallel(examples: tf.data.Dataset, example: Callable[..., Any]) -> tf.data.Dataset:
    """Maps `example` over `examples`, in order, on all cores."""
    options = tf.data.Options()
    options.deterministic = True
    options.threading.private_threadpool_size = os.cpu_count()
    options.threading.max_intra_op_parallelism = 1  # the examples run in parallel already
    mapped = examples.map(tf.autograph.experimental.do_not_convert(example), os.cpu_count())
    return mapped.with_options(options)


def _iterate(batches: tf.data.Dataset, nested: bool, failure: list[Exception]) -> Generator[Batch]:
    """The batches; `nested` ones are of groups of rows."""
    iterator = batches.as_numpy_iterator()
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except tf.errors.OpError:
                if not failure:
                    raise
                break
            yield jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch) if nested else batch
    finally:
        del iterator  # waits for its threads; else the traceback of an error would keep it to the very end
    raise failure[0]


# TensorFlow's threads call back into Python (`_loader`): the interpreter would wait for them for ever at its
# end, so what still runs then is closed.
_running: weakref.WeakSet = weakref.WeakSet()


@atexit.register
def _close_running() -> None:
    for batches in list(_running):
        batches.close()


def _pad(x: tf.Tensor, size: tuple[int, int], fill: float) -> tf.Tensor:
    below, right = size[0] - tf.shape(x)[0], size[1] - tf.shape(x)[1]
    x = tf.pad(x, ((0, below), (0, right), (0, 0)), constant_values=tf.cast(fill, x.dtype))
    return tf.ensure_shape(x, (*size, None))


def _only_size(split: Split) -> tuple[int, int]:
    sizes = np.unique(split.sizes, axis=0)
    if len(sizes) != 1:
        raise UserError(f"the images have {len(sizes)} different sizes: set data.size to (height, width)")
    return tuple(int(v) for v in sizes[0])


def _size_groups(split: Split) -> list[np.ndarray]:
    """Indices of the examples of each image size, in the split's order."""
    _, group = np.unique(split.sizes, axis=0, return_inverse=True)
    return [np.flatnonzero(group.ravel() == g) for g in range(group.max() + 1)]


def _check_fits(split: Split, size: tuple[int, int]) -> None:
    large = np.flatnonzero((split.sizes > np.asarray(size)).any(1))
    if large.size:
        height, width = split.sizes[large[0]]
        largest = tuple(int(v) for v in split.sizes.max(0))
        raise UserError(
            f"image {split.ids[large[0]]!r} ({height}x{width}) is larger than data.eval_size = {size}:"
            f" set it to {largest}, or to None"
        )


def _eval_rows(groups: list[np.ndarray], batch: int, shard: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(index, is it real) of all rows of this host; each group fills whole batches with its last example."""
    indices, real = [], []
    for group in groups:
        missing = -len(group) % batch
        indices.append(np.pad(group, (0, missing), "edge"))
        real.append(np.arange(len(group) + missing) < len(group))
    k, n = shard
    mine = slice(k * batch // n, (k + 1) * batch // n)
    return tuple(np.concatenate(x).reshape(-1, batch)[:, mine].ravel() for x in (indices, real))

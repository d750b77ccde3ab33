"""Teachers fill in labels that training is not given: trained networks predict them, once.

A fresh network then learns from given and predicted labels alike: MuST (Ghiasi et al., ICCV 2021), as Nishi
et al., CVPR 2024, Table 9, compare with it.

    <folder>/<task>.npy     the predicted labels of all images without a given one, end to end
    <folder>/<task>.json    whose they are; without it the labels count as incomplete
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices

from mtl_jax import atomic, evaluate, experiment
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Example, Split
from mtl_jax.errors import UserError
from mtl_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated, this_host
from mtl_jax.tasks import Task

_REPORT_EVERY = 10.0  # seconds

Labels = Callable[[int], np.ndarray]
"""Index of an image -> its label [H,W,C] in canonical form, in a compact dtype."""


def fill(split: Split, tasks: Mapping[str, Task], teachers: Mapping[str, str], folder: str) -> Split:
    """The split with every label that is not given predicted by the task's teacher, on the image as it is.

    Labels that `folder` holds already, of the same teacher and images, are used again.

    Args:
      split: training images.
      tasks: of the run, by name.
      teachers: task -> working directory of a finished training run that predicts it.
      folder: for the predicted labels.

    Raises:
      UserError: an unknown task, one whose labels are boxes, or a teacher that is not finished, damaged,
        or predicts other labels.
    """
    for name in teachers:
        if name not in tasks:
            raise UserError(f"config.data.teachers names task {name!r}: the tasks are {', '.join(tasks)}")
        if tasks[name].values == "boxes":
            raise UserError(
                f"config.data.teachers names task {name!r}, but teachers fill in no boxes: leave it out"
            )
    filled = split
    for name, workdir in teachers.items():
        given = (split.given or {}).get(name)
        if given is not None and not given.all():
            missing = np.flatnonzero(~given)
            labels = _predicted_labels(split.subset(missing), tasks[name], workdir, folder)
            filled = _with_labels(filled, name, missing, labels)
    return filled


def labeller(teacher: experiment.Experiment, names: Sequence[str]) -> evaluate.Predictor:
    """(variables, image f32[B,H,W,3]) -> canonical labels [B,H,W,C] by task; jittable."""
    tasks = {name: teacher.tasks[name] for name in names}
    predict = evaluate.predictor(teacher.model, tasks)

    def label(variables: Any, image: jax.Array) -> dict[str, jax.Array]:
        return {name: tasks[name].to_label(value) for name, value in predict(variables, image).items()}

    return label


def load_teacher(workdir: str, task: Task) -> experiment.Experiment:
    """The newest network of a run; UserError if it is not finished or predicts other labels than `task`'s."""
    try:
        teacher = experiment.load(workdir)
    except UserError as error:
        raise UserError(f"the teacher of {task.name!r}: {error}") from error
    steps = teacher.config.train.steps
    if teacher.step < steps:
        raise UserError(
            f"the teacher of {task.name!r} in {workdir} is not finished: step {teacher.step} of {steps}"
        )
    if task.name not in teacher.tasks:
        known = ", ".join(teacher.tasks)
        raise UserError(
            f"the teacher of {task.name!r} in {workdir} does not predict that: it predicts {known}"
        )
    ours, theirs = _label_space(task), _label_space(teacher.tasks[task.name])
    for key in ours:
        if ours[key] != theirs[key]:
            raise UserError(
                f"the teacher of {task.name!r} in {workdir} predicts other labels:"
                f" its {key} is {theirs[key]!r}, not {ours[key]!r}"
            )
    return teacher


def _label_space(task: Task) -> dict[str, Any]:
    keys = ("channels", "label_channels", "unit", "class_names")
    return {"kind": type(task).__name__, **{key: getattr(task, key, None) for key in keys}}


def _with_labels(split: Split, name: str, indices: np.ndarray, labels: Labels) -> Split:
    """The split with a task's label of images `indices` replaced, and given for all images."""
    place = {int(index): k for k, index in enumerate(indices)}

    def load(index: int) -> Example:
        example = split.load(index)
        if example is None or index not in place:
            return example
        own = example["labels"]
        # The input pipeline wants one dtype per task: the dataset's.
        return {**example, "labels": {**own, name: labels(place[index]).astype(own[name].dtype)}}

    return dataclasses.replace(split, load=load, given={**split.given, name: np.ones(len(split), bool)})


def _predicted_labels(split: Split, task: Task, workdir: str, folder: str) -> Labels:
    """A teacher's labels of all images of `split`, from `folder` if they are there, else put there."""
    teacher = load_teacher(workdir, task)
    path = os.path.join(folder, task.name)
    size = split.sizes if task.dense else np.ones_like(split.sizes)
    shapes = np.column_stack([size, np.full(len(split), task.label_channels)]).astype(np.int64)
    record = {
        "teacher": os.path.abspath(workdir),
        "step": teacher.step,
        "images": len(split),
        "sha256": _fingerprint(teacher, split),
    }
    if not os.path.exists(f"{path}.npy") or _read_record(path) != record:
        predictions = predict(teacher, task.name, split)
        if jax.process_index() == 0:
            dtype = np.min_scalar_type(task.channels) if task.discrete else np.float16
            print(f"{workdir} labels {len(split)} images with {task.name}", flush=True)
            _write(path, record, dtype, shapes, predictions)
        else:
            collections.deque(predictions, maxlen=0)
        sync_global_devices(path)
    return _end_to_end(np.load(f"{path}.npy", mmap_mode="r"), shapes)


def predict(
    teacher: experiment.Experiment, name: str, split: Split
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A task's labels batch by batch, the same on every host.

    Yields:
      Index in `split` i32[B], -1 in rows that only fill up; canonical labels [B,H,W,C], of images that may
      be padded at the bottom and right.
    """
    mesh = make_mesh()
    whole, rows = replicated(mesh), batch_sharding(mesh)
    batch_size = teacher.config.data.eval_batch_size
    check_batch_size("config.data.eval_batch_size of the teacher", batch_size, mesh)
    many = len(np.unique(split.sizes, axis=0)) > pipeline.MANY_SIZES
    canvas = tuple(int(n) for n in split.sizes.max(0)) if many else None
    data = types.SimpleNamespace(eval_batch_size=batch_size, eval_size=canvas)
    label = jax.jit(labeller(teacher, (name,)), in_shardings=(whole, rows), out_shardings=rows)
    for batch in pipeline.to_device(pipeline.eval_batches(split, {}, data, this_host()), rows):
        labels = label(teacher.variables, batch["image"])[name]
        yield process_allgather((batch["id"], labels), tiled=True)


def _fingerprint(teacher: experiment.Experiment, split: Split) -> str:
    """Of the teacher's weights and the images' names and sizes."""
    digest = hashlib.sha256(json.dumps([list(split.ids), split.sizes.tolist()]).encode())
    for leaf in jax.tree.leaves(teacher.variables):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def _read_record(path: str) -> Any:
    """What `_write` has left; None if it has not come to its end."""
    try:
        with open(f"{path}.json") as file:
            return json.load(file)
    except FileNotFoundError:
        return None


def _write(
    path: str,
    record: Mapping[str, Any],
    dtype: np.dtype,
    shapes: np.ndarray,
    predictions: Iterable[tuple[np.ndarray, np.ndarray]],
) -> None:
    """Writes all labels to <path>.npy, and <path>.json when they are complete; says how it goes."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{path}.json")  # it must never stand beside labels of another
    total = int(shapes.prod(1).sum())
    flat = np.lib.format.open_memmap(f"{path}.npy.tmp", mode="w+", dtype=dtype, shape=(total,))
    place = _end_to_end(flat, shapes)
    began = said = time.monotonic()
    done = 0
    for indices, labels in predictions:
        real = indices >= 0
        for k, label in zip(indices[real], labels[real], strict=True):
            height, width, _ = shapes[k]
            place(k)[...] = label[:height, :width]
        done += real.sum()
        now = time.monotonic()
        if now - said > _REPORT_EVERY or done == len(shapes):
            print(f"{done}/{len(shapes)} images, {done / max(now - began, 1e-9):.1f} images/s", flush=True)
            said = now
    flat.flush()
    os.replace(f"{path}.npy.tmp", f"{path}.npy")
    atomic.write(f"{path}.json", json.dumps(record, indent=1) + "\n")


def _end_to_end(flat: np.ndarray, shapes: np.ndarray) -> Labels:
    """Views of the arrays of these shapes i64[N,3] that lie one behind the other in `flat`."""
    ends = np.concatenate([[0], np.cumsum(shapes.prod(1))])
    return lambda k: flat[ends[k] : ends[k + 1]].reshape(shapes[k])

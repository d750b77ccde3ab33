"""The one generic evaluation: stream a split through a predictor into the tasks' metrics."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtl_jax import experiment
from mtl_jax import tasks as tasks_lib
from mtl_jax.data import pipeline
from mtl_jax.data.dataset import Split
from mtl_jax.errors import UserError
from mtl_jax.metrics.totals import Total
from mtl_jax.sharding import batch_sharding, check_batch_size, make_mesh, replicated, this_host
from mtl_jax.tasks import Task, pictures
from mtl_jax.tasks.boxes import NOTHING

Batch = Mapping[str, Any]
Predictor = Callable[[Any, jax.Array], dict[str, jax.Array]]
"""(variables, image f32[B,H,W,3]) -> predictions by task, activated and decoded; jittable."""


def predictor(model: Any, tasks: Mapping[str, Task]) -> Predictor:
    """Predicts with a network; `variables` are those of `model.apply`."""

    def predict(variables: Any, image: jax.Array) -> dict[str, jax.Array]:
        outputs = model.apply(variables, image, tuple(tasks), train=False).outputs
        return {name: task.decode(task.activate(outputs[name])) for name, task in tasks.items()}

    return predict


def constant_predictor(tasks: Mapping[str, Task]) -> Predictor:
    """Predicts the same everywhere; `variables` are values f32[C] by task, as `mean_labels` gives them."""

    def predict(values: Any, image: jax.Array) -> dict[str, jax.Array]:
        batch, height, width, _ = image.shape
        size = {name: (height, width) if task.label_is_map else (1, 1) for name, task in tasks.items()}
        return {n: jnp.broadcast_to(values[n], (batch, *size[n], len(values[n]))) for n in tasks}

    return predict


class Evaluation:
    """Evaluates a predictor again and again, compiled once per image size."""

    def __init__(self, predict: Predictor, tasks: Mapping[str, Task], mesh: Mesh):
        self._tasks = tasks
        self._mesh = mesh
        self._on_host = {name for name, task in tasks.items() if getattr(task.metric(), "on_host", False)}

        def step(metrics, variables, batch):
            predictions = predict(variables, batch["image"])
            metrics = {
                name: metric.update(predictions[name], batch["labels"][name], batch["valid"][name])
                for name, metric in metrics.items()
            }
            return metrics, {name: predictions[name] for name in self._on_host}

        whole, split = replicated(mesh), batch_sharding(mesh)
        self._step = jax.jit(
            step, in_shardings=(whole, whole, split), out_shardings=(whole, split), donate_argnums=0
        )

    def __call__(self, variables: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Results over all `batches` (NumPy, each host its own rows), named `task/metric`."""
        metrics = {name: task.metric() for name, task in self._tasks.items()}
        on_host = {name: metrics.pop(name) for name in self._on_host}
        # Jitted arguments are donated: they must not share buffers with constants of the metric.
        metrics = jax.device_put(jax.tree.map(np.array, metrics), replicated(self._mesh))
        for batch in pipeline.to_device(batches, batch_sharding(self._mesh)):
            metrics, predictions = self._step(metrics, variables, batch)
            for name in self._on_host:
                seen = predictions[name], batch["labels"][name], batch["valid"][name]
                # Of all hosts' rows, so that every host computes the same result.
                on_host[name] = on_host[name].update(*process_allgather(seen, tiled=True))
        results = jax.device_get(metrics) | on_host
        return {f"{name}/{key}": v for name in self._tasks for key, v in results[name].compute().items()}


def mean_labels(batches: Iterable[Batch], tasks: Mapping[str, Task]) -> dict[str, jax.Array]:
    """The best constant prediction of each task: its mean encoded label, f32[channels].

    Class frequencies for classes (their arg max is the most frequent one), the mean in metres for
    depth, the mean vector for normals, which `activate`'s space makes comparable with a network's. A
    detector that finds the same everywhere finds nothing: the row f32[6] of a detection that is none.
    """
    averaged = {name: task for name, task in tasks.items() if task.values != "boxes"}

    @jax.jit
    def add(sums, batch):
        result = {}
        for name, task in averaged.items():
            valid = batch["valid"][name]
            encoded = jnp.where(valid > 0, task.encode(batch["labels"][name]), 0.0)
            total, weight = sums[name]
            axes = tuple(range(encoded.ndim - 1))
            result[name] = total.add(jnp.sum(encoded * valid, axes)), weight.add(jnp.sum(valid))
        return result

    sums = {name: (Total.zeros(task.channels), Total.zeros()) for name, task in averaged.items()}
    for batch in batches:
        sums = add(sums, batch)
    means = {name: total.numpy() / max(weight.numpy(), 1.0) for name, (total, weight) in sums.items()}
    constants = {name: means.get(name, NOTHING) for name in tasks}
    return {name: jnp.asarray(value, jnp.float32) for name, value in constants.items()}


def draw_examples(
    path: str,
    config: ConfigDict,
    split: Split,
    tasks: Mapping[str, Task],
    networks: Mapping[str, tuple[nn.Module, Any]],
) -> None:
    """Pictures of the first images of one size in `split`, at most a batch: image, labels and predictions.

    Args:
      path: of the PNG.
      config: of the evaluation.
      networks: title -> (model, what its `apply` takes).
    """
    batch = next(pipeline.eval_batches(split, tasks, config.data))
    shown = batch["id"] >= 0
    truths = {
        n: pictures.encoded_truth(t, batch["labels"][n], batch["valid"][n])[shown] for n, t in tasks.items()
    }
    predictions = {}
    for title, (model, variables) in networks.items():
        outputs = jax.jit(predictor(model, tasks))(variables, batch["image"])
        predictions[title] = {name: np.asarray(output)[shown] for name, output in outputs.items()}
    pictures.panels(path, batch["image"][shown], truths, predictions, tasks)


def evaluate_workdir(config: ConfigDict, workdir: str) -> None:
    """The job `evaluate`: a trained network on the split `config.data.eval`, added to its eval.json.

    The config's data may be another dataset than the network was trained on (zero-shot), if that has
    labels of the same tasks; results are then filed under `<dataset>.<split>`. They are judged by that
    dataset's rules, such as which classes are scored, or how far a boundary may be off.

    Raises:
      UserError: the dataset lacks labels of the network's tasks, or has others.
    """
    trained = experiment.load(workdir)
    dataset = experiment.build_dataset(config)
    missing = sorted(set(trained.tasks) - set(dataset.labels))
    if missing:
        raise UserError(f"config.data has no labels for the network's tasks {', '.join(missing)}")
    mesh = make_mesh()
    check_batch_size("config.data.eval_batch_size", config.data.eval_batch_size, mesh)
    tasks = tasks_lib.build(trained.config.tasks, dataset.labels)
    for name, task in tasks.items():
        if task.channels != trained.tasks[name].channels:
            raise UserError(
                f"the network predicts {trained.tasks[name].channels} channels for task {name!r}, but"
                f" config.data has labels for {task.channels}: choose data.options with the same classes"
            )
    split = pipeline.open_split(dataset, config.data.eval, tuple(tasks), config.data)
    evaluation = Evaluation(predictor(trained.model, trained.tasks), tasks, mesh)
    results = evaluation(trained.variables, pipeline.eval_batches(split, tasks, config.data, this_host()))
    same = trained.config.data.name == config.data.name and trained.config.data.options == config.data.options
    name = config.data.eval if same else f"{config.data.name}.{config.data.eval}"
    known = experiment.read_results(workdir)
    experiment.write_results(workdir, {**known, **{f"{name}/{k}": v for k, v in results.items()}})
    for key, value in results.items():
        print(f"{name}/{key}: {value:.5g}")

"""A run's parts, put together from its config or read back from its working directory."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mtl_jax import atomic, names
from mtl_jax import config as configs
from mtl_jax import tasks as tasks_lib
from mtl_jax.checkpoint import Checkpoints, abstract
from mtl_jax.data.dataset import Dataset
from mtl_jax.errors import UserError
from mtl_jax.methods.base import Method
from mtl_jax.models.preprocessing import Preprocessing
from mtl_jax.sharding import make_mesh, replicated
from mtl_jax.tasks import Task
from mtl_jax.views import Stream, View
from mtl_jax.weights import pretrained

PREPROCESSING = "preprocessing.json"


def build_dataset(config: ConfigDict) -> Dataset:
    """The dataset that the config names; UserError if it lacks one of the config's splits."""
    dataset = names.build("data.datasets", config.data.name, config.data.options)
    for key in ("train", "eval"):
        if config.data[key] not in dataset.splits:
            known = ", ".join(dataset.splits)
            raise UserError(
                f"config.data.{key} is {config.data[key]!r}: {config.data.name} has the splits {known}"
            )
    return dataset


def build_model(config: ConfigDict, tasks: Mapping[str, Task], workdir: str = "") -> nn.Module:
    """The network that the config names, for these tasks; it treats images as its weights want it.

    A run that goes on in `workdir` treats them as before, whatever has become of the run it started from.
    """
    options = {key: value for key, value in config.model.items() if key != "name"}
    model = names.build("models", config.model.name, options, dict(tasks), config.dtype)
    weights = config.weights
    if not weights.path:
        return model
    if workdir and os.path.exists(os.path.join(workdir, PREPROCESSING)):
        theirs = read_preprocessing(workdir)
    elif weights.source == pretrained.RUN:
        run = weights.path
        theirs = build_model(read_config(run), read_tasks(run), run).preprocessing
    else:
        theirs = pretrained.preprocessing(weights, model)
    return model.clone(preprocessing=theirs)


def start_from(variables: Mapping[str, Any], model: nn.Module, config: ConfigDict) -> dict[str, Any]:
    """The network's variables, those that config.weights names replaced; raises UserError if it cannot."""
    weights = config.weights
    if weights.source != pretrained.RUN:
        return pretrained.start(variables, model, weights)
    return pretrained.copy(variables, load(weights.path).variables, weights.parts, weights.path)


def build_method(config: ConfigDict, model: nn.Module, tasks: Mapping[str, Task]) -> Method:
    """The method that the config names, over this model and these tasks."""
    options = {key: value for key, value in config.method.items() if key != "name"}
    return names.build("methods", config.method.name, options, model, dict(tasks))


def example_batch(
    config: ConfigDict,
    tasks: Mapping[str, Task],
    views: Mapping[str, View] = MappingProxyType({}),
    streams: Mapping[str, Stream] = MappingProxyType({}),
) -> dict[str, Any]:
    """A batch of zeros with the size of a training crop, as data/pipeline.py makes them."""
    height, width = config.data.size
    batch = config.data.batch_size
    size = {name: task.label_size((height, width)) for name, task in tasks.items()}
    places = {name: (height, width) if task.label_is_map else (1, 1) for name, task in tasks.items()}
    image = {"image": jnp.zeros((batch, height, width, 3))}
    labelled = {
        "labels": {
            n: jnp.zeros((batch, *size[n], t.label_channels), t.label_dtype) for n, t in tasks.items()
        },
        "valid": {n: jnp.zeros((batch, *places[n], 1)) for n in tasks},
    }
    example = {**image, **labelled, "id": jnp.zeros((batch,), jnp.int32)}
    if views:
        example["views"] = {name: image | (labelled if view.zoom else {}) for name, view in views.items()}
    if streams:
        example["streams"] = {
            name: {"image": jnp.zeros((batch, *stream.size, 3)), "id": jnp.zeros((batch,), jnp.int32)}
            for name, stream in streams.items()
        }
    return example


# Keys that may differ between a run and its resumption, since they change no number of it.
FREE_KEYS = (
    "job",
    "train.log_every",
    "train.keep",
    "train.profile_step",
    "data.cache",
    "data.eval_batch_size",
)


def claim_workdir(config: ConfigDict, workdir: str) -> None:
    """Writes config.json into a new working directory, or checks that it is this config's.

    Raises:
      UserError: the folder belongs to a run of another config; names the keys that differ.
    """
    path = os.path.join(workdir, "config.json")
    os.makedirs(workdir, exist_ok=True)
    if os.path.exists(path):
        ours, theirs = configs.flat(config), configs.flat(read_config(workdir))
        keys = sorted(set(ours) | set(theirs))
        missing = object()
        other = [k for k in keys if ours.get(k, missing) != theirs.get(k, missing) and k not in FREE_KEYS]
        if other:
            shown = ", ".join(f"config.{k} ({theirs.get(k)!r} there, {ours.get(k)!r} now)" for k in other[:5])
            raise UserError(
                f"{workdir} holds a run of another config; these keys differ: {shown}. Use another --workdir"
            )
    atomic.write(path, configs.to_json(config))


def write_results(workdir: str, results: Mapping[str, float | None]) -> None:
    """Writes eval.json: flat, keys `split/task/metric`; a value that is not finite becomes null."""
    plain = {k: None if v is None or not math.isfinite(v) else float(v) for k, v in results.items()}
    atomic.write(os.path.join(workdir, "eval.json"), json.dumps(plain, indent=1) + "\n")


def read_results(workdir: str) -> dict[str, float | None]:
    """eval.json of a run; UserError if it has not been evaluated."""
    return json.loads(_read(workdir, "eval.json"))


def write_tasks(workdir: str, config: ConfigDict, dataset: Dataset) -> None:
    """Writes tasks.json, from which `load` builds the tasks without the dataset."""
    merged = {name: {**dataset.labels[name], **options} for name, options in config.tasks.items()}
    plain = json.dumps(merged, indent=1, default=lambda value: list(value))
    atomic.write(os.path.join(workdir, "tasks.json"), plain + "\n")


def write_preprocessing(workdir: str, model: nn.Module) -> None:
    """Writes preprocessing.json, so that the run needs no other run or file of weights from then on."""
    plain = json.dumps(dataclasses.asdict(model.preprocessing), indent=1)
    atomic.write(os.path.join(workdir, PREPROCESSING), plain + "\n")


def read_preprocessing(workdir: str) -> Preprocessing:
    """Of the images that the network in `workdir` sees; UserError if there is none."""
    read = json.loads(_read(workdir, PREPROCESSING))
    return Preprocessing(**{key: tuple(x) if isinstance(x, list) else x for key, x in read.items()})


def read_config(workdir: str) -> ConfigDict:
    """The config of the run in `workdir`; UserError if there is none."""
    return configs.from_json(_read(workdir, "config.json"))


def read_tasks(workdir: str) -> dict[str, Task]:
    """The tasks of the run in `workdir`; UserError if there is none."""
    specs = json.loads(_read(workdir, "tasks.json"))
    return tasks_lib.build({name: {} for name in specs}, specs)


def _read(workdir: str, name: str) -> str:
    try:
        with open(os.path.join(workdir, name)) as file:
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{workdir} is no working directory of a run: it has no {name}") from None


def short_names(workdirs: Sequence[str]) -> list[str]:
    """The last part of each path, if that tells the runs apart; else the paths."""
    names = [os.path.basename(os.path.normpath(workdir)) for workdir in workdirs]
    return names if len(set(names)) == len(names) else list(workdirs)


def variables(deployed: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's {"params", "state"} of the network -> what `model.apply` takes."""
    return {"params": deployed["params"], **deployed["state"]}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A trained network, ready to predict.

    Attributes:
      variables: what `model.apply` takes.
      step: the step of training at which they were saved.
    """

    config: ConfigDict
    tasks: dict[str, Task]
    model: nn.Module
    variables: Any
    step: int


def load(workdir: str, which: str = "latest") -> Experiment:
    """Reads the deployable network of a run; neither dataset nor method is needed.

    Args:
      workdir: working directory of a training run.
      which: "latest" or "best" (by Delta_m) checkpoint.

    Raises:
      UserError: no run, no checkpoint, or a damaged one.
    """
    config, tasks = read_config(workdir), read_tasks(workdir)
    model = build_model(config, tasks, workdir)
    image = example_batch(config, tasks)["image"][:1]
    shapes = jax.eval_shape(lambda key: model.init(key, image, tuple(tasks), train=False), jax.random.key(0))
    shapes = dict(shapes)
    deployed = {"params": shapes.pop("params"), "state": shapes}
    checkpoints = Checkpoints(workdir)
    try:
        step, restored = checkpoints.restore_model(which, abstract(deployed, replicated(make_mesh())))
    finally:
        checkpoints.close()
    return Experiment(config, tasks, model, variables(restored), step)


def load_method(workdir: str, trained: Experiment) -> tuple[Method, Any]:
    """The method that trained the run in `workdir`, and its own variables {"params", "state"} (no network's).

    Args:
      trained: what `load` reads of the latest checkpoint; the variables are those of the same step.

    Raises:
      UserError: a damaged checkpoint.
    """
    method = build_method(trained.config, trained.model, trained.tasks)
    batch = example_batch(trained.config, trained.tasks, method.views, method.streams)
    shapes = jax.eval_shape(lambda key: method.init(key, batch), jax.random.key(0))
    own = {part: tree["method"] for part, tree in shapes.items()}
    checkpoints = Checkpoints(workdir)
    try:
        return method, checkpoints.restore_method(trained.step, abstract(own, replicated(make_mesh())))
    finally:
        checkpoints.close()

"""A few steps of real training on what a reader reads, with a network of a few parameters."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import config as configs
from mtl_jax import evaluate, train
from mtl_jax import tasks as task_modules
from mtl_jax.data import pipeline
from mtl_jax.methods import supervised
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.sharding import make_mesh


class Pixels(nn.Module):
    """A layer on the pixels, and a linear head per task: of their mean, if it has one label per image."""

    tasks: dict

    @nn.compact
    def __call__(self, image, tasks, train):
        x = nn.tanh(nn.Dense(5, name="trunk")(image))
        features = {t: x if self.tasks[t].dense else x.mean((1, 2), keepdims=True) for t in tasks}
        outputs = {t: nn.Dense(self.tasks[t].channels, name=owned("head", t))(features[t]) for t in tasks}
        return Prediction(outputs, features, dict.fromkeys(tasks, x))


@pytest.fixture
def train_a_little():
    """(dataset, {split: tasks of options}, ...) -> results; see `_train_a_little`."""
    return _train_a_little


def _train_a_little(dataset, tasks, train_split, eval_split=None, canvas=(24, 32), steps=3):
    """Trains on random flips, scales and crops, then evaluates; asserts that everything is as it should be.

    Args:
      dataset: what a reader's `build` returned.
      tasks: {name: options}, as in config.tasks.
      train_split, eval_split: names of splits; without the second nothing is evaluated.
      canvas: (height, width) of the crops, and at least of the images of `eval_split`.
      steps: how many, of 4 images each.

    Returns:
      (the last training batch, the evaluation's results by `task/metric`).
    """
    tasks = task_modules.build(tasks, dataset.labels)
    config = configs.default()
    config.data.update(size=canvas, eval_size=canvas, batch_size=4, eval_batch_size=4)
    config.data.augment.update(flip=True, scale=(0.7, 1.5))
    method = supervised.build(Pixels(tasks), tasks)
    batches = pipeline.train_batches(dataset.split(train_split, tuple(tasks)), tasks, config.data, seed=0)
    step = jax.jit(train.make_step(method, config))
    batch = next(batches)
    state = train.init_state(method, config, jax.random.key(0), batch)
    known = dict.fromkeys(tasks, 0.0)
    for _ in range(steps):
        state, metrics = step(state, batch)
        known = {name: known[name] + float(np.sum(batch["valid"][name])) for name in tasks}
        assert all(np.isfinite(value) for value in metrics.values()), metrics
        assert metrics["all/grad_norm"] > 0
        batch = next(batches)
    batches.close()
    assert all(known.values()), f"no label was known: {known}"
    if eval_split is None:
        return batch, {}
    evaluation = evaluate.Evaluation(evaluate.predictor(method.model, tasks), tasks, make_mesh())
    found = dataset.split(eval_split, tuple(tasks))
    options = ConfigDict({"eval_batch_size": 4, "eval_size": canvas})
    variables = {"params": state.params["model"], **state.state["model"]}
    results = evaluation(variables, pipeline.eval_batches(found, tasks, options))
    for name, task in tasks.items():
        assert np.isfinite(results[f"{name}/{task.headline}"]), results
    return batch, results

"""Supervised single- and multi-task learning: a fixed weighted sum of the tasks' losses."""

import dataclasses
from collections.abc import Mapping

from mtl_jax.errors import UserError
from mtl_jax.methods.base import Method
from mtl_jax.metrics.masked import labelled_mean


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """L = sum_t w_t L_t, where L_t is the mean over the examples that have a label of task t."""

    weights: Mapping[str, float]

    def loss(self, params, state, batch, rng, step, turn=None):
        prediction, state = self.forward(params, state, batch["image"], rng)
        total, metrics = 0.0, {}
        for name, task in self.tasks.items():
            valid = batch["valid"][name]
            per_example = task.loss(prediction.outputs[name], batch["labels"][name], valid)
            loss = labelled_mean(per_example, valid)
            metrics[f"{name}/loss"] = loss
            total += self.weights[name] * loss
        return total, (metrics, state)


def build(model, tasks, weights: Mapping[str, float] | None = None) -> Supervised:
    """Args: weights: task -> w_t; tasks that are not named weigh 1."""
    weights = dict(weights or {})
    for name in weights:
        if name not in tasks:
            raise UserError(f"config.method.weights names {name!r}, which is not one of config.tasks")
    return Supervised(model, tasks, {name: float(weights.get(name, 1.0)) for name in tasks})

"""Supervised single- and multi-task learning: the tasks' losses and nothing else."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtl_jax.errors import one_of
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import Method
from mtl_jax.metrics.masked import labelled_mean
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import Task

AVERAGES = ("task", "image", "batch")


def labelled(valid: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """{task: bool[B]}: has the image any known label of the task, i.e. is the task in T_x?"""
    return {name: jnp.any(mask > 0, axis=tuple(range(1, mask.ndim))) for name, mask in valid.items()}


def count(sets: Mapping[str, jax.Array]) -> jax.Array:
    """f32[B]: number of tasks in the set, at least 1: what sums over the set are divided by."""
    return jnp.maximum(sum(x.astype(jnp.float32) for x in sets.values()), 1.0)


def task_losses(
    tasks: Mapping[str, Task],
    outputs: Mapping[str, jax.Array],
    labels: Mapping[str, jax.Array],
    valid: Mapping[str, jax.Array],
    average: str,
) -> dict[str, jax.Array]:
    """{task: L_t} from the losses l_t(x) of the images that have a label of the task.

    Args:
      average: "task": L_t is the mean over these images; "image": 1/B sum_x l_t(x) / |T_x|, so that each
        of the B images counts alike (Nishi et al., CVPR 2024, eq. 1); "batch": 1/B sum_x l_t(x), as their
        code has it.
    """
    known = labelled(valid)
    sizes = count(known) if average == "image" else 1.0
    losses = {}
    for name, task in tasks.items():
        per_image = task.loss(outputs[name], labels[name], valid[name])
        if average == "task":
            losses[name] = labelled_mean(per_image, valid[name])
        else:
            losses[name] = jnp.mean(jnp.where(known[name], per_image / sizes, 0.0))
    return losses


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """The tasks' losses; base of the methods that add to them.

    Attributes:
      average: see `task_losses`.
    """

    average: str = "task"

    def __post_init__(self):
        one_of("method.average", self.average, AVERAGES)

    def supervised(self, prediction: Prediction, batch: Mapping) -> dict[str, jax.Array]:
        """{task: L_t} for `batch["image"]`; intermediate predictions add losses like the last one's."""
        total = dict.fromkeys(self.tasks, 0.0)
        for outputs in (prediction.outputs, *prediction.intermediate):
            losses = task_losses(self.tasks, outputs, batch["labels"], batch["valid"], self.average)
            total = {name: total[name] + losses[name] for name in total}
        return total

    def losses(self, params, state, batch, rng, step):
        prediction, state = self.forward(params, state, batch["image"], rng)
        return self.supervised(prediction, batch), 0.0, ({}, state)


def build(model, tasks, weights=None, weighting="fixed", average="task") -> Supervised:
    """`weights` and `weighting`: see methods/weighting.py."""
    return Supervised(model, tasks, weightings.make(tasks, weights, weighting), average)

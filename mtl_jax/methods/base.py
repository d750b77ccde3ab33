"""What a method is: pure functions over explicit variables that turn a batch into a loss.

Parameters and state are dictionaries with two subtrees: `model`, the network that is deployed, and
`method`, whatever a method needs beside it (discriminator, projectors, momentum encoder, queue).
Dropping `method` leaves the deployable model bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import Task

Tree = Any
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method; a subclass overrides `loss` and what else it needs.

    `build(model, tasks, **options)` of each module in methods/ returns one.
    """

    model: nn.Module
    tasks: Mapping[str, Task]

    @property
    def turns(self) -> tuple[str | None, ...]:
        """One optimiser update is made per turn; a method that trains task after task names them."""
        return (None,)

    def trains(self, turn: str | None) -> frozenset[str] | None:
        """Groups that the turn's update may touch; all others stay bit-identical. None: all groups."""
        return None

    def init(self, rng: jax.Array, batch: Tree) -> Tree:
        """{"params": {"model", "method"}, "state": {"model", "method"}} for batches like `batch`."""
        variables = dict(self.model.init(rng, batch["image"], tuple(self.tasks), train=False))
        params = variables.pop("params")
        return {"params": {"model": params, "method": {}}, "state": {"model": variables, "method": {}}}

    def loss(
        self, params: Tree, state: Tree, batch: Tree, rng: jax.Array, step: jax.Array, turn: str | None = None
    ) -> tuple[jax.Array, tuple[Metrics, Tree]]:
        """Scalar to minimise, and (metrics named `task/metric`, new state).

        Args:
          params, state: as from `init`.
          batch: global batch {"image": f32[B,H,W,3], "labels", "valid": {task: ...}, "id": i32[B]}.
          rng: key of this step and turn.
          step: i32[], number of completed steps.
          turn: one of `turns`, static.
        """
        raise NotImplementedError

    def update(self, params: Tree, state: Tree) -> Tree:
        """The state after the optimiser's update (momentum encoder, queue)."""
        return state

    def groups(self, params: Tree) -> Tree:
        """A label for each parameter: `shared`, `task:<name>`, or `auxiliary` for the method's own."""

        def label(path: tuple, _: jax.Array) -> str:
            names = [str(getattr(entry, "key", entry)) for entry in path]
            if names[0] == "method":
                return "auxiliary"
            for task in sorted(self.tasks, key=len, reverse=True):  # `a_b` is not a module of task `b`
                if any(name == task or name.endswith(f"_{task}") for name in names):
                    return f"task:{task}"
            return "shared"

        return jax.tree_util.tree_map_with_path(label, params)

    def forward(
        self,
        params: Tree,
        state: Tree,
        image: jax.Array,
        rng: jax.Array,
        tasks: tuple[str, ...] | None = None,
    ) -> tuple[Prediction, Tree]:
        """Training-mode forward pass of the model; returns the prediction and the whole new state."""
        variables = {"params": params["model"], **state["model"]}
        tasks = tuple(self.tasks) if tasks is None else tasks
        prediction, new = self.model.apply(
            variables, image, tasks, train=True, rngs={"dropout": rng}, mutable=list(state["model"])
        )
        return prediction, {**state, "model": dict(new)}

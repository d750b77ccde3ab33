"""What a method is: pure functions over explicit variables that turn a batch into a loss.

Parameters and state are dictionaries with two subtrees: `model`, the network that is deployed, and
`method`, whatever a method needs beside it (discriminator, projectors, momentum encoder, queue).
Dropping `method` leaves the deployable model bit for bit.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.weighting import Weighting
from mtl_jax.models.naming import owner
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import Task
from mtl_jax.views import Stream, View

Tree = Any
Metrics = dict[str, jax.Array]


def check_dense(method: str, tasks: Mapping[str, Task], least: int = 1) -> None:
    """UserError if a method that compares maps of `least` tasks or more cannot do so with these."""
    if len(tasks) < least:
        raise UserError(
            f"config.method {method!r} needs at least {least} tasks, not {', '.join(tasks)} alone"
        )
    for name, task in tasks.items():
        if not task.label_is_map:
            raise UserError(
                f"config.method {method!r} works on dense tasks: task {name!r} is not dense,"
                " for its label is no map"
            )


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method; a subclass overrides `losses`, and what else it needs.

    `build(model, tasks, **options)` of each module in methods/ returns one.

    Attributes:
      weighting: what makes one update of the tasks' losses.
    """

    model: nn.Module
    tasks: Mapping[str, Task]
    weighting: Weighting

    # Further views of each training example, which `batch["views"]` then holds by these names.
    views: ClassVar[Mapping[str, View]] = {}
    # Further images, independent of the examples, which `batch["streams"]` then holds by these names.
    streams: ClassVar[Mapping[str, Stream]] = {}
    # Whether images without any label are of use; they are left out of training otherwise.
    uses_unlabelled: ClassVar[bool] = False

    def with_streams(self, counts: Mapping[str, int]) -> "Method":
        """The method for streams of so many images each."""
        del counts
        return self

    def check_labels(self, given: Mapping[str, np.ndarray]) -> None:
        """UserError if the method cannot train with such labels: {task: bool[N]}, is it given, per image."""
        for task, images in given.items():
            if not images.any():
                raise UserError(
                    f"no training image is given a label of task {task!r}: see config.data.labels"
                )

    @property
    def turns(self) -> tuple[str | None, ...]:
        """One optimiser update is made per turn; a method that trains task after task names them."""
        return (None,)

    def trains(self, turn: str | None) -> frozenset[str] | None:
        """Groups that the turn's update may touch; all others stay bit-identical. None: all groups."""
        return None

    def idle(self, batch: Tree, turn: str | None) -> jax.Array | None:
        """bool[]: the batch holds nothing for this turn, which then changes nothing at all. None: never."""
        return None

    def init(self, rng: jax.Array, batch: Tree) -> Tree:
        """{"params": {"model", "method"}, "state": {"model", "method"}} for batches like `batch`."""
        image = batch["image"]
        model = dict(self.model.init(rng, image, tuple(self.tasks), train=False))
        params, state = {"model": model.pop("params"), "method": {}}, {"model": model, "method": {}}
        learned, kept = self.weighting.init(self, params, state, image)
        for tree, own in ((params, learned), (state, kept)):
            if own:
                tree["method"][weightings.KEY] = own
        return {"params": params, "state": state}

    def losses(
        self, params: Tree, state: Tree, batch: Tree, rng: jax.Array, step: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array | float, tuple[Metrics, Tree]]:
        """{task: L_t}, the method's further losses in one sum, and (metrics, new state).

        L_t is 0, and its gradient too, without a label of the task. Arguments: as of `loss`.
        """
        raise NotImplementedError

    def loss(
        self, params: Tree, state: Tree, batch: Tree, rng: jax.Array, step: jax.Array, turn: str | None = None
    ) -> tuple[jax.Array, tuple[Metrics, Tree]]:
        """Scalar to minimise, and (metrics named `task/metric`, new state).

        This one joins `losses` by the weighting, in one turn for all tasks.

        Args:
          params, state: as from `init`.
          batch: global batch {"image": f32[B,H,W,3], "labels", "valid": {task: ...}, "id": i32[B]},
            and "views" and "streams": {name: ...} if the method has some.
          rng: key of this step and turn.
          step: i32[], number of completed steps.
          turn: one of `turns`, static.
        """

        def weighted(params: Tree, state: Tree):
            values, rest, (metrics, state) = self.losses(params, state, batch, rng, step)
            metrics = {f"{task}/loss": value for task, value in values.items()} | metrics
            return {t: self.weighting.weights[t] * v for t, v in values.items()}, rest, (metrics, state)

        return self.weighting.total(self, weighted, params, state, batch["image"])

    def update(self, params: Tree, state: Tree) -> Tree:
        """The state after the optimiser's update (momentum encoder, queue)."""
        return state

    def groups(self, params: Tree) -> Tree:
        """A label for each parameter: `shared`, `task:<name>`, or `auxiliary` for the method's own."""

        def label(path: tuple, _: jax.Array) -> str:
            names = [str(getattr(entry, "key", entry)) for entry in path]
            if names[0] == "method":
                return "auxiliary"
            task = next(filter(None, map(owner, names)), None)
            return f"task:{task}" if task else "shared"

        return jax.tree_util.tree_map_with_path(label, params)

    def forward(
        self,
        params: Tree,
        state: Tree,
        image: jax.Array,
        rng: jax.Array,
        tasks: tuple[str, ...] | None = None,
    ) -> tuple[Prediction, Tree]:
        """Training-mode forward pass of the model; returns the prediction and the whole new state.

        Perturbations in the model's state are added where the model marks them, and not returned.
        """
        variables = {"params": params["model"], **state["model"]}
        tasks = tuple(self.tasks) if tasks is None else tasks
        stored = [key for key in state["model"] if key != "perturbations"]
        prediction, new = self.model.apply(
            variables, image, tasks, train=True, rngs={"dropout": rng}, mutable=stored
        )
        return prediction, {**state, "model": dict(new)}

    def perturbations(self, params: Tree, state: Tree, image: jax.Array) -> Tree:
        """Zeros for the tensors that the model marks as shared by all tasks, for images like `image`.

        The gradient by them, as "perturbations" in the model's state, is the gradient by these tensors.
        """

        def marked(variables: Tree) -> Tree:
            _, new = self.model.apply(
                variables, image, tuple(self.tasks), train=False, mutable=["perturbations"]
            )
            return dict(new).get("perturbations", {})

        shapes = jax.eval_shape(marked, {"params": params["model"], **state["model"]})
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

"""Attentive single-tasking with adversarial training on the tasks' gradients (Maninis et al., CVPR 2019).

A network that tasks modulate (models/modulation.py) does one task at a time, in training too: a batch
is used for one update per task, and an update touches what all tasks share and what its task owns.

A discriminator reads the gradient that a task sends into the shared features, and tells from which
task it comes. The network is trained to mislead it by the reversed gradient (Ganin & Lempitsky, ICML
2015), so that tasks ask the shared layers for the same change. That gradient depends on the weights
itself: its training is a gradient of a gradient.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mtl_jax.errors import UserError, one_of
from mtl_jax.methods import weighting as weightings
from mtl_jax.methods.base import Method, Tree
from mtl_jax.metrics.masked import labelled_mean
from mtl_jax.models.conv import Conv
from mtl_jax.models.interacting import InteractingNet

TAPS = ("decoder", "encoder")


def reverse(x: jax.Array, strength: jax.Array) -> jax.Array:
    """x itself, through which gradients come back times -strength."""
    return -strength * x + jax.lax.stop_gradient((1 + strength) * x)


def strength(step: jax.Array, steps: int, epochs: int) -> jax.Array:
    """Of the reversal: 2 / (1 + exp(-10 p)) - 1 with p = epoch / epochs, which are counted from 1.

    Args:
      step: i32[], number of completed steps of all `steps`.
      epochs: into how many the steps are divided.
    """
    epoch = jnp.minimum(step * epochs // steps, epochs - 1) + 1
    return 2 / (1 + jnp.exp(-10 * epoch / epochs)) - 1


def directions(gradient: jax.Array) -> jax.Array:
    """f[B,h,w,C] -> f32[B,h,w,C] of unit length at each place; 0 (with finite derivatives) where it is 0."""
    gradient = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    square = jnp.sum(gradient**2, axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where(square > 0, gradient / (norm + 1e-10), 0.0)


def reduced(valid: jax.Array, size: tuple[int, int]) -> jax.Array:
    """f32[B,H,W,1] -> f32[B,h,w,1]: every 2^k-th row and column from the first on, as strided maps have."""
    rows, columns = (1 << math.ceil(math.log2(n / m)) for n, m in zip(valid.shape[1:3], size, strict=True))
    return valid[:, ::rows, ::columns]


class Discriminator(nn.Module):
    """Fully convolutional classifier of gradients.

    Attributes:
      tasks: how many there are.
      depth: convolutions; all but the last keep the width and are followed by ReLU.
      kernel: size of the convolutions.
    """

    tasks: int
    depth: int = 2
    kernel: int = 1

    @nn.compact
    def __call__(self, gradient: jax.Array) -> jax.Array:
        """f32[B,h,w,C] -> logits f32[B,h,w,tasks]."""
        x, width, dtype = gradient, gradient.shape[-1], gradient.dtype
        for index in range(self.depth - 1):
            x = nn.relu(Conv(width, self.kernel, dtype=dtype, name=f"conv{index + 1}")(x))
        return Conv(self.tasks, self.kernel, use_bias=True, dtype=dtype, name=f"conv{self.depth}")(x)


@dataclasses.dataclass(frozen=True)
class ASTMT(Method):
    """In the turn of task t: (1 - w_d) w_t L_t + w_d L_d (eq. 5); w_t L_t without a discriminator.

    The weights w_t are fixed: a turn sees one task alone.

    Attributes:
      order: the tasks, one after the other for each batch.
      discriminator: None for the plain method.
      discriminator_weight: w_d.
      tap: where the gradient is read: "decoder", at the features before the head, or "encoder", at
        its last map.
      reversal: largest strength of the reversal; 0 trains the discriminator alone.
      steps, epochs: of the whole training; the reversal grows from epoch to epoch.
    """

    order: tuple[str, ...]
    discriminator: nn.Module | None
    discriminator_weight: float
    tap: str
    reversal: float
    steps: int
    epochs: int

    @property
    def turns(self):
        return self.order

    def trains(self, turn):
        return frozenset({"shared", f"task:{turn}", "auxiliary"})

    def idle(self, batch, turn):
        return ~jnp.any(batch["valid"][turn] > 0)

    def init(self, rng, batch):
        variables = super().init(rng, batch)
        if self.discriminator is None:
            return variables
        image = batch["image"]
        widths = {}
        for task in self.order:
            shapes = jax.eval_shape(lambda task=task: self._shared(variables, image, task, rng)[0])
            widths[task] = shapes[-1].shape[-1]
        if len(set(widths.values())) > 1:
            raise UserError(
                "config.method.tap='decoder' needs features of the same width for all tasks, not "
                + ", ".join(f"{task} {width}" for task, width in widths.items())
                + ": set config.method.tap='encoder'"
            )
        example = jnp.zeros((1, 1, 1, widths[self.order[0]]))
        params = self.discriminator.init(jax.random.fold_in(rng, 1), example)["params"]
        variables["params"]["method"] = {"discriminator": params}
        return variables

    def loss(self, params, state, batch, rng, step, turn=None):
        image, valid = batch["image"], batch["valid"][turn]
        variables = {"params": params, "state": state}
        (*others, shared), model_state = self._shared(variables, image, turn, rng)

        def rest(shared: jax.Array) -> tuple[jax.Array, Tree]:
            output, new = self._rest(variables, model_state, [*others, shared], image, turn, rng)
            loss = labelled_mean(self.tasks[turn].loss(output, batch["labels"][turn], valid), valid)
            return self.weighting.weights[turn] * loss, (loss, new)

        if self.discriminator is None:
            total, (loss, model_state) = rest(shared)
            return total, ({f"{turn}/loss": loss}, {**state, "model": model_state})

        (weighted, (loss, model_state)), gradient = jax.value_and_grad(rest, has_aux=True)(shared)
        ramp = self.reversal * strength(step, self.steps, self.epochs)
        logits = self.discriminator.apply(
            {"params": params["method"]["discriminator"]}, reverse(directions(gradient), ramp)
        )
        known = reduced(valid, logits.shape[1:3])[..., 0] > 0
        truth = jnp.full(known.shape, self.order.index(turn))

        def mean(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(known, x, 0.0)) / jnp.maximum(jnp.sum(known), 1)

        adversary = mean(optax.softmax_cross_entropy_with_integer_labels(logits, truth))
        metrics = {
            f"{turn}/loss": loss,
            f"{turn}/discriminator_loss": adversary,
            f"{turn}/discriminator_accuracy": mean(jnp.argmax(logits, -1) == truth),
        }
        w = self.discriminator_weight
        return (1 - w) * weighted + w * adversary, (metrics, {**state, "model": model_state})

    def _shared(self, variables: Tree, image: jax.Array, task: str, rng: jax.Array) -> tuple[list, Tree]:
        """The network up to the tap: ([what else the rest reads ..., f[B,h,w,C] at the tap], new state)."""
        state = variables["state"]["model"]
        if self.tap == "encoder":
            return self._apply(variables, state, rng, "encode", image, task, True)
        features, state = self._apply(variables, state, rng, "features", image, task, True)
        return [features], state

    def _rest(
        self, variables: Tree, state: Tree, shared: list, image: jax.Array, task: str, rng: jax.Array
    ) -> tuple[jax.Array, Tree]:
        """The network behind the tap: raw output f32[B,H,W,channels], new state."""
        features = shared[-1]
        if self.tap == "encoder":
            features, state = self._apply(variables, state, rng, "decode", shared, task, True)
        return self._apply(variables, state, rng, "predict", features, task, image.shape[1:3])

    def _apply(self, variables: Tree, state: Tree, rng: jax.Array, part: str, *args: Any) -> tuple[Any, Tree]:
        """Runs a part of the model in training; returns its value and the model's whole new state."""
        value, new = self.model.apply(
            {"params": variables["params"]["model"], **state},
            *args,
            rngs={"dropout": rng},
            mutable=list(state),
            method=part,
        )
        return value, {**state, **new}


def build(
    model: nn.Module,
    tasks: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    order: Sequence[str] | None = None,
    discriminator_weight: float = 0.0,
    discriminator_depth: int = 2,
    discriminator_kernel: int = 1,
    tap: str = "decoder",
    reversal: float = 1.0,
    steps: int | None = None,
    epochs: int = 60,
) -> ASTMT:
    """See ASTMT; without a discriminator if its weight is 0.

    Args:
      weights: task -> w_t (see methods/weighting.py).
      order: of the tasks' turns; by default that of `tasks`.
      steps: config.train.steps, if there is a discriminator.

    Raises:
      UserError: an option that makes no sense, or a discriminator for a single task.
    """
    order = tuple(order or tasks)
    if sorted(order) != sorted(tasks):
        raise UserError(
            f"config.method.order must name each of {', '.join(tasks)} once, not {', '.join(order)}"
        )
    if isinstance(model, InteractingNet):
        raise UserError(
            "config.method is 'astmt', which runs one task at a time, but the network's branches read each"
            " other: choose another config.model"
        )
    if not 0 <= discriminator_weight <= 1:
        raise UserError(f"config.method.discriminator_weight is {discriminator_weight}: give 0 to 1")
    one_of("method.tap", tap, TAPS)
    discriminator = None
    if discriminator_weight:
        _check_discriminator(tasks, discriminator_depth, discriminator_kernel, reversal, steps, epochs)
        discriminator = Discriminator(len(order), discriminator_depth, discriminator_kernel)
    return ASTMT(
        model=model,
        tasks=tasks,
        weighting=weightings.make(tasks, weights, "fixed"),
        order=order,
        discriminator=discriminator,
        discriminator_weight=discriminator_weight,
        tap=tap,
        reversal=reversal,
        steps=steps,
        epochs=epochs,
    )


def _check_discriminator(tasks, depth, kernel, reversal, steps, epochs) -> None:
    if len(tasks) < 2:
        raise UserError(
            f"a discriminator has nothing to tell apart with {next(iter(tasks))!r} as the only task: "
            "set config.method.discriminator_weight to 0"
        )
    for name, task in tasks.items():
        if not task.label_is_map:
            raise UserError(f"the discriminator reads dense tasks' gradients: task {name!r} is not dense")
    if depth < 1 or kernel < 1 or kernel % 2 == 0:
        raise UserError(
            f"config.method.discriminator_depth is {depth} and discriminator_kernel {kernel}: "
            "give a positive depth and an odd kernel"
        )
    if not 0 <= reversal <= 1:
        raise UserError(f"config.method.reversal is {reversal}: give 0 to 1")
    if not steps or steps < 1 or epochs < 1:
        raise UserError(
            f"config.method: steps is {steps} and epochs {epochs}: the discriminator needs both, positive "
            "(steps is config.train.steps)"
        )

"""MTI-Net (Vandenhende et al., ECCV 2020): prediction and distillation at every resolution of the encoder.

The paper leaves numbers of layers and channels open; those here are of the authors' release.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.backbones.hrnet import Residual
from mtl_jax.models.conv import Conv
from mtl_jax.models.decoders.distillation import Blocks, Distillation, Initial
from mtl_jax.models.decoders.fuse import Fuse
from mtl_jax.models.modulation import SqueezeExcite
from mtl_jax.models.naming import owned
from mtl_jax.models.norm import ConvNorm
from mtl_jax.models.resize import resize

SOFTMAX = ("released", "across_tasks")
SQUEEZE = 4  # times fewer channels inside the function that weighs the tasks' features
REDUCTION = 16  # of the gates


def task_weights(scores: jax.Array, tasks: int, softmax: str) -> jax.Array:
    """Weights of the features of all tasks, which lie side by side: f[...,tasks * C] -> the same shape.

    Args:
      scores: the channels of the first task, then those of the second, and so on.
      softmax: "across_tasks": the weights of a channel sum to 1 over the tasks, as the paper says;
        "released": those of each run of `tasks` channels that follow each other do, most of which are of
        one task. The authors' code does so, and their figures come from it.
    """
    parts, axis = ((tasks, -1), -2) if softmax == "across_tasks" else ((-1, tasks), -1)
    return nn.softmax(scores.reshape(*scores.shape[:-1], *parts), axis).reshape(scores.shape)


class Propagation(nn.Module):
    """What the tasks' features at one resolution tell the next finer one.

    All tasks' features are weighed and reduced to those of one; each task gates them and adds its own.

    Attributes:
      softmax: see `task_weights`.
    """

    softmax: str = "released"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Mapping[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """{task: f[B,h,w,C]} -> the same shapes."""
        every = jnp.concatenate(list(features.values()), -1)
        total, width = every.shape[-1], every.shape[-1] // len(features)
        scores = Blocks(max(1, total // SQUEEZE), dtype=self.dtype, name="blocks")(every, train)
        scores = Conv(total, 1, use_bias=True, dtype=self.dtype, name="scores")(scores)
        weighed = every * task_weights(scores, len(features), self.softmax)
        unit = functools.partial(ConvNorm, dtype=self.dtype)
        shared = Residual(width, False, unit, name="reduce")(weighed, train)
        return {
            task: SqueezeExcite(REDUCTION, dtype=self.dtype, name=owned("gate", task))(shared) + x
            for task, x in features.items()
        }


class MTINetDecoder(nn.Module):
    """From the coarsest map to the finest: first predictions, distillation, propagation; then all fused.

    What belongs to the finest map has number 0 in its name.

    Attributes:
      channels: of each task's prediction.
      softmax: see `task_weights`.
    """

    channels: Mapping[str, int]
    softmax: str = "released"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: list[jax.Array], train: bool
    ) -> tuple[dict[str, jax.Array], list[dict[str, jax.Array]]]:
        """Maps f[B,h,w,C] of the encoder, fine to coarse, of any sizes.

        Returns:
          {task: f[B,h,w,sum of all C]} of the first one's (h, w), and for each map
          {task: raw f[B,h,w,channels]}.
        """
        levels, predictions, carried = [], [], {}
        for scale, x in reversed(list(enumerate(maps))):
            first, raw = self._initial(scale, x, carried, train)
            predictions.insert(0, raw)
            levels.insert(0, Distillation(self.dtype, name=f"distillation{scale}")(first))
            if scale:
                carried = Propagation(self.softmax, self.dtype, name=f"propagation{scale}")(first, train)
        return {
            task: Fuse(self.dtype, name=owned("fuse", task))([level[task] for level in levels], train)
            for task in self.channels
        }, predictions

    def _initial(self, scale, x, carried, train):
        """Each task's features and prediction from the encoder's map and what the coarser one tells it."""
        first, raw = {}, {}
        for task, channels in self.channels.items():
            coarser = [resize(carried[task], x.shape[1:3])] if carried else []
            name = owned(f"initial{scale}", task)
            initial = Initial(channels, x.shape[-1], dtype=self.dtype, name=name)
            first[task], raw[task] = initial(jnp.concatenate([x, *coarser], -1), train)
        return first, raw

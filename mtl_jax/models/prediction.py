"""What every model returns."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Prediction:
    """Result of a forward pass.

    A model is a Linen module with `tasks: dict of Task` and
      `features(image, task, train)` -> f[B,h,w,C], what the last layer of the task's branch reads;
      `predict(features, task, size)` -> raw f32[B,H,W,channels] at the image's size (H, W);
      `__call__(image, tasks, train)` -> Prediction, their composition over `tasks` (names).
    Images are f32[B,H,W,3] RGB in [0, 1]; a model normalises them itself.

    Attributes:
      outputs: task -> raw f32[B,H,W,channels].
      features: task -> f[B,h,w,C]; tasks that share a decoder hold the same array.
      shared: what all tasks share of the encoder (the last stage's map), f[B,h,w,C].
    """

    outputs: dict[str, jax.Array]
    features: dict[str, jax.Array]
    shared: Any

"""The multi-task network whose branches read each other: an encoder, one decoder of all tasks, heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from mtl_jax.errors import UserError
from mtl_jax.models.heads import DenseHead
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.models.preprocessing import IMAGENET, Preprocessing
from mtl_jax.models.resize import resize
from mtl_jax.tasks import Task


class InteractingNet(nn.Module):
    """A model as models/prediction.py describes it.

    The prediction of one task takes the branches of all. Submodules are `encoder`, `decoder` and
    `head@<task>`; what one task has for itself inside the decoder is named as models/naming.py says.

    Attributes:
      tasks: by name, each with a prediction per pixel.
      encoder: (image, train, task) -> maps, fine to coarse; the same for all tasks.
      decoder: (maps, train) -> (features {task: f[B,h,w,C]}, intermediate), where `intermediate` is a list
        of {task: raw f[B,h,w,channels]}, each of any resolution.
      dtype: of the heads' computation.
      preprocessing: of the image, before the encoder.
    """

    tasks: Mapping[str, Task]
    encoder: nn.Module
    decoder: nn.Module
    dtype: Any
    preprocessing: Preprocessing = IMAGENET

    def setup(self):
        self.heads = {
            name: DenseHead(task.channels, self.dtype, name=owned("head", name))
            for name, task in self.tasks.items()
        }

    def encode(self, image: jax.Array, task: str | None, train: bool) -> list[jax.Array]:
        """Image f32[B,H,W,3] RGB in [0, 1] -> maps, fine to coarse."""
        return self.encoder(self.preprocessing(image), train, task)

    def decode(self, maps: list[jax.Array], task: str, train: bool) -> jax.Array:
        """What `encode` returns -> features f[B,h,w,C], what the task's head reads."""
        return self.decoder(maps, train)[0][task]

    def features(self, image: jax.Array, task: str, train: bool) -> jax.Array:
        """f32[B,H,W,3] -> f[B,h,w,C], what the task's head reads."""
        return self.decode(self.encode(image, task, train), task, train)

    def predict(self, features: jax.Array, task: str, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> raw f32[B,H,W,channels]."""
        return self.heads[task](features, size)

    def __call__(self, image: jax.Array, tasks: Sequence[str], train: bool) -> Prediction:
        """f32[B,H,W,3] -> Prediction of `tasks`; all branches run, whichever tasks these are."""
        size = image.shape[1:3]
        maps = self.encode(image, None, train)
        if not self.is_initializing():
            maps = self.perturb("maps", maps)
        features, earlier = self.decoder(maps, train)
        return Prediction(
            outputs={task: self.predict(features[task], task, size) for task in tasks},
            features={task: features[task] for task in tasks},
            encoded=dict.fromkeys(tasks, maps[-1]),
            intermediate=tuple(
                {task: resize(raw[task].astype("float32"), size) for task in tasks} for raw in earlier
            ),
        )

    @property
    def last_shared(self) -> tuple[str, ...]:
        """Path, in the parameters, of the last convolution that all tasks share."""
        return ("encoder", *self.encoder.last)


def check_maps(model: str, tasks: Mapping[str, Task], least: int = 1) -> None:
    """UserError if a network of `least` tasks, each with a prediction per pixel, cannot have these."""
    for name, task in tasks.items():
        if not task.dense:
            raise UserError(
                f"config.model.name {model!r} is a network of dense tasks: task {name!r} is not dense"
            )
    if len(tasks) < least:
        raise UserError(
            f"config.model.name {model!r} is a network whose tasks learn from each other: give it a second"
            f" task beside {', '.join(tasks)}, or choose 'semantic_fpn'"
        )

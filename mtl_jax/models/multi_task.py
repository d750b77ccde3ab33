"""The multi-task network: one encoder, one decoder for all tasks or one for each, one head per task.

With modulation (models/modulation.py), what is shared behaves differently for each task, and a task's
prediction runs the modules that all tasks share and its own, no other's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from mtl_jax.models.heads import DenseHead, GlobalHead
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.models.preprocessing import IMAGENET, Preprocessing
from mtl_jax.tasks import Task


class MultiTaskNet(nn.Module):
    """A model as models/prediction.py describes it.

    `init` makes the parameters of the tasks that it is called with: name all of them. Submodules are
    `encoder`, `neck`, `decoder` or `decoder@<task>`, and `head@<task>`. A task with one label per image
    reads the last map.

    Attributes:
      tasks: by name; a dense one has a prediction per pixel, any other one per image.
      encoder: (image, train, task) -> maps, fine to coarse.
      make_decoder: (task, or None for all; name) -> a module (maps, train, task) -> features.
      own_decoders: a decoder for each task.
      dtype: of the heads' computation.
      neck: (maps, train, task) -> maps, what all decoders read instead of the encoder's.
      preprocessing: of the image, before the encoder.
    """

    tasks: Mapping[str, Task]
    encoder: nn.Module
    make_decoder: Callable[[str | None, str], nn.Module]
    own_decoders: bool
    dtype: Any
    neck: nn.Module | None = None
    preprocessing: Preprocessing = IMAGENET

    def setup(self):
        dense = [name for name, task in self.tasks.items() if task.dense]
        owners = dense if self.own_decoders else [None] if dense else []
        self.decoders = {task: self.make_decoder(task, owned("decoder", task)) for task in owners}
        self.heads = {
            name: (DenseHead if task.dense else GlobalHead)(
                task.channels, self.dtype, name=owned("head", name)
            )
            for name, task in self.tasks.items()
        }

    def encode(self, image: jax.Array, task: str, train: bool) -> list[jax.Array]:
        """Image f32[B,H,W,3] RGB in [0, 1] -> maps, fine to coarse."""
        maps = self.encoder(self.preprocessing(image), train, task)
        return maps if self.neck is None else self.neck(maps, train, task)

    def decode(self, maps: list[jax.Array], task: str, train: bool) -> jax.Array:
        """What `encode` returns -> features f[B,h,w,C], what the task's head reads."""
        if not self.tasks[task].dense:
            return maps[-1]
        return self.decoders[task if self.own_decoders else None](maps, train, task)

    def features(self, image: jax.Array, task: str, train: bool) -> jax.Array:
        """f32[B,H,W,3] -> f[B,h,w,C], what the task's head reads."""
        return self.decode(self.encode(image, task, train), task, train)

    def predict(self, features: jax.Array, task: str, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> raw f32[B,H,W,channels]; [B,1,1,channels] for one label per image."""
        return self.heads[task](features, size)

    def __call__(self, image: jax.Array, tasks: Sequence[str], train: bool) -> Prediction:
        """f32[B,H,W,3] -> Prediction of `tasks`; what they have in common runs once, the rest for each."""
        one_encoding = not self.encoder.modulation.per_task
        all_dense = all(task.dense for task in self.tasks.values())
        shared = self.decoders.get(None)
        one_decoding = one_encoding and shared is not None and not shared.modulation.per_task
        encoded, features, maps, decoded = {}, {}, None, None
        for task in tasks:
            if maps is None or not one_encoding:
                maps = self.encode(image, task, train)
                if one_encoding and not (one_decoding and all_dense):
                    maps = self._mark("maps", maps)
            encoded[task] = features[task] = maps[-1]
            if self.tasks[task].dense:
                if decoded is None or not one_decoding:
                    decoded = self.decode(maps, task, train)
                    if one_decoding and all_dense:
                        decoded = self._mark("features", decoded)
                features[task] = decoded
        outputs = {task: self.predict(features[task], task, image.shape[1:3]) for task in tasks}
        return Prediction(outputs, features, encoded)

    def _mark(self, name: str, shared: Any) -> Any:
        return shared if self.is_initializing() else self.perturb(name, shared)

    @property
    def last_shared(self) -> tuple[str, ...]:
        """Path, in the parameters, of the last convolution that all tasks share."""
        if self.own_decoders or not all(task.dense for task in self.tasks.values()):
            return ("encoder", *self.encoder.last) if self.neck is None else ("neck", *self.neck.last)
        return ("decoder", *self.make_decoder(None, "decoder").last)

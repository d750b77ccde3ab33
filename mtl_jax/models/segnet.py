"""Multi-task SegNet: one encoder and one decoder for all tasks, one head per task."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax import names
from mtl_jax.errors import UserError, one_of
from mtl_jax.models.backbones import segnet
from mtl_jax.models.decoders.segnet import SegNetDecoder
from mtl_jax.models.heads import GlobalHead, SegNetHead
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.models.preprocessing import PLAIN, Preprocessing
from mtl_jax.tasks import Task


class SegNet(nn.Module):
    """A model as models/prediction.py describes it.

    `init` makes the parameters of the tasks that it is called with: name all of them. Submodules are
    `encoder`, `decoder` and `head@<task>`. A task with one label per image reads the latent.

    Attributes:
      tasks: by name; a dense one has a prediction per pixel, any other one per image.
      encoder: (image, train) -> indices of the five poolings, and the latent.
      width: multiplies the channels of the decoder.
      dtype: of the computation.
      preprocessing: of the image, before the encoder.
    """

    tasks: Mapping[str, Task]
    encoder: nn.Module
    width: float = 1.0
    dtype: Any = jnp.float32
    preprocessing: Preprocessing = PLAIN

    def setup(self):
        self.decoder = SegNetDecoder(self.width, dtype=self.dtype)
        self.heads = {
            name: (SegNetHead if task.dense else GlobalHead)(
                task.channels, self.dtype, name=owned("head", name)
            )
            for name, task in self.tasks.items()
        }

    def encode(self, image: jax.Array, task: str, train: bool) -> list[jax.Array]:
        """Image f32[B,H,W,3] RGB in [0, 1] -> indices of the five poolings, and the latent."""
        return self.encoder(self.preprocessing(image), train)

    def decode(self, maps: list[jax.Array], task: str, train: bool) -> jax.Array:
        """What `encode` returns -> features f[B,h,w,C], what the task's head reads.

        Those of a dense task have the image's size, enlarged to multiples of 32.
        """
        return self.decoder(maps, train) if self.tasks[task].dense else maps[-1]

    def features(self, image: jax.Array, task: str, train: bool) -> jax.Array:
        """f32[B,H,W,3] -> f[B,h,w,C], what the task's head reads."""
        return self.decode(self.encode(image, task, train), task, train)

    def predict(self, features: jax.Array, task: str, size: tuple[int, int]) -> jax.Array:
        """f[B,h,w,C] -> raw f32[B,H,W,channels]; [B,1,1,channels] for one label per image."""
        return self.heads[task](features, size)

    def __call__(self, image: jax.Array, tasks: Sequence[str], train: bool) -> Prediction:
        """f32[B,H,W,3] -> Prediction of `tasks`; encoder and decoder run once."""
        all_dense = all(task.dense for task in self.tasks.values())
        *indices, latent = self.encoder(self.preprocessing(image), train)
        if not all_dense:
            latent = self._mark("latent", latent)
        features = dict.fromkeys(tasks, latent)
        dense = [task for task in tasks if self.tasks[task].dense]
        if dense:
            decoded = self.decoder([*indices, latent], train)
            if all_dense:
                decoded = self._mark("features", decoded)
            features |= dict.fromkeys(dense, decoded)
        outputs = {task: self.predict(features[task], task, image.shape[1:3]) for task in tasks}
        return Prediction(outputs, features, dict.fromkeys(tasks, latent))

    def _mark(self, name: str, shared: jax.Array) -> jax.Array:
        return shared if self.is_initializing() else self.perturb(name, shared)

    @property
    def last_shared(self) -> tuple[str, ...]:
        """Path, in the parameters, of the last convolution that all tasks share."""
        if all(task.dense for task in self.tasks.values()):
            return ("decoder", f"stage1_conv{segnet.STAGES[0][1]}", "conv")
        return ("encoder", f"stage{len(segnet.STAGES)}_conv{segnet.STAGES[-1][1]}", "conv")


def build(
    tasks: Mapping[str, Task],
    dtype: str,
    width: float = 1.0,
    encoder: Mapping[str, Any] = MappingProxyType({}),
) -> SegNet:
    """A SegNet for `tasks`.

    Args:
      dtype: of the computation, "float32" or "bfloat16"; parameters and statistics are float32.
      width: multiplies all numbers of channels.
      encoder: further options of `build` in backbones/segnet.py.

    Raises:
      UserError: an option that is none of these.
    """
    one_of("dtype", dtype, ("float32", "bfloat16"))
    if width <= 0:
        raise UserError(f"config.model.width is {width}: give a positive factor")
    if "width" in encoder:
        raise UserError("config.model.encoder.width is that of the decoder too: set config.model.width")
    network = names.build("models.backbones", "segnet", {"width": width, **encoder}, dtype)
    return SegNet(tasks, network, width, jnp.dtype(dtype))

"""What a task is: everything that the rest of the library must know of one kind of label, in one place.

A task never sees a file or a network. Labels arrive in the task's *canonical form*, which every
dataset reader produces and which the class docstring of each task states (unit, range, value that
means "unknown"). Geometry (`known`, `flip`, `rescale`, `rotate`, `place`) is written with operators and the
array's own `namespace`, so that it works on NumPy, TensorFlow (input pipeline) and JAX (methods)
arrays alike.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError

LEAST = 1e-3  # a positive quantity as a label, in the label's unit: float16 still tells it from 0

Array = Any  # numpy.ndarray, tf.Tensor or jax.Array


def namespace(array: Array) -> ModuleType:
    """The NumPy-like module of an array's library: `numpy`, `jax.numpy` or TensorFlow's."""
    if isinstance(array, np.ndarray | np.generic | float | int):
        return np
    if isinstance(array, jax.Array):
        return jnp
    import tensorflow.experimental.numpy as tnp  # slow to import, and present if there is a tf.Tensor

    return tnp


class Metric(Protocol):
    """A streaming accumulator: a pytree, exact over a whole split, whatever the batch boundaries."""

    def update(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> "Metric":
        """Adds a batch; `pred` is activated and decoded. Pure and jittable, unless `on_host` is true."""

    def compute(self) -> dict[str, float]:
        """Results by name, as Python floats; NaN where nothing was valid."""


def known_headline(task: str, headline: str, known: Sequence[str]) -> str:
    """`headline`; UserError if it is none of the metrics that can represent the task."""
    if headline not in known:
        raise UserError(f"task {task!r} has no headline {headline!r}: choose one of {', '.join(known)}")
    return headline


@dataclasses.dataclass(frozen=True)
class Task:
    """A dense (or global) prediction task.

    Attributes:
      name: key of the task in config, batch, model and results.
      channels: width of the network's raw output.
      label_channels: C of the canonical label [..., H, W, C].
      label_dtype: dtype of the label in a batch ("int32" for class ids, else "float32").
      interpolation: how the label is resampled, "nearest" or "bilinear".
      fill: label value that means "unknown"; padding is filled with it.
      dense: False for one label per image: label, valid and prediction are then [B, 1, 1, C].
      headline: the metric that represents the task in Delta_m and in tables.
      better: +1 if a larger headline is better, -1 if a smaller one is.
      unit: of the headline in tables; "%" marks a fraction, which tables show times 100.
      discrete: True if labels are classes, False if they are quantities.
      values: what `activate` and `encode` give: "classes" (channels that exclude each other, sum 1), "unit"
        (each in [0, 1]), "directions" (unit vectors), or "real" (quantities without bounds). Or "boxes": the
        label is a row per object, [B, n, 1, C] whatever the image's size, with valid [B, 1, 1, 1]; such tasks
        have `place` and `decode`, and `encode`, `to_label`, `distance` and `colorize` mean nothing for them.
    """

    name: str
    channels: int = 1

    label_channels: ClassVar[int] = 1
    label_dtype: ClassVar[str] = "float32"
    interpolation: ClassVar[str] = "nearest"
    fill: ClassVar[float] = float("nan")
    dense: ClassVar[bool] = True
    headline: ClassVar[str]
    better: ClassVar[int]
    unit: ClassVar[str] = ""
    discrete: ClassVar[bool] = False
    values: ClassVar[str] = "real"

    @property
    def label_is_map(self) -> bool:
        """Whether the label has a value per pixel; if not, `place` moves it."""
        return self.dense and self.values != "boxes"

    def label_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the label [B, h, w, C] in a batch of images of (H, W) = `size`."""
        return size if self.label_is_map else (1, 1)

    # Geometry of a canonical label [..., H, W, C]; resampling itself is done by data/augment.py.

    def known(self, label: Array) -> Array:
        """bool[..., H, W, 1]: where the label holds a value (is not `fill`)."""
        raise NotImplementedError

    def flip(self, label: Array) -> Array:
        """Values of the label after a mirroring left to right of the image (places already moved)."""
        return label

    def rescale(self, label: Array, factor: Array) -> Array:
        """Values after enlarging the image by `factor` (same camera, so things appear nearer)."""
        return label

    def rotate(self, label: Array, radians: Array) -> Array:
        """Values after turning the image's content counter-clockwise (as seen) by `radians`.

        `radians` is a float, or an array of the label's library and dtype that broadcasts against it.
        """
        return label

    def place(self, label: Array, matrix: Array, size: tuple[Array, Array]) -> Array:
        """A label that is no map, [h, w, C] without a batch axis, after the image's points have moved.

        Args:
          label: canonical, as a reader gives it or as `place` returns it.
          matrix: f32[2,3]: (y, x, 1) before -> (y, x), in pixels, where pixel k spans [k, k + 1].
          size: (H, W) of the canvas that they moved to.

        Returns:
          [*label_size, C].
        """
        del matrix, size
        return label

    # Learning and measuring.

    def activate(self, pred: jax.Array) -> jax.Array:
        """Raw output [..., channels] -> physical prediction (probabilities, metres, unit vectors), f32."""
        return pred.astype("float32")

    def decode(self, activated: jax.Array) -> jax.Array:
        """What the metric reads and pictures show of a prediction in the space of `activate`: that itself."""
        return activated

    def encode(self, label: jax.Array) -> jax.Array:
        """Canonical label -> f32[..., channels] in the space of `activate` (one-hot, metres, ...).

        Finite everywhere; all zero where the label is unknown.
        """
        raise NotImplementedError

    def to_label(self, activated: Array) -> Array:
        """A prediction in the space of `activate`, as if it were a label: canonical, and known everywhere.

        Where 0 means "unknown", quantities are positive: the label is then at least LEAST.
        """
        return namespace(activated).maximum(activated, LEAST) if self.fill == 0 else activated

    def loss(self, pred: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
        """f32[B]: masked mean per example; `pred` is raw f32[B,H,W,channels], valid f32[B,H,W,1].

        Labels at valid == 0 have no influence, whatever stands there; without any valid place the
        loss and its gradient are 0.
        """
        raise NotImplementedError

    def metric(self) -> Metric:
        """An empty accumulator whose results include `headline`."""
        raise NotImplementedError

    def distance(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """f32[...]: how far apart two *encoded* labels [..., channels] are (0 = the same)."""
        raise NotImplementedError

    def colorize(self, encoded: np.ndarray) -> np.ndarray:
        """uint8[H,W,3] picture of one encoded label or activated prediction f32[H,W,channels].

        Places that hold NaN, or the zeros of `encode` where no known label has them, are striped.
        """
        raise NotImplementedError

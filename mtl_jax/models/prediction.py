"""What every model returns."""

import flax.struct
import jax


@flax.struct.dataclass
class Prediction:
    """Result of a forward pass.

    A model is a Linen module with `tasks: dict of Task` and
      `encode(image, task, train)` -> maps of the encoder, fine to coarse;
      `decode(maps, task, train)` -> f[B,h,w,C], what the last layer of the task's branch reads;
      `features(image, task, train)` -> their composition;
      `predict(features, task, size)` -> raw f32[B,H,W,channels] at the image's size (H, W);
      `__call__(image, tasks, train)` -> Prediction, the composition of all over `tasks` (names).
    Submodules that belong to one task are named as models/naming.py says. Images are f32[B,H,W,3]
    RGB in [0, 1]; a model normalises them itself.

    For methods that compare the tasks' gradients, `__call__` marks the last tensors that all tasks
    share by `Module.perturb` (its zeros come from `apply(..., mutable=["perturbations"])`, not from
    `init`), and `last_shared` is the path of the last shared convolution's parameters. A model with
    nothing shared marks nothing.

    Attributes:
      outputs: task -> raw f32[B,H,W,channels].
      features: task -> f[B,h,w,C]; tasks that share a decoder hold the same array.
      encoded: task -> the encoder's last map, f[B,h,w,C]; the same array where tasks share the encoder.
      intermediate: earlier predictions, each like `outputs`, which are trained on the same labels.
    """

    outputs: dict[str, jax.Array]
    features: dict[str, jax.Array]
    encoded: dict[str, jax.Array]
    intermediate: tuple[dict[str, jax.Array], ...] = ()

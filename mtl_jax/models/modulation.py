"""What each task has for itself inside a network that tasks share (Maninis et al., CVPR 2019, section 3).

Squeeze-and-excitation gates re-weight the shared channels, residual adapters add to the shared
convolutions, and normalisation keeps scale, shift and statistics; a task runs its own, and no other's.
Where what changes is chosen for each example, a table has a scale and a shift for every choice (FiLM).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

SE = ("none", "shared", "task")


@dataclasses.dataclass(frozen=True)
class Modulation:
    """Which modules an encoder or decoder has beside its convolutions, and whose they are.

    Attributes:
      se: squeeze-and-excitation gates: "none", "shared" by all tasks, or one for each "task".
      adapters: each task has 1x1 convolutions parallel to the shared ones.
      norm: each task has its own normalisation.
      film: columns of the tables that scale and shift what is normalised; 0 for no tables. With them, the
        `task` of a network is no name but i32[B], the column of each example.
    """

    se: str = "none"
    adapters: bool = False
    norm: bool = False
    film: int = 0

    @property
    def per_task(self) -> bool:
        """Whether tasks differ in anything, so that each needs a pass of its own."""
        return self.se == "task" or self.adapters or self.norm


class SqueezeExcite(nn.Module):
    """Channel gates from the map's average (Hu et al., CVPR 2018): x * sigmoid(W2 act(W1 mean(x))).

    Attributes:
      reduction: the hidden layer has channels // reduction units.
      activation: of the hidden layer.
    """

    reduction: int = 16
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,H,W,C] -> f[B,H,W,C]; the gates f[B,C] can be captured as intermediate `gate`."""
        channels = x.shape[-1]
        options = {"dtype": self.dtype, "kernel_init": nn.initializers.he_normal()}
        hidden = nn.Dense(max(1, channels // self.reduction), name="squeeze", **options)(jnp.mean(x, (1, 2)))
        gate = nn.sigmoid(nn.Dense(channels, name="excite", **options)(self.activation(hidden)))
        self.sow("intermediates", "gate", gate)
        return x * gate[:, None, None]


class FiLM(nn.Module):
    """Feature-wise linear modulation (Perez et al., AAAI 2018): x * scale[column] + bias[column], at first x.

    Attributes:
      columns: of the tables `scale` and `bias`, f32[columns,C].
    """

    columns: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, column: jax.Array) -> jax.Array:
        """f[B,H,W,C], i32[B] below `columns` -> f[B,H,W,C]."""
        shape = (self.columns, x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)
        scale, bias = (jnp.take(table, column, 0)[:, None, None] for table in (scale, bias))
        return x * scale + bias

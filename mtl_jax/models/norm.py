"""Normalisation by name, and the unit that networks are made of: convolution and what follows it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mtl_jax.models.conv import Conv
from mtl_jax.models.modulation import FiLM, Modulation, SqueezeExcite
from mtl_jax.models.naming import owned

KINDS = ("batch", "group", "instance")


def groups(channels: int) -> int:
    """32, or the largest number below that gives each group as many channels, at least two."""
    return next(n for n in range(min(32, max(1, channels // 2)), 0, -1) if channels % n == 0)


class Norm(nn.Module):
    """Batch, group or instance normalisation with learnt scale and shift; statistics are float32.

    Batch statistics are those of the global batch, on however many devices it lies; the running ones
    keep `momentum` of their value per update. Groups (Wu & He, ECCV 2018) are as many as `groups` says.
    Instance statistics are those of one channel of one example: a map of one pixel becomes 0.

    Attributes:
      kind: one of KINDS.
      zero: start with scale 0, so that a residual branch starts as the identity.
      epsilon: added to the variance.
    """

    kind: str
    dtype: Any = jnp.float32
    zero: bool = False
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """f[B,H,W,C] -> f[B,H,W,C]; `train` takes the batch's statistics instead of the running ones."""
        options = {
            "epsilon": self.epsilon,
            "dtype": self.dtype,
            "scale_init": nn.initializers.zeros if self.zero else nn.initializers.ones,
        }
        if self.kind == "batch":
            return nn.BatchNorm(use_running_average=not train, momentum=self.momentum, **options)(x)
        if self.kind == "instance":
            return nn.InstanceNorm(**options)(x)
        return nn.GroupNorm(num_groups=groups(x.shape[-1]), **options)(x)


class ConvNorm(nn.Module):
    """Convolution (+ adapter), normalisation (and a scale and shift from a table), activation, gate.

    Attributes:
      groups, use_bias, kernel_init: of the convolution; see models/conv.py.
      zero: start with normalisation scale 0.
      activation: None for a linear unit.
      modulation: what it has beside the convolution; submodules `adapter`, `norm` and `se`, or
        those names with `@task`, and `film`.
      adapter: whether it takes part where `modulation` has adapters; they start as zeros.
      reduction: of the gate, where `modulation` has gates; None for a unit without.
      gate_activation: of the gate's hidden layer.
      epsilon, momentum: of the normalisation.
    """

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.he_normal()
    norm: str = "batch"
    zero: bool = False
    activation: Callable[[jax.Array], jax.Array] | None = None
    modulation: Modulation = Modulation()
    adapter: bool = False
    reduction: int | None = None
    gate_activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Any = jnp.float32
    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, task: str | jax.Array | None = None) -> jax.Array:
        """f[B,H,W,C] -> f[B, ceil(H / stride), ceil(W / stride), features], for `task` if it matters."""
        mine = self.modulation
        y = Conv(
            self.features,
            self.size,
            self.stride,
            self.dilation,
            self.groups,
            self.use_bias,
            self.kernel_init,
            self.dtype,
            name="conv",
        )(x)
        if self.adapter and mine.adapters:
            y += Conv(
                self.features,
                1,
                self.stride,
                kernel_init=nn.initializers.zeros,
                dtype=self.dtype,
                name=owned("adapter", task),
            )(x)
        y = Norm(
            self.norm,
            self.dtype,
            self.zero,
            self.epsilon,
            self.momentum,
            name=owned("norm", task if mine.norm else None),
        )(y, train)
        if mine.film:
            y = FiLM(mine.film, self.dtype, name="film")(y, task)
        if self.activation is not None:
            y = self.activation(y)
        if self.reduction and mine.se != "none":
            gate = owned("se", task if mine.se == "task" else None)
            y = SqueezeExcite(self.reduction, self.gate_activation, self.dtype, name=gate)(y)
        return y

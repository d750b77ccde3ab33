"""What a network costs: parameters and arithmetic."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def parameters(tree: Any) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def flops(model: nn.Module, variables: Any, tasks: Sequence[str], size: tuple[int, int]) -> float:
    """Floating-point operations of the network's prediction of `tasks` for one image.

    XLA's count of the program before its optimisation: a multiply-add is 2, products with the
    padding's zeros are none (but in depthwise convolutions on CPU, about 1 % of a network that has them).

    Args:
      variables: what `model.apply` takes, arrays or their shapes.
      size: (H, W) of the image.
    """
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)

    def forward(variables, image):
        return model.apply(variables, image, tuple(tasks), train=False).outputs

    return jax.jit(forward).lower(variables, image).cost_analysis()["flops"]


def multiply_adds(model: nn.Module, variables: Any, tasks: Sequence[str], size: tuple[int, int]) -> int:
    """Multiply-adds of the network's prediction of `tasks` for one image, as papers count them.

    Those of its convolutions and dense layers, the products with the padding's zeros among them; nothing
    beside (normalisation, resizing). The arguments are those of `flops`.
    """
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    total = 0

    def count(call, args, kwargs, context):
        nonlocal total
        result = call(*args, **kwargs)
        if context.method_name == "__call__":
            for name, value in context.module.variables.get("params", {}).items():
                if name.startswith("kernel"):
                    total += value.size * math.prod(result.shape[:-1])  # each weight, at each place
        return result

    with nn.intercept_methods(count):
        jax.eval_shape(lambda v, x: model.apply(v, x, tuple(tasks), train=False).outputs, variables, image)
    return total

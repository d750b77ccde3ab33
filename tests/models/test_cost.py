"""Counts of parameters and arithmetic against counting by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost, deeplab
from mtl_jax.models.conv import Conv
from mtl_jax.tasks import depth, semseg

TASKS = {"semseg": semseg.build("semseg", 5), "depth": depth.build("depth")}


def valid_taps(length, size, stride, dilation):
    """Over all output places of one axis, the taps that lie on the input."""
    offsets = dilation * (np.arange(size) - size // 2)
    places = np.arange(0, length, stride)[:, None] + offsets
    return int(np.sum((places >= 0) & (places < length)))


def by_hand(model, variables, size):
    """Twice the multiply-adds of all convolutions, from the shapes that they meet."""
    total = 0

    def watch(call, args, kwargs, context):
        nonlocal total
        module = context.module
        if isinstance(module, Conv):
            _, height, width, channels = args[0].shape
            taps = [valid_taps(n, module.size, module.stride, module.dilation) for n in (height, width)]
            total += 2 * taps[0] * taps[1] * channels * module.features
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        jax.eval_shape(
            lambda v: model.apply(v, jnp.zeros((1, *size, 3)), tuple(TASKS), train=False).outputs, variables
        )
    return total


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("size", [(64, 96), (161, 129)])
def test_flops_count_the_arithmetic_in_any_formulation(monkeypatch, backend, size):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = deeplab.build(TASKS, "float32", decoder_width=64)
    image = jnp.zeros((1, *size, 3))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(TASKS), train=False))
    convolutions = by_hand(model, variables, size)
    # What is beside convolutions (normalisation, resizing) is a few per cent.
    assert convolutions < cost.flops(model, variables, tuple(TASKS), size) < 1.05 * convolutions


def test_parameters():
    assert cost.parameters({"a": jnp.zeros((2, 3)), "b": {"c": jnp.zeros(())}}) == 7

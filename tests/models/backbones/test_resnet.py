"""Residual networks against published sizes and the property that dilation is made for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost
from mtl_jax.models.backbones import resnet
from mtl_jax.models.backbones.resnet import Bottleneck, ResNet, base_channels, max_pool


def shapes(module, image=(1, 64, 64, 3)):
    return jax.eval_shape(lambda key: module.init(key, jnp.zeros(image), train=False), jax.random.key(0))


# torchvision's published totals less the classifier's 2048 * 1000 + 1000; depth 26 has stages of two
# blocks, so it lacks the identity blocks that depth 50 has on top (p = 64, 256, 512: 17 p^2 weights
# of three convolutions, 12 p of their norms).
@pytest.mark.parametrize(
    "depth,expected",
    [
        (50, 25_557_032 - 2_049_000),
        (101, 44_549_160 - 2_049_000),
        (152, 60_192_808 - 2_049_000),
        (26, 23_508_032 - sum(n * (17 * p * p + 12 * p) for n, p in ((1, 64), (2, 128), (4, 256), (1, 512)))),
    ],
)
def test_parameters_are_those_published(depth, expected):
    for options in ({}, {"norm": "group"}, {"output_stride": 8}, {"stride_in_1x1": True}):
        assert cost.parameters(shapes(ResNet(depth, **options))["params"]) == expected


@pytest.mark.parametrize("output_stride,last", [(32, (2, 3)), (16, (4, 5)), (8, (7, 9))])
def test_maps_have_the_stages_sizes(output_stride, last):
    module = ResNet(26, width=0.25, output_stride=output_stride)
    image = jnp.zeros((1, 49, 65, 3))
    maps = jax.eval_shape(lambda v: module.apply(v, image, train=False), shapes(module))
    assert [m.shape[-1] for m in maps] == [64, 128, 256, 512]
    assert maps[0].shape[1:3] == (13, 17) and maps[3].shape[1:3] == last


def test_width_gives_multiples_of_eight():
    assert [base_channels(w) for w in (1.0, 0.5, 0.25, 0.3, 0.01)] == [64, 32, 16, 16, 8]


def run(module, variables, image):
    return jax.jit(lambda v: module.apply(v, image, train=False))(variables)


@pytest.mark.parametrize("stride_in_1x1,size", [(False, (49, 35)), (True, (64, 96))])
def test_dilated_maps_contain_the_strided_ones(monkeypatch, random_variables, stride_in_1x1, size):
    """Convolutions "with holes": every second place of the denser map is the strided network's."""
    monkeypatch.setitem(resnet.BLOCKS, 26, (1, 1, 2, 2))  # quicker to compile
    image = jax.random.normal(jax.random.key(2), (1, *size, 3))
    strided = ResNet(26, 0.125, output_stride=32, stride_in_1x1=stride_in_1x1)
    variables = random_variables(strided, image, False)
    expected = run(strided, variables, image)[-1]
    assert jnp.std(expected) > 0.1
    for output_stride in (16, 8):
        step = 32 // output_stride
        dense = run(strided.clone(output_stride=output_stride), variables, image)[-1]
        assert dense.shape != expected.shape
        np.testing.assert_allclose(dense[:, ::step, ::step], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_where_a_block_has_its_stride(random_variables, stride_in_1x1):
    """A strided 1x1 never reads the pixels between; a 1x1 before a strided 3x3 reads all of them."""
    x = jax.random.normal(jax.random.key(2), (1, 6, 6, 8))
    block = Bottleneck(8, stride=2, stride_in_1x1=stride_in_1x1)
    variables = random_variables(block, x, False)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(block.apply(variables, x, train=False)))))(x)
    between = jnp.any(gradient[:, 1::2] != 0) | jnp.any(gradient[:, :, 1::2] != 0)
    assert between == (not stride_in_1x1)


@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 2)])
def test_max_pool_is_the_window_maximum(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))

    def window(x):
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

    np.testing.assert_array_equal(max_pool(x), window(x))
    ours, theirs = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (max_pool, window))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)

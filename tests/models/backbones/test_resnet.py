"""Residual networks against published sizes and the property that dilation is made for."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import cost
from mtl_jax.models.backbones import resnet
from mtl_jax.models.backbones.resnet import Bottleneck, ResNet, average_pool, base_channels, build, max_pool
from mtl_jax.models.modulation import Modulation


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


CLASSIFIER = 2048 * 1000 + 1000


@pytest.mark.parametrize(
    "options,expected",
    [  # timm's published totals
        ({"depth": 26}, 15_995_176),
        ({"depth": 26, "deep_stem": True, "average_shortcut": True}, 16_014_408),
        ({"deep_stem": True}, 25_576_264),
        ({"deep_stem": True, "average_shortcut": True}, 25_576_264),
        ({"modulation": Modulation(se="shared")}, 28_088_024),
        ({"norm": "group"}, 25_557_032),
        ({"groups": 32, "group_width": 4}, 25_028_904),
        ({"depth": 101, "groups": 32, "group_width": 8}, 88_791_336),
    ],
)
def test_parameters_of_the_variants(options, expected):
    params = shapes(ResNet(**{"depth": 50, **options}, top=True))["params"]
    assert cost.parameters(params) == expected - CLASSIFIER


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


def test_average_pool():
    x = jnp.arange(15.0).reshape(1, 3, 5, 1)
    halved, dense = (average_pool(x, stride)[0, ..., 0] for stride in (2, 1))
    np.testing.assert_allclose(halved, [[3, 5, 6.5], [10.5, 12.5, 14]])
    full = np.pad(np.asarray(x)[0, ..., 0], ((0, 1), (0, 1)))
    np.testing.assert_allclose(dense, (full[:-1, :-1] + full[:-1, 1:] + full[1:, :-1] + full[1:, 1:]) / 4)


SMALL = {"depth": 26, "width": 0.125, "output_stride": 8}
MODULATED = Modulation("task", adapters=True, norm=True)
VARIANTS = {
    "d": {"deep_stem": True, "average_shortcut": True, "modulation": MODULATED},
    "next-gn": {"norm": "group", "groups": 2, "group_width": 32, "stride_in_1x1": True},
}


@pytest.fixture
def few(monkeypatch):
    """A first and a last stage of one block: quick to compile."""
    monkeypatch.setitem(resnet.BLOCKS, 26, (1, 0, 0, 1))


IMAGE = np.random.default_rng(0).normal(size=(2, 33, 32, 3)).astype(np.float32)


def step(encoder, variables, task):
    """Maps, updated statistics and gradients of a step of training."""

    def loss(params):
        told = {**variables, "params": params}
        maps, state = encoder.apply(told, IMAGE, True, task, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.square(m)) for m in maps), (maps, state)

    (_, (maps, state)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    return maps, state, gradients


@pytest.mark.parametrize("variant", VARIANTS)
def test_remat_changes_nothing(few, random_variables, variant):
    """Neither names nor maps, statistics and gradients; those are finite, and the statistics move."""
    encoder = ResNet(**SMALL, **VARIANTS[variant], top=True)
    again = encoder.clone(remat=True)
    variables = random_variables(encoder, IMAGE, False, "t")
    names = jax.eval_shape(lambda: again.init(jax.random.key(0), IMAGE, False, "t"))
    assert jax.tree.structure(names) == jax.tree.structure(variables)
    once, twice = jax.jit(lambda v: (step(encoder, v, "t"), step(again, v, "t")))(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), once, twice)
    _, state, gradients = once
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradients))
    assert bool(state) == (variant == "d")
    for name in state:
        jax.tree.map(lambda a, b: np.testing.assert_(np.any(a != b)), state[name], variables[name])


def test_remat_with_tables(few):
    """There the task is an array."""
    encoder = ResNet(26, 0.125, "group", 8, modulation=Modulation(film=3), remat=True)
    column = jnp.array([2, 0])
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), IMAGE, False, column))
    assert jax.eval_shape(lambda v, c: step(encoder, v, c), variables, column)


def test_bfloat16_stays_close_and_top_is_a_mean(few, random_variables):
    encoder = ResNet(**SMALL, deep_stem=True, average_shortcut=True, top=True)
    variables = random_variables(encoder, IMAGE, False)
    both = [encoder, encoder.clone(dtype=jnp.bfloat16)]
    exact, rough = jax.jit(lambda v: [module.apply(v, IMAGE, False) for module in both])(variables)
    for a, b in zip(exact, rough, strict=True):
        assert b.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(a - b)) < 0.03 * jnp.max(jnp.abs(a))
    *_, last, top = exact
    np.testing.assert_allclose(top, np.mean(last, (1, 2), keepdims=True), rtol=1e-4, atol=1e-6)


def test_last_is_a_convolution():
    for depth in resnet.BLOCKS:
        encoder = ResNet(depth, 0.125)
        at = shapes(encoder)["params"]
        for name in encoder.last:
            at = at[name]
        assert at["kernel"].shape == (1, 1, 64, 256)


def test_build():
    assert build("bfloat16", depth=26, top=True) == ResNet(26, top=True, dtype=jnp.dtype("bfloat16"))
    options = {
        "width": 0.5,
        "norm": "group",
        "output_stride": 8,
        "stride_in_1x1": True,
        "modulation": Modulation("shared"),
        "deep_stem": True,
        "average_shortcut": True,
        "groups": 32,
        "group_width": 4,
        "remat": True,
    }
    assert build("float32", **options) == ResNet(50, **options, dtype=jnp.dtype("float32"))


@pytest.mark.parametrize(
    "options,told",
    [
        ({"depth": 18}, "config.model.encoder.depth is 18: choose one of 26, 50, 101, 152"),
        ({"norm": "layer"}, "config.model.encoder.norm is 'layer': choose one of batch, group"),
        ({"output_stride": 4}, "config.model.encoder.output_stride is 4: choose one of 8, 16, 32"),
        ({"width": 0}, "config.model.encoder.width is 0: give a positive factor, as 0.5"),
        ({"groups": 0}, "config.model.encoder.groups is 0: give 1, or more for a ResNeXt, as 32"),
        (
            {"width": 0.25, "groups": 2, "group_width": 3},
            "config.model.encoder.group_width is 3: give at least 4",
        ),
    ],
)
def test_options_that_build_refuses(options, told):
    with pytest.raises(UserError) as error:
        build("float32", **options)
    assert str(error.value) == told

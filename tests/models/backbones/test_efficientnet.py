"""EfficientNets against published sizes, and the properties of dilation, padding and stochastic depth."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtl_jax.errors import UserError
from mtl_jax.models import conv, cost
from mtl_jax.models.backbones import efficientnet
from mtl_jax.models.backbones.efficientnet import EfficientNet, MBConv, Unit, build

SMALL = ((1, 3, 16, 1, 1), (6, 5, 24, 2, 2))  # stages
IMAGE = np.random.default_rng(0).normal(size=(2, 33, 32, 3)).astype(np.float32)


@pytest.fixture
def small(monkeypatch):
    """A network of three blocks, the last with a shortcut, and one map."""
    monkeypatch.setattr(efficientnet, "STAGES", SMALL)
    monkeypatch.setattr(efficientnet, "LEVELS", (1,))
    return EfficientNet(width=0.5, top=True)


def key(seed):
    """Of random numbers that compile quickly."""
    return jax.random.key(seed, impl="rbg")


@pytest.fixture(autouse=True)
def quick_to_compile(monkeypatch):
    """One convolution instead of 25 products of shifted maps: for images this small, these take longer."""
    monkeypatch.setattr(conv, "conv", conv._lax_conv)


def shapes(module, image=(1, 32, 32, 3)):
    return jax.eval_shape(lambda key: module.init(key, jnp.zeros(image), train=False), jax.random.key(0))


# With the classifier of 1000 classes, as timm 1.0 counts them; the paper's table 2 has them in millions.
@pytest.mark.parametrize(
    "variant,published",
    [
        ("b0", 5_288_548),
        ("b1", 7_794_184),
        ("b2", 9_109_994),
        ("b3", 12_233_232),
        ("b4", 19_341_616),
        ("b5", 30_389_784),
        ("b6", 43_040_704),
        ("b7", 66_347_960),
        ("l2", 480_309_308),
        ("lite0", 4_652_008),
        ("lite1", 5_416_680),
        ("lite2", 6_092_072),
        ("lite3", 8_197_096),
        ("lite4", 13_006_568),
    ],
)
def test_parameters_are_those_published(variant, published):
    params = shapes(build("float32", variant, top=True), (1, 2, 2, 3))["params"]
    features = params["top"]["conv"]["kernel"].shape[-1]
    assert cost.parameters(params) + 1000 * (features + 1) == published


@pytest.mark.parametrize("output_stride,sizes", [(32, (7, 4, 2)), (16, (7, 4, 4)), (8, (7, 7, 7))])
def test_maps_have_the_stages_channels_and_sizes(output_stride, sizes):
    module = EfficientNet(output_stride=output_stride)
    maps = jax.eval_shape(lambda v: module.apply(v, jnp.zeros((2, 50, 32, 3)), False), shapes(module))
    assert [m.shape for m in maps] == [
        (2, 13, 8, 24),
        *((2, n, w, c) for n, w, c in zip(sizes, widths(sizes), (40, 112, 320), strict=True)),
    ]


def widths(sizes):
    """Of an image of 32 columns whose maps have so many rows, of 50."""
    return [{7: 4, 4: 2, 2: 1}[n] for n in sizes]


def test_the_top_has_parameters_of_its_own():
    without, with_top = (EfficientNet(width=0.25, top=top) for top in (False, True))
    before, after = (set(shapes(m)["params"]) for m in (without, with_top))
    assert after - before == {"top"}
    maps = jax.eval_shape(lambda v: with_top.apply(v, jnp.zeros((2, 33, 32, 3)), False), shapes(with_top))
    assert len(maps) == 5 and maps[-1].shape == (2, 1, 1, 320)


@pytest.mark.parametrize("variant", ["b2", "lite2"])
def test_the_path_of_the_last_convolution(variant):
    module = build("float32", variant)
    params = tree = shapes(module, (1, 2, 2, 3))["params"]
    for name in module.last:
        tree = tree[name]
    assert set(tree) == {"kernel"}
    assert module.last[0] == max(name for name in params if name.startswith("stage7"))


def run(module, variables, image):
    return jax.jit(lambda v: module.apply(v, image, train=False))(variables)


@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_dilated_maps_contain_the_strided_ones(random_variables, padding):
    """Every second place of a doubled map is the strided one's: the first, or, with "same", the second.

    Without gates: they average more places.
    """
    image = np.random.default_rng(2).normal(size=(1, 64, 96, 3)).astype(np.float32)
    strided = EfficientNet(0.5, 0.3, lite=True, output_stride=32, padding=padding)
    variables = random_variables(strided, image, False)
    expected = run(strided, variables, image)[-1]
    assert jnp.std(expected) > 0.1
    dense = run(strided.clone(output_stride=8), variables, image)[-1]
    first = 3 if padding == "same" else 0
    assert dense.shape[1:3] == (8, 12)
    np.testing.assert_allclose(dense[:, first::4, first::4], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 6), (7, 5), (1, 2), (2, 9)])
def test_same_is_the_padding_of_xla(random_variables, kernel, size):
    """Whose "SAME" is TensorFlow's."""
    x = np.random.default_rng(0).normal(size=(2, *size, 4)).astype(np.float32)
    unit = Unit(4, kernel, 2, groups=4, padding="same", active=False)
    variables = random_variables(unit, x, False)
    variables["params"]["norm"] = jax.tree.map(jnp.ones_like, variables["params"]["norm"])
    variables["batch_stats"] = shapes_as_identity(variables["batch_stats"])
    expected = lax.conv_general_dilated(
        x,
        variables["params"]["conv"]["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(unit.apply(variables, x, False) - 1, expected, rtol=1e-4, atol=1e-4)


def shapes_as_identity(stats):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.ones_like(leaf) if path[-1].key == "var" else jnp.zeros_like(leaf), stats
    )


def test_gates_are_as_narrow_as_the_blocks_input_asks():
    params = shapes(MBConv(24, expansion=6), (1, 8, 8, 16))["params"]
    assert params["conv2"]["se"]["squeeze"]["kernel"].shape == (96, 4)
    assert "se" not in shapes(MBConv(24, lite=True), (1, 8, 8, 16))["params"]["conv2"]


def gradients(module, variables, image):
    def loss(params):
        maps, state = module.apply(
            {**variables, "params": params},
            image,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key(3)},
        )
        return sum(jnp.mean(jnp.sin(m)) for m in maps), (maps, state)

    grads, (maps, state) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return grads, maps, state


def test_remat_changes_nothing_but_memory(random_variables, small):
    module = small.clone(drop=0.9)
    variables = random_variables(module, IMAGE, False)
    kept = gradients(module, variables, IMAGE)
    for leaf in jax.tree.leaves(kept[0]):
        assert jnp.all(jnp.isfinite(leaf))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["batch_stats"], kept[2]["batch_stats"])
    assert all(jax.tree.leaves(moved))
    remat = module.clone(remat=True)
    for encoder, recomputes in ((module, False), (remat, True)):
        trace = str(jax.make_jaxpr(lambda v, e=encoder: e.apply(v, IMAGE, False))(variables))
        assert ("remat" in trace or "checkpoint" in trace) == recomputes
    assert jax.tree.structure(shapes(remat)) == jax.tree.structure(shapes(module))
    again = gradients(remat, variables, IMAGE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), again, kept)


@pytest.mark.parametrize("norm", efficientnet.NORMS)
def test_bfloat16_is_close(random_variables, small, norm):
    module = small.clone(norm=norm, padding="same")
    variables = random_variables(module, IMAGE, False)
    exact = run(module, variables, IMAGE)
    short = run(module.clone(dtype=jnp.bfloat16), variables, IMAGE)
    for a, b in zip(exact, short, strict=True):
        assert b.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(a - b.astype(jnp.float32))) < 0.05 * jnp.max(jnp.abs(a))


def test_an_example_is_dropped_or_made_up_for(random_variables):
    x = np.random.default_rng(0).normal(size=(64, 2, 2, 8)).astype(np.float32)
    block = MBConv(8, drop=0.25, norm="group")
    variables = random_variables(block, x, False)
    branch = block.apply(variables, x, False) - x
    y = block.apply(variables, x, True, rngs={"dropout": key(1)})
    dropped = jnp.all(y == x, (1, 2, 3))
    assert 6 < jnp.sum(dropped) < 28
    expected = jnp.where(dropped[:, None, None, None], x, x + branch / 0.75)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_blocks_are_dropped_more_often_the_later_they_come(monkeypatch):
    rates = []
    plain = efficientnet.MBConv

    def spy(*args, **kwargs):
        block = plain(*args, **kwargs)
        rates.append(block.drop)
        return block

    monkeypatch.setattr(efficientnet, "MBConv", spy)
    shapes(EfficientNet(drop=0.16))
    np.testing.assert_allclose(rates, 0.01 * np.arange(16))


def test_no_random_numbers_are_asked_for_without_need(small):
    for drop, train in ((0.0, True), (0.2, False)):
        module = small.clone(drop=drop)
        jax.eval_shape(lambda v, m=module, t=train: m.apply(v, IMAGE, t, mutable=True), shapes(module))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"variant": "b9"}, "variant is 'b9': choose one of b0"),
        ({"norm": "layer"}, "norm is 'layer': choose one of batch, group"),
        ({"output_stride": 4}, "output_stride is 4: choose one of 8, 16, 32"),
        ({"padding": "valid"}, "padding is 'valid': choose one of symmetric, same"),
        ({"width": 0}, "width is 0: give a positive number"),
        ({"depth": -1.0}, "depth is -1.0: give a positive number"),
        ({"epsilon": 0.0}, "epsilon is 0.0: give a positive number"),
        ({"drop": 1.0}, "drop is 1.0: give a probability below 1"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(UserError, match=re.escape(f"config.model.encoder.{message}")):
        build("float32", **options)

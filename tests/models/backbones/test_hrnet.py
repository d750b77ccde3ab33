"""HRNets against published sizes, and what their exchange of maps and their options do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import conv, cost
from mtl_jax.models.backbones import hrnet
from mtl_jax.models.backbones.hrnet import Depth, HRNet, build, settled, upsample

IMAGE = np.random.default_rng(0).normal(size=(2, 33, 64, 3)).astype(np.float32)


@pytest.fixture
def tiny(monkeypatch):
    """Two branches, for with four a gradient takes long to compile."""
    monkeypatch.setattr(conv, "conv", conv._lax_conv)  # not the many products that run faster
    monkeypatch.setitem(hrnet.DEPTHS, "small_v1", Depth(1, 4, (1,), 1))
    return HRNet(4, "small_v1")


def shapes(module, image=(1, 32, 32, 3)):
    return jax.eval_shape(lambda key: module.init(key, jnp.zeros(image), train=False), jax.random.key(0))


def run(module, variables):
    return jax.jit(lambda v: module.apply(v, IMAGE, train=False))(variables)


# With the classifier of 1000 classes, as timm 1.0 counts them (in millions, they are in the official
# release's table); and without anything of the classifier, as timm counts its networks without a head.
@pytest.mark.parametrize(
    "width,depth,published,trunk",
    [
        (16, "small_v1", 13_187_464, 1_477_920),
        (18, "small_v2", 15_597_464, 3_860_720),
        (18, "full", 21_299_004, 9_562_260),
        *(
            pytest.param(*member, marks=pytest.mark.slow)
            for member in (
                (30, "full", 37_712_220, 25_812_276),
                (32, "full", 41_232_680, 29_305_536),
                (40, "full", 57_557_160, 45_521_216),
                (44, "full", 67_064_984, 54_974_640),
                (48, "full", 77_469_864, 65_325_120),
                (64, "full", 128_059_944, 115_697_600),
            )
        ),
    ],
)
def test_parameters_are_those_published_and_where_the_last_are(width, depth, published, trunk):
    module = build("float32", width, depth, top=True)
    params = tree = shapes(module)["params"]
    assert cost.parameters(params) + 1000 * (2048 + 1) == published
    assert cost.parameters({k: v for k, v in params.items() if not k.startswith("top_")}) == trunk
    for name in module.last:
        tree = tree[name]
    assert tree["kernel"].shape == (3, 3, 4 * width, 8 * width)
    assert module.last[0] == max(name for name in params if name.startswith("stage4"))


@pytest.mark.parametrize("upsampling", hrnet.UPSAMPLING)
def test_maps_have_the_branches_channels_and_sizes(upsampling):
    module = HRNet(6, "small_v1", upsampling)
    maps = jax.eval_shape(lambda v: module.apply(v, jnp.zeros((2, 50, 33, 3)), False), shapes(module))
    assert [m.shape for m in maps] == [
        (2, 13, 9, 6),
        (2, 7, 5, 12),
        (2, 4, 3, 24),
        (2, 2, 2, 48),
    ]


def test_nearest_repeats_pixels_in_place():
    x = jnp.arange(6.0).reshape(1, 3, 2, 1)
    y = upsample(x, (9, 5), 4, "nearest")[0, :, :, 0]
    np.testing.assert_array_equal(y[:, 0], [0, 0, 0, 0, 2, 2, 2, 2, 4])
    np.testing.assert_array_equal(y[0], [0, 0, 0, 0, 1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_settled_is_the_identity(dtype):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3, 4), dtype)

    def f(x):
        return jnp.sum(settled(x) ** 3)

    np.testing.assert_array_equal(jax.jit(settled)(x), x)
    assert settled(x).dtype == dtype
    np.testing.assert_allclose(jax.jit(jax.grad(f))(x), 3 * x**2, rtol=1e-2)
    compiled = jax.jit(lambda x: jnp.sin(settled(jnp.cos(x)))).lower(x).compile().as_text()
    assert "reduce-window" in compiled  # what XLA must not take away


def gradients(module, variables):
    def loss(params):
        maps, state = module.apply({**variables, "params": params}, IMAGE, True, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.sin(m)) for m in maps), (maps, state["batch_stats"])

    grads, (maps, stats) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return grads, maps, stats


def mean_of_stem(stats):
    (norm,) = stats["stem1"]["norm"].values()
    return norm["mean"]


def test_training_and_that_remat_changes_nothing(random_variables, tiny):
    variables = random_variables(tiny, IMAGE, False)
    grads, maps, stats = kept = gradients(tiny, variables)
    for leaf in jax.tree.leaves(grads):
        assert jnp.all(jnp.isfinite(leaf)) and jnp.any(leaf != 0)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), variables["batch_stats"], stats)
    assert all(jax.tree.leaves(moved))
    before, after = (mean_of_stem(tree) for tree in (variables["batch_stats"], stats))
    batch = conv.conv(IMAGE, variables["params"]["stem1"]["conv"]["kernel"], 2).mean((0, 1, 2))
    np.testing.assert_allclose(after, 0.99 * before + 0.01 * batch, rtol=1e-4, atol=1e-6)
    remat = tiny.clone(remat=True)
    for encoder, recomputes in ((tiny, False), (remat, True)):
        trace = str(jax.make_jaxpr(lambda v, e=encoder: e.apply(v, IMAGE, False))(variables))
        assert ("remat" in trace or "checkpoint" in trace) == recomputes
    assert jax.tree.structure(shapes(remat)) == jax.tree.structure(shapes(tiny))
    again = gradients(remat, variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), again, kept)


@pytest.mark.parametrize("norm", hrnet.NORMS)
def test_bfloat16_is_close(random_variables, tiny, norm):
    module = tiny.clone(norm=norm, top=True)
    variables = random_variables(module, IMAGE, False)
    exact = run(module, variables)
    short = run(module.clone(dtype=jnp.bfloat16), variables)
    for a, b in zip(exact, short, strict=True):
        assert b.dtype == jnp.bfloat16
        assert jnp.max(jnp.abs(a - b.astype(jnp.float32))) < 0.05 * jnp.max(jnp.abs(a))


@pytest.mark.parametrize(
    "options,named",
    [
        ({"depth": "v3"}, "depth is 'v3': choose one of full, small_v2, small_v1"),
        ({"upsampling": "cubic"}, "upsampling is 'cubic': choose one of bilinear, nearest"),
        ({"norm": "layer"}, "norm is 'layer': choose one of batch, group"),
        ({"width": 0}, "width is 0: give"),
        ({"momentum": 1.0}, "momentum is 1.0: give"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(UserError) as error:
        build("float32", **options)
    assert str(error.value).startswith(f"config.model.encoder.{named}")

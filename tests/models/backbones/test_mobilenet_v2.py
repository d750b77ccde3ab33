"""MobileNetV2 against published sizes, and its block against the paper's description in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d

from mtl_jax.errors import UserError
from mtl_jax.models import cost
from mtl_jax.models.backbones import mobilenet_v2
from mtl_jax.models.backbones.mobilenet_v2 import InvertedResidual, MobileNetV2, build, scaled
from mtl_jax.models.conv import Conv
from mtl_jax.models.modulation import Modulation

IMAGE = jnp.zeros((1, 65, 97, 3))


def shapes(module):
    return jax.eval_shape(lambda key: module.init(key, IMAGE, train=False), jax.random.key(0))["params"]


def test_parameters_are_those_published():
    """Torchvision's total, less the last convolution with its norm and the classifier."""
    rest = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert cost.parameters(shapes(MobileNetV2())) == 3_504_872 - rest
    assert cost.parameters(shapes(MobileNetV2(norm="group", output_stride=8))) == 3_504_872 - rest


@pytest.mark.parametrize(
    "width,millions", [(0.35, 1.66), (0.5, 1.95), (0.75, 2.61), (1.3, 5.34), (1.4, 6.06)]
)
def test_widths_are_those_of_the_released_weights(width, millions):
    """Totals that TensorFlow's model garden gives: without norms, with a classifier of 1001 outputs."""
    params = shapes(MobileNetV2(width))
    weights = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)
    last = max(1280, scaled(1280, width))
    total = weights + scaled(320, width) * last + last * 1001 + 1001
    assert round(total / 1e6, 2) == millions


# Totals of timm's networks, with a classifier of 1000 outputs; it releases weights of those from 0.5 on.
@pytest.mark.parametrize(
    "width,depth,expected",
    [
        (0.35, 1.0, 1_677_128),
        (0.5, 1.0, 1_968_680),
        (0.75, 1.0, 2_636_424),
        (1.0, 1.0, 3_504_872),
        (1.4, 1.0, 6_108_776),
        (1.1, 1.2, 4_516_520),
        (1.2, 1.4, 5_831_144),
    ],
)
def test_parameters_with_the_classifier(width, depth, expected):
    module = MobileNetV2(width, top=True, depth=depth)
    features = scaled(1280, width) if width == 1.4 else 1280
    maps = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), IMAGE, False))[0]
    assert len(maps) == 5 and maps[-1].shape == (1, 1, 1, features)
    assert cost.parameters(shapes(module)) + features * 1000 + 1000 == expected


def test_gates_have_a_fourth_of_the_channels():
    def extra(se):
        return cost.parameters(shapes(MobileNetV2(modulation=Modulation(se))))

    blocks = [16] + 2 * [24] + 3 * [32] + 4 * [64] + 3 * [96] + 3 * [160] + [320]
    expected = sum(2 * c * (c // 4) + c // 4 + c for c in blocks)
    assert extra("shared") - extra("none") == expected


def watch(module):
    """Maps' shapes, and (stride, dilation) of each depthwise convolution."""
    seen = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, Conv) and context.module.groups > 1:
            seen.append((context.module.stride, context.module.dilation))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        maps, _ = jax.eval_shape(
            lambda key: module.init_with_output(key, IMAGE, train=False), jax.random.key(0)
        )
    return [m.shape[1:] for m in maps], seen


ONCE, TWICE = (1, 1), (2, 1)
BEGINNING = [ONCE, TWICE, ONCE, TWICE, ONCE, ONCE]  # stages of 16, 24 and 32 channels


@pytest.mark.parametrize(
    "output_stride,sizes,ending",
    [
        (32, ((5, 7), (3, 4)), [TWICE] + 6 * [ONCE] + [TWICE] + 3 * [ONCE]),
        (16, ((5, 7), (5, 7)), [TWICE] + 6 * [ONCE] + 4 * [(1, 2)]),
        (8, ((9, 13), (9, 13)), 7 * [(1, 2)] + 4 * [(1, 4)]),
    ],
)
def test_dilation_takes_the_place_of_strides(output_stride, sizes, ending):
    maps, seen = watch(MobileNetV2(output_stride=output_stride))
    assert maps == [(17, 25, 24), (9, 13, 32), (*sizes[0], 96), (*sizes[1], 320)]
    assert seen == BEGINNING + ending


def test_the_stem_is_shared_and_blocks_are_modulated():
    module = MobileNetV2(0.25, modulation=Modulation("task", norm=True))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), IMAGE, False, "t"))["params"]
    assert set(params["stem"]) == {"conv", "norm"}
    assert set(params["stage1_block1"]) == {"conv2", "conv3"}
    assert set(params["stage7_block1"]) == {"conv1", "conv2", "conv3"}
    assert set(params["stage7_block1"]["conv1"]) == {"conv", "norm@t"}
    assert set(params["stage7_block1"]["conv3"]) == {"conv", "norm@t", "se@t"}


def step(module, variables, image):
    """Maps of training, the gradient of a loss, and the new statistics."""

    def loss(params):
        inputs = {**variables, "params": params}
        maps, new = module.apply(inputs, image, True, mutable=["batch_stats"])
        return sum(jnp.mean(jnp.sin(m.astype(jnp.float32))) for m in maps), (maps, new)

    gradient, (maps, new) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return maps, gradient, new["batch_stats"]


@pytest.fixture
def short(monkeypatch):
    """A network of three stages, quick to compile."""
    monkeypatch.setattr(mobilenet_v2, "STAGES", ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2)))
    monkeypatch.setattr(mobilenet_v2, "LEVELS", (1, 2))
    return MobileNetV2(0.25, top=True)


def test_training_with_and_without_remat(short, random_variables):
    """The same names, maps, gradients and statistics."""
    image = jax.random.normal(jax.random.key(1), (2, 33, 32, 3))
    variables = random_variables(short, image, False)
    maps, gradient, statistics = step(short, variables, image)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda new, old: jnp.any(new != old), statistics, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    again = short.clone(remat=True)
    assert jax.tree.structure(shapes(again)) == jax.tree.structure(shapes(short))
    assert "remat" in str(jax.make_jaxpr(lambda v: again.apply(v, image, False))(variables))
    for ours, theirs in zip(
        jax.tree.leaves(step(again, variables, image)),
        jax.tree.leaves((maps, gradient, statistics)),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_close(short, random_variables):
    image = jax.random.normal(jax.random.key(1), (1, 33, 32, 3))
    variables = random_variables(short, image, False)
    half = short.clone(dtype=jnp.bfloat16)
    assert {p.dtype for p in jax.tree.leaves(shapes(half))} == {jnp.dtype("float32")}
    ours, theirs = (jax.jit(lambda v, m=m: m.apply(v, image, False))(variables) for m in (half, short))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == jnp.bfloat16
        assert jnp.abs(a - b).max() < 0.05 * jnp.abs(b).max()


def test_build_checks_its_options():
    gates = Modulation("shared")
    built = build("float32", 0.5, 1.2, "group", 8, gates, top=True, remat=True)
    assert built == MobileNetV2(0.5, "group", 8, gates, jnp.dtype("float32"), True, 1.2, True)
    assert build("float32").modulation == Modulation()
    for options, told in (
        ({"norm": "layer"}, "norm is 'layer': choose one of batch, group"),
        ({"output_stride": 4}, "output_stride is 4: choose one of 8, 16, 32"),
        ({"width": 0}, "width is 0: give a positive factor"),
        ({"depth": -1.0}, "depth is -1.0: give a positive factor"),
    ):
        with pytest.raises(UserError, match=f"config.model.encoder.{told}"):
            build("float32", **options)


def relu6(x):
    assert np.any(x > 6)  # it is put to the test
    return np.clip(x, 0, 6)


@pytest.mark.parametrize("expansion,stride,features", [(3, 1, 8), (3, 2, 8), (3, 1, 12), (1, 1, 8)])
def test_block_in_numpy(random_variables, expansion, stride, features):
    block = InvertedResidual(features, expansion, stride, dilation=2, modulation=Modulation("shared"))
    x = 20 * jax.random.normal(jax.random.key(1), (2, 6, 8, 8))
    variables = random_variables(block, x, False)
    variables["params"]["conv3"]["se"]["squeeze"]["bias"][0] = 30
    p, stats = (
        jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables[key])
        for key in ("params", "batch_stats")
    )

    def norm(y, unit):
        affine, moments = p[unit]["norm"]["BatchNorm_0"], stats[unit]["norm"]["BatchNorm_0"]
        return (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * affine["scale"] + affine["bias"]

    y = np.asarray(x, np.float64)
    if expansion > 1:
        y = relu6(norm(y @ p["conv1"]["conv"]["kernel"][0, 0], "conv1"))
    taps = np.zeros((5, 5, y.shape[-1]))
    taps[::2, ::2] = p["conv2"]["conv"]["kernel"][:, :, 0]
    y = np.stack(
        [
            np.stack([correlate2d(image[..., c], taps[..., c], "same") for c in range(y.shape[-1])], -1)
            for image in y
        ]
    )[:, ::stride, ::stride]
    y = relu6(norm(y, "conv2"))
    y = norm(y @ p["conv3"]["conv"]["kernel"][0, 0], "conv3")
    gate = p["conv3"]["se"]
    hidden = relu6(y.mean((1, 2)) @ gate["squeeze"]["kernel"] + gate["squeeze"]["bias"])
    assert hidden.shape[1] == features // 4
    y *= 1 / (1 + np.exp(-(hidden @ gate["excite"]["kernel"] + gate["excite"]["bias"])))[:, None, None]
    if (expansion, stride, features) in ((3, 1, 8), (1, 1, 8)):
        y += x
    np.testing.assert_allclose(block.apply(variables, x, False), y, rtol=1e-4, atol=1e-3)

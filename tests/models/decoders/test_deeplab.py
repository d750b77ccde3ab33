"""The DeepLab decoders against their layers one by one, and against parameters counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import DictKey

from mtl_jax.models import cost
from mtl_jax.models.decoders.deeplab import DeepLabDecoder
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.resize import resize


def count(module, low, high):
    maps = [jnp.zeros((1, 8, 8, low)), jnp.zeros((1, 2, 2, high))]
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), maps, False))
    return cost.parameters(variables["params"])


def gate(channels, reduction):
    return 2 * channels * (channels // reduction) + channels + channels // reduction


def test_parameters_beside_a_residual_encoder():
    aspp = 2048 * 64 * (1 + 3 * 9 + 1) + 5 * 64 * 64
    refinement = 256 * 12 + 9 * (64 + 12) * 64 + 9 * 64 * 64
    norms = 2 * (6 * 64 + 12 + 2 * 64)
    assert count(DeepLabDecoder(64), 256, 2048) == aspp + refinement + norms == 3_906_328
    gates = 8 * gate(64, 16) + gate(12, 4)
    modulated = DeepLabDecoder(64, modulation=Modulation("shared"))
    assert count(modulated, 256, 2048) == 3_906_328 + gates


def test_parameters_beside_a_mobilenet():
    aspp = 320 * 64 + 3 * 9 * 5 * 64 + 5 * 64 + 5 * 64
    refinement = 2 * 12 + 9 * 19 * 64 + 9 * 64
    norms = 2 * (6 * 64 + 12 + 2 * 64)
    assert count(DeepLabDecoder(64, light=True), 24, 320) == aspp + refinement + norms
    gates = 7 * gate(64, 4) + gate(12, 4)  # none for the view of the average
    modulated = DeepLabDecoder(64, light=True, modulation=Modulation("shared"))
    assert count(modulated, 24, 320) == aspp + refinement + norms + gates


def test_parameters_without_the_skip_connection():
    """Torchvision's deeplabv3_resnet50 of 21 classes, less its auxiliary head and the last layer."""
    network, auxiliary, encoder, classes = 42_004_074, 2_365_205, 23_508_032, 256 * 21 + 21
    assert count(DeepLabDecoder(skip=False), 256, 2048) == network - auxiliary - encoder - classes


def convolve(*args, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    convolution = jax.lax.conv_general_dilated
    return np.asarray(convolution(*args, dimension_numbers=layout, precision="highest", **options))


def layers(variables, low, high, rates, light, skip):
    """The decoder of width 32 layer by layer; convolutions are lax's, in as many groups as we say."""

    def unit(x, *path, dilation=1, groups=1, gated=True):
        p, stats = variables["params"], variables["batch_stats"]
        for name in path:
            p, stats = p[name], stats[name]
        kernel = p["conv"]["kernel"]
        pad = dilation * (kernel.shape[0] // 2)
        y = convolve(
            x,
            kernel,
            (1, 1),
            [(pad, pad)] * 2,
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups if light else 1,
        )
        affine, moments = p["norm"]["BatchNorm_0"], stats["norm"]["BatchNorm_0"]
        y = (y - moments["mean"]) / np.sqrt(moments["var"] + 1e-5) * affine["scale"] + affine["bias"]
        top = 6 if light else np.inf
        assert path[-1] != "point" or np.any(y > 6)  # the activation is put to the test
        y = np.clip(y, 0, top)
        if not gated:
            assert "se" not in p
            return y
        se = p["se"]
        hidden = np.clip(y.mean((1, 2)) @ se["squeeze"]["kernel"] + se["squeeze"]["bias"], 0, top)
        gates = 1 / (1 + np.exp(-(hidden @ se["excite"]["kernel"] + se["excite"]["bias"])))
        return y * gates[:, None, None]

    views = [unit(high, "aspp", "point")]
    for index, rate in enumerate(rates):
        views.append(unit(high, "aspp", f"atrous{index + 1}", dilation=rate, groups=8))  # 40 -> 32
    average = unit(high.mean((1, 2), keepdims=True), "aspp", "pool", groups=8, gated=not light)
    views.append(np.broadcast_to(average, views[0].shape))
    high = unit(np.concatenate(views, -1), "aspp", "merge", groups=32)  # 160 -> 32
    if not skip:
        return unit(high, "refine2", groups=32)
    high = resize(high, low.shape[1:3])
    low = unit(low, "skip", groups=3)  # 9 -> 6
    x = np.concatenate([low, high] if light else [high, low], -1)
    return unit(unit(x, "refine1", groups=2), "refine2", groups=32)  # 38 -> 32 -> 32


@pytest.mark.parametrize("light,skip", [(False, True), (True, True), (False, False)])
def test_decoder_layer_by_layer(random_variables, light, skip):
    rates = (1, 2, 3)
    decoder = DeepLabDecoder(32, rates, skip=skip, light=light, modulation=Modulation("shared"))
    rng = np.random.default_rng(0)
    low, high = (np.float32(5 * rng.normal(size=s)) for s in ((2, 8, 12, 9), (2, 4, 6, 40)))
    variables = random_variables(decoder, [low, high], False)
    for path, bias in jax.tree.leaves_with_path(variables["params"]):
        if path[-2:] == (DictKey("squeeze"), DictKey("bias")):
            bias[0] = 8  # a hidden unit of the gates beyond 6
    actual = jax.jit(lambda v: decoder.apply(v, [low, high], train=False))(variables)
    assert actual.shape == ((2, 8, 12, 32) if skip else (2, 4, 6, 32))
    expected = layers(variables, low, high, rates, light, skip)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)

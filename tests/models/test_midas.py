"""MiDaS: sizes, parameters, and the interpolations of the release in NumPy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import cost, midas
from mtl_jax.models.midas import MiDaS, estimate, working_size
from mtl_jax.models.norm import ConvNorm


class Encoder(nn.Module):
    """One convolution for each map."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        maps = []
        for stride in (4, 2, 2, 2):
            x = ConvNorm(8, 3, stride, dtype=self.dtype)(x, train)
            maps.append(x)
        return maps


TINY = MiDaS(Encoder(), 8)


def images(size, batch=1):
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def shapes(network, size=(64, 64)):
    return jax.eval_shape(lambda key: network.init(key, images(size), False), jax.random.key(0))


ENCODERS = {  # torchvision's and timm's totals less the classifiers; for the latter, the convolution before
    "large": (88_791_336 - 2_049_000, (256, 512, 1024, 2048)),
    "small": (8_197_096 - (384 * 1280 + 2 * 1280 + 1280 * 1000 + 1000), (32, 48, 136, 384)),
}


@pytest.mark.parametrize(
    "variant,features,halvings,millions",
    [
        ("large", (256, 256, 256, 256), 0, 105),
        ("small", (64, 128, 256, 512), 64 * 64 + 64 + sum(c * c // 2 + c // 2 for c in (128, 256, 512)), 21),
    ],
)
def test_parameters_are_those_released(variant, features, halvings, millions):
    """Counted by hand; the release's total has half a step at the last map besides, which never runs."""
    encoder, channels = ENCODERS[variant]
    laterals = sum(9 * i * c for i, c in zip(channels, features, strict=True))
    units = [2 * (9 * c * c + c) for c in features]
    half = features[0] // 2
    outputs = 9 * features[0] * half + half + 9 * half * 32 + 32 + 32 + 1
    released = encoder + laterals + 2 * sum(units) + halvings + outputs
    assert round(released / 1e6) == millions
    ours = cost.parameters(shapes(midas.make(jnp.float32, variant))["params"])
    assert ours == released - units[3] == {"large": 104_182_785, "small": 16_600_929}[variant]


def test_an_unknown_variant_is_named():
    with pytest.raises(UserError, match="'medium': choose one of large, small"):
        midas.make(jnp.float32, "medium")


def test_sizes():
    for size in ((32, 32), (64, 96)):
        result, _ = jax.eval_shape(lambda s=size: TINY.init_with_output(jax.random.key(0), images(s), False))
        assert result.shape == (1, *size, 1) and result.dtype == jnp.float32
    with pytest.raises(UserError, match="65 x 96: give multiples of 32"):
        shapes(TINY, (65, 96))


@pytest.mark.parametrize(
    "size,longest,expected",
    [
        ((480, 640), 384, (288, 384)),
        ((640, 480), 384, (384, 288)),
        ((100, 100), 384, (384, 384)),
        ((375, 1242), 384, (128, 384)),  # 3.6 times 32
        ((10, 1000), 384, (32, 384)),
        ((480, 640), 256, (192, 256)),
        ((640, 640), 400, (384, 384)),  # never longer than asked for
    ],
)
def test_working_size(size, longest, expected):
    assert working_size(size, longest) == expected


def test_maps_double_from_corner_to_corner():
    row = np.array([0.0, 3.0, 6.0], np.float32).reshape(1, 1, 3, 1)
    doubled = midas._resample(row, (2, 6), midas._linear)
    np.testing.assert_allclose(doubled[0, :, :, 0], 2 * [[0, 1.2, 2.4, 3.6, 4.8, 6.0]], atol=1e-6)


def test_any_size_is_estimated(random_variables):
    """Through the network at its own size."""
    variables = random_variables(TINY, images((32, 64)), False)
    seen = []

    def network(x):
        seen.append(x.shape)
        return TINY.apply(variables, x, False)

    result = jax.jit(lambda x: estimate(network, x, 64))(images((45, 97)))
    assert seen == [(1, 32, 64, 3)]
    assert result.shape == (1, 45, 97, 1) and result.dtype == jnp.float32
    assert np.all(np.isfinite(result)) and np.std(result) > 0


def test_bfloat16_is_close(random_variables):
    image = images((32, 64))
    variables = random_variables(TINY, image, False)
    half = MiDaS(Encoder(jnp.bfloat16), 8, dtype=jnp.bfloat16)
    exact, rounded = (jax.jit(lambda v, n=n: n.apply(v, image, False))(variables) for n in (TINY, half))
    assert rounded.dtype == jnp.float32 and np.max(exact) > 0.1
    np.testing.assert_allclose(rounded, exact, atol=0.1 * np.max(exact))


def test_training_moves_every_parameter_and_statistic(random_variables):
    image = images((32, 64), 2)
    variables = random_variables(TINY, image, False)

    def loss(params):
        y, updates = TINY.apply({**variables, "params": params}, image, True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(y)), updates

    gradients, updates = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for gradient in jax.tree.leaves(gradients):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0)
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updates))
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))

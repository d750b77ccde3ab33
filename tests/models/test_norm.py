"""Normalisation against its formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.norm import KINDS, ConvNorm, Norm

X = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 5, 3, 8)).astype(np.float32)


def test_batch_norm_and_its_running_statistics():
    module = Norm("batch")
    variables = module.init(jax.random.key(0), X, train=False)
    y, new = module.apply(variables, X, train=True, mutable=["batch_stats"])
    mean, var = X.mean((0, 1, 2)), X.var((0, 1, 2))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    (stats,) = new["batch_stats"].values()
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-5)
    y = module.apply({**variables, **new}, X, train=False)
    np.testing.assert_allclose(y, (X - 0.1 * mean) / np.sqrt(0.9 + 0.1 * var + 1e-5), atol=1e-5)


@pytest.mark.parametrize("channels,groups", [(8, 4), (64, 32), (256, 32), (48, 24), (12, 6), (3, 1)])
def test_group_norm(channels, groups):
    x = np.random.default_rng(1).normal(1.0, 2.0, size=(2, 3, 5, channels)).astype(np.float32)
    module = Norm("group")
    variables = module.init(jax.random.key(0), x, train=True)
    assert set(variables) == {"params"}
    split = x.reshape(2, 15, groups, channels // groups)
    mean, var = split.mean((1, 3), keepdims=True), split.var((1, 3), keepdims=True)
    expected = ((split - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(module.apply(variables, x, train=True), expected, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_keeps_parameters_and_statistics_in_float32(kind):
    module = ConvNorm(16, norm=kind, dtype=jnp.bfloat16)
    variables = module.init(jax.random.key(0), X, train=False)
    assert module.apply(variables, X, train=False).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_instance_norm_is_of_one_channel_of_one_example():
    module = Norm("instance")
    variables = module.init(jax.random.key(0), X, train=True)
    assert set(variables) == {"params"}
    (affine,) = variables["params"].values()
    params = {"scale": np.linspace(0.5, 2, 8), "bias": np.linspace(-1, 1, 8)}
    assert jax.tree.map(np.shape, dict(affine)) == jax.tree.map(np.shape, params)
    x = X.astype(np.float64)
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    (name,) = variables["params"]
    for train in (True, False):
        y = module.apply({"params": {name: params}}, X, train=train)
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_reaches_the_norm_of_a_unit(kind):
    """Of a map that is small beside it: normalised, its spread is that of x / sqrt(var + epsilon)."""
    unit = ConvNorm(8, 1, norm=kind, epsilon=1e6)
    variables = unit.init(jax.random.key(0), X, train=False)
    y = unit.apply(variables, X, train=True, mutable=["batch_stats"])[0]
    assert 0 < np.abs(y).max() < 0.05


def test_momentum_is_what_running_statistics_keep():
    unit = ConvNorm(8, 1, momentum=0.75)
    variables = unit.init(jax.random.key(0), X, train=False)
    _, new = unit.apply(variables, X, train=True, mutable=["batch_stats"])
    mean = (X @ np.asarray(variables["params"]["conv"]["kernel"][0, 0])).mean((0, 1, 2))
    (stats,) = new["batch_stats"]["norm"].values()
    np.testing.assert_allclose(stats["mean"], 0.25 * mean, rtol=1e-4, atol=1e-5)

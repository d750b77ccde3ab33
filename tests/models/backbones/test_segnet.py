"""Pooling that remembers places against brute force; the encoder against published sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import cost
from mtl_jax.models.backbones import segnet
from mtl_jax.models.backbones.segnet import SegNetEncoder, argmax_pool, build, scaled, unit, unpool
from mtl_jax.models.modulation import Modulation

# Few different values: most windows have their maximum more than once.
X = np.random.default_rng(0).integers(-2, 3, size=(2, 6, 8, 5)).astype(np.float32)
PLACES = [(0, 0), (0, 1), (1, 0), (1, 1)]


def by_hand(x):
    """Maxima, their places (the first of equals), and the map that is `x` there and 0 elsewhere."""
    pooled = np.zeros((x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    index, sparse = pooled.astype(int), np.zeros_like(x)
    for b, i, j, c in np.ndindex(pooled.shape):
        values = [x[b, 2 * i + di, 2 * j + dj, c] for di, dj in PLACES]
        index[b, i, j, c] = values.index(max(values))
        di, dj = PLACES[index[b, i, j, c]]
        pooled[b, i, j, c] = sparse[b, 2 * i + di, 2 * j + dj, c] = max(values)
    return pooled, index, sparse


def test_pooling_and_its_inverse():
    expected, places, sparse = by_hand(X)
    pooled, index = argmax_pool(jnp.array(X))
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(index, places)
    np.testing.assert_array_equal(unpool(pooled, index), sparse)


def test_the_gradient_goes_to_the_chosen_place_alone():
    _, places, _ = by_hand(X)
    g = np.random.default_rng(1).normal(size=places.shape).astype(np.float32)
    expected = np.zeros_like(X)
    for b, i, j, c in np.ndindex(places.shape):
        di, dj = PLACES[places[b, i, j, c]]
        expected[b, 2 * i + di, 2 * j + dj, c] = g[b, i, j, c]
    to_x = jax.grad(lambda x: jnp.sum(argmax_pool(x)[0] * g))(jnp.array(X))
    np.testing.assert_array_equal(to_x, expected)
    # Values, which all differ, come back to where they were taken from.
    values = np.arange(X.size, dtype=np.float32).reshape(X.shape)
    index = argmax_pool(jnp.array(X))[1]
    to_pooled = jax.grad(lambda y: jnp.sum(unpool(y, index) * values))(jnp.array(g))
    expected = [
        values[b, 2 * i + PLACES[k][0], 2 * j + PLACES[k][1], c] for (b, i, j, c), k in np.ndenumerate(places)
    ]
    np.testing.assert_array_equal(to_pooled.ravel(), expected)


def test_second_derivatives():
    """Of the norm of a gradient through both, against XLA's for a gather."""
    x, w = jax.random.normal(jax.random.key(0), (2, 1, 4, 6, 3))

    def gather(x):
        windows = x.reshape(1, 2, 2, 3, 2, 3).transpose(0, 1, 3, 5, 2, 4).reshape(1, 2, 3, 3, 4)
        best = jnp.argmax(windows, -1, keepdims=True)
        kept = jnp.take_along_axis(windows, best, -1)
        spread = jnp.where(jnp.arange(4) == best, jnp.sin(kept) * kept, 0)
        return spread.reshape(1, 2, 3, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(1, 4, 6, 3)

    def ours(x):
        pooled, index = argmax_pool(x)
        return unpool(jnp.sin(pooled) * pooled, index)

    def of_norm(function):
        gradient = jax.grad(lambda x: jnp.sum(w * function(x) ** 2))
        return jax.jit(jax.grad(lambda x: jnp.sum(jnp.tanh(gradient(x)))))(x)

    np.testing.assert_array_equal(ours(x), gather(x))
    assert np.any(of_norm(ours) != 0)
    np.testing.assert_allclose(of_norm(ours), of_norm(gather), rtol=1e-4, atol=1e-5)


def shapes(module, *args):
    return jax.eval_shape(lambda key: module.init_with_output(key, *args), jax.random.key(0))


def test_parameters_are_those_of_vgg16():
    """Torchvision's total of vgg16_bn, less its classifier of 4096, 4096 and 1000 units."""
    classifier = (512 * 7 * 7 + 1) * 4096 + 4097 * 4096 + 4097 * 1000
    for norm in ("batch", "instance"):
        _, variables = shapes(SegNetEncoder(norm=norm), jnp.zeros((1, 32, 32, 3)), False)
        assert cost.parameters(variables["params"]) == 138_365_992 - classifier == 14_723_136


def test_maps_of_any_size():
    *indices, latent = shapes(SegNetEncoder(0.25), jnp.zeros((2, 65, 96, 7)), False)[0]
    assert [(i.shape, i.dtype) for i in indices] == [
        ((2, 48 >> n, 48 >> n, c), jnp.int8) for n, c in enumerate((16, 32, 64, 128, 128))
    ]
    assert latent.shape == (2, 3, 3, 128)
    assert [scaled(64, w) for w in (1.0, 0.5, 0.26, 0.01)] == [64, 32, 17, 4]


def test_borders_are_repeated_to_a_multiple_of_32(random_variables):
    x = np.random.default_rng(0).normal(size=(1, 33, 30, 3)).astype(np.float32)
    encoder = SegNetEncoder(0.01, "instance")
    variables = random_variables(encoder, x, False)
    apply = jax.jit(lambda x: encoder.apply(variables, x, False))
    padded = np.pad(x, ((0, 0), (0, 31), (0, 2), (0, 0)), "edge")
    jax.tree.map(np.testing.assert_array_equal, apply(x), apply(padded))


def test_each_example_takes_its_column_of_the_tables(random_variables):
    encoder = SegNetEncoder(0.01, "instance", Modulation(film=3))
    x = jax.random.normal(jax.random.key(0), (2, 32, 64, 5))
    column = jnp.array([2, 0])
    variables = random_variables(encoder, x, False, column)
    params = variables["params"]
    assert all(set(unit) == {"conv", "norm", "film"} for unit in params.values()) and len(params) == 13
    tables = [unit["film"][name] for unit in params.values() for name in ("scale", "bias")]
    assert {len(table) for table in tables} == {3}

    apply = jax.jit(lambda v, x, column: encoder.apply(v, x, False, column)[-1])
    both = apply(variables, x, column)
    for example in (0, 1):
        alone = apply(variables, x[example : example + 1], column[example : example + 1])
        np.testing.assert_allclose(both[example], alone[0], rtol=1e-4, atol=1e-5)
    assert jnp.abs(apply(variables, x, jnp.array([1, 0])) - both)[0].max() > 0.01


def test_the_tables_of_the_published_mapping_have_8448_entries_per_column():
    arguments = jnp.zeros((1, 32, 32, 64)), False, jnp.zeros(1, jnp.int32)
    _, variables = shapes(SegNetEncoder(modulation=Modulation(film=6)), *arguments)
    film = [unit["film"] for unit in variables["params"].values()]
    assert cost.parameters(film) == 6 * 8448


def test_starts_xavier_normal():
    module = unit(128)
    params = jax.jit(module.init, static_argnums=2)(jax.random.key(0), jnp.zeros((1, 2, 2, 64)), False)[
        "params"
    ]
    np.testing.assert_allclose(np.std(params["conv"]["kernel"]), np.sqrt(2 / (9 * (64 + 128))), rtol=0.02)
    assert not params["conv"]["bias"].any()


@pytest.mark.parametrize("film", [0, 3])
def test_training_with_and_without_remat(monkeypatch, random_variables, film):
    """The same names, latents, gradients and statistics."""
    monkeypatch.setattr(segnet, "STAGES", ((64, 2), (128, 1)))  # quick to compile
    encoder = SegNetEncoder(0.01, modulation=Modulation(film=film))
    image = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
    column = jnp.array([2, 0]) if film else None
    variables = random_variables(encoder, image, False, column)

    def step(encoder):
        def loss(params, column):
            inputs = {**variables, "params": params}
            maps, new = encoder.apply(inputs, image, True, column, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(maps[-1])), (maps, new["batch_stats"])

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"], column)

    gradient, (maps, statistics) = step(encoder)
    assert all(jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradient["stage1_conv1"]["norm"]))
    moved = jax.tree.map(lambda new, old: jnp.any(new != old), statistics, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))
    again = encoder.clone(remat=True)
    assert "remat" in str(jax.make_jaxpr(lambda v: again.apply(v, image, False, column)[-1])(variables))
    ours, theirs = step(again), (gradient, (maps, statistics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def test_the_last_convolution():
    encoder = SegNetEncoder(0.25)
    _, variables = shapes(encoder, jnp.zeros((1, 32, 32, 3)), False)
    name, kind = encoder.last
    assert list(variables["params"])[-1] == name
    assert variables["params"][name][kind]["kernel"].shape == (3, 3, 128, 128)


def test_bfloat16_stays_close(random_variables):
    """Places may differ where values are close; the maxima are close then too."""
    image = jax.random.normal(jax.random.key(0), (1, 32, 64, 3))
    exact, half = SegNetEncoder(0.05), build("bfloat16", 0.05)
    variables = random_variables(exact, image, False)
    ours, theirs = (jax.jit(lambda v, e=e: e.apply(v, image, False)[-1])(variables) for e in (half, exact))
    assert ours.dtype == jnp.bfloat16
    assert jnp.abs(ours - theirs).max() < 0.05 * jnp.abs(theirs).max()


def test_build_checks_its_options():
    assert build("float32", 0.5, "group", True) == SegNetEncoder(0.5, "group", remat=True)
    with pytest.raises(
        UserError, match="config.model.encoder.norm is 'layer': choose one of batch, group, in"
    ):
        build("float32", norm="layer")
    with pytest.raises(UserError, match="config.model.encoder.width is 0: give a positive factor"):
        build("float32", 0)

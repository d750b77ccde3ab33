"""Vision transformers against published sizes, and what they do beside classification."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.models import cost
from mtl_jax.models.backbones import vit
from mtl_jax.models.backbones.vit import ViT, resample

TINY = {"width": 24, "depth": 4, "heads": 3, "patch": 8, "grid": (4, 4)}


def shapes(module, image=(1, 64, 64, 3)):
    return jax.eval_shape(lambda key: module.init(key, jnp.zeros(image), False), jax.random.key(0))


@pytest.fixture(scope="module")
def tiny():
    """(module, its variables with all of their parts in play, an image of its grid)."""
    module = ViT(**TINY)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(1 if x.ndim == 1 else 0, 0.3, x.shape), jnp.float32), shapes(module)
    )
    return module, variables, jax.random.normal(jax.random.key(1), (2, 32, 32, 3))


def run(module, variables, image, train=False, **options):
    return jax.jit(lambda v, x: module.apply(v, x, train, **options))(variables, image)


# timm's totals, of vit_{tiny,small,base,large}_patch{16,32}_{224,384}, with a classifier of 1000 classes.
@pytest.mark.parametrize(
    "variant,size,expected",
    [
        ("ti16", 224, 5_717_416),
        ("ti16", 384, 5_790_376),
        ("s16", 224, 22_050_664),
        ("s32", 224, 22_878_952),
        ("b16", 224, 86_567_656),
        ("b16", 384, 86_859_496),
        ("b32", 384, 88_297_192),
        ("l16", 384, 304_715_752),
        ("l32", 384, 306_632_680),
    ],
)
def test_parameters_are_those_published(variant, size, expected):
    module = vit.build("float32", variant)
    module = module.clone(grid=(size // module.patch,) * 2)
    parameters = shapes(module)["params"]
    assert cost.parameters(parameters) == expected - (module.width + 1) * 1000


def test_parameters_of_the_large_one_without_positions():
    """303.10 M, as counted for InvPT (Ye & Xu, ECCV 2022)."""
    parameters = shapes(vit.build("float32", "l16"))["params"]
    del parameters["position"], parameters["class_position"]
    assert cost.parameters(parameters) == 303_099_904


@pytest.mark.parametrize(
    "variant,taps", [("l16", (6, 12, 18, 24)), ("b16", (3, 6, 9, 12)), ("ti16", (3, 6, 9, 12))]
)
def test_maps_come_from_each_quarter(variant, taps):
    assert vit.quarters(vit.build("float32", variant).depth) == taps


@pytest.mark.parametrize("size", [(32, 32), (33, 40), (1, 100)])
def test_maps_have_the_grid_of_the_patches(size):
    module = ViT(**TINY, top=True)
    maps = jax.eval_shape(lambda v: module.apply(v, jnp.zeros((2, *size, 3)), False), shapes(module))
    grid = tuple(-(-n // 8) for n in size)
    assert [m.shape for m in maps] == [(2, *grid, 24)] * 4 + [(2, 1, 1, 24)]


def test_the_last_layer_is_where_it_says(tiny):
    module, variables, _ = tiny
    layer = variables["params"]
    for name in module.last:
        layer = layer[name]
    assert layer["kernel"].shape == (96, 24)
    assert not module.modulation.per_task


def test_taps_choose_blocks(tiny):
    module, variables, image = tiny
    every = run(module, variables, image)
    some = run(module.clone(taps=(2, 4)), variables, image)
    assert len(some) == 2
    for ours, expected in zip(some, (every[1], every[3]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_an_image_of_any_size_is_filled_up_with_zeros(tiny):
    module, variables, image = tiny
    cut = image[:, :27, :30]
    filled = jnp.zeros_like(image).at[:, :27, :30].set(cut)
    for ours, expected in zip(run(module, variables, cut), run(module, variables, filled), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_where_a_patch_is_does_not_move_its_map(tiny):
    """Without position embeddings, moved patches have moved maps: rows and columns keep their places."""
    module, variables, image = tiny
    parameters = {**variables["params"], "position": jnp.zeros((4, 4, 24))}
    image = image[:, :16]  # two rows of four patches
    patches = image.reshape(2, 2, 8, 4, 8, 3)
    moved = patches[:, ::-1, :, ::-1].reshape(image.shape)
    there, here = (run(module, {"params": parameters}, x)[-1] for x in (moved, image))
    np.testing.assert_allclose(there, here[:, ::-1, ::-1], atol=1e-4)


def test_positions_of_another_grid_are_resampled_in_place():
    rows, columns = jnp.meshgrid(jnp.arange(8.0), jnp.arange(6.0), indexing="ij")
    position = jnp.stack([rows, columns], -1)
    assert resample(position, (8, 6)) is position
    larger = resample(position, (16, 12))  # a ramp stays one away from the border
    np.testing.assert_allclose(larger[4:-4, 4:-4, 0], np.tile(np.arange(8)[:, None] / 2 + 1.75, 4), atol=1e-5)
    np.testing.assert_allclose(larger[4:-4, 4:-4, 1], np.tile(np.arange(4) / 2 + 1.75, (8, 1)), atol=1e-5)


@pytest.mark.parametrize("dtype,tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.01)])
def test_attention_is_the_library_function(monkeypatch, dtype, tolerance):
    """On CPU it has a formulation of its own; elsewhere it is that of JAX. Both have float32 weights."""
    query, key, value = 3 * jax.random.normal(jax.random.key(0), (3, 2, 7, 3, 5), dtype)
    exact = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in (query, key, value)))
    ours = vit.attention(query, key, value)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    theirs = vit.attention(query, key, value)
    for result in (ours, theirs):
        assert result.dtype == dtype
        assert jnp.abs(result - exact).max() < tolerance * jnp.abs(exact).max()


def test_remat_changes_nothing_but_memory(tiny):
    module, variables, image = tiny

    def gradients(module):
        def loss(variables):
            return jnp.sum(
                jnp.sin(module.apply(variables, image, True, rngs={"dropout": jax.random.key(3)})[-1])
            )

        return jax.jit(jax.value_and_grad(loss))(variables)

    module = module.clone(depth=2, taps=(2,), drop_path=0.5)
    (ours, ours_gradient), (theirs, theirs_gradient) = (
        gradients(m) for m in (module.clone(remat=True), module)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert jax.tree.structure(ours_gradient) == jax.tree.structure(theirs_gradient)
    for a, b in zip(*map(jax.tree.leaves, (ours_gradient, theirs_gradient)), strict=True):
        assert np.all(np.isfinite(a))
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max() + 1e-5)


def test_every_parameter_learns(tiny):
    module, variables, image = tiny

    def loss(variables):
        return sum(jnp.sum(jnp.sin(m)) for m in module.clone(top=True).apply(variables, image, True))

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables)):
        assert np.all(np.isfinite(gradient)) and np.any(gradient != 0), path


def test_bfloat16_stays_close(tiny):
    module, variables, image = tiny
    for ours, exact in zip(
        run(module.clone(dtype=jnp.bfloat16), variables, image), run(module, variables, image), strict=True
    ):
        assert ours.dtype == jnp.bfloat16
        assert jnp.abs(ours - exact).max() < 0.05 * jnp.abs(exact).max()


def test_drop_path_leaves_whole_branches_out(tiny):
    """Each example goes with a branch, at 1 / (1 - drop) times its size, or without."""
    _, variables, _ = tiny
    block = vit.Block(3, 0.5)
    parameters = variables["params"]["block1"]
    zero = jax.tree.map(jnp.zeros_like, parameters["mlp2"])
    x = jnp.tile(jax.random.normal(jax.random.key(0), (1, 5, 24)), (32, 1, 1))

    @functools.partial(jax.jit, static_argnums=1)
    def step(parameters, train):
        return block.apply({"params": parameters}, x, train, rngs={"dropout": jax.random.key(1)}) - x

    attention = {**parameters, "mlp2": zero}
    ours, whole = step(attention, True), step(attention, False)
    gone = np.all(ours == 0, (1, 2))
    assert 4 < gone.sum() < 28
    np.testing.assert_allclose(ours[~gone], 2 * whole[~gone], atol=1e-4)
    # The perceptron draws for itself.
    perceptron = {**parameters, "out": jax.tree.map(jnp.zeros_like, parameters["out"])}
    assert np.any(np.all(step(perceptron, True) == 0, (1, 2)) != gone)


def test_drop_path_rises_to_the_last_block(tiny, monkeypatch):
    module, variables, image = tiny
    drops = []
    apply = vit.Block.__call__
    monkeypatch.setattr(
        vit.Block, "__call__", lambda self, x, train: drops.append(self.drop) or apply(self, x, train)
    )
    jax.eval_shape(lambda v: module.clone(drop_path=0.15).apply(v, image, False), variables)
    np.testing.assert_allclose(drops, [0, 0.05, 0.1, 0.15])
    jax.eval_shape(lambda v: module.apply(v, image, True), variables)  # no rng where nothing drops


def test_build_takes_the_variant_and_what_is_said_besides():
    module = vit.build("bfloat16", "ti16", depth=8, grid=[3, 4], taps=[2, 8], drop_path=0.1)
    assert module == ViT(192, 8, 3, 16, (3, 4), (2, 8), 0.1, dtype=jnp.dtype("bfloat16"))


@pytest.mark.parametrize(
    "options,told",
    [
        ({"variant": "b17"}, r"config\.model\.encoder\.variant is 'b17': choose one of ti16, s16, "),
        ({"heads": 5}, r"config\.model\.encoder\.heads is 5: give a divisor of the width 768"),
        ({"depth": 0}, r"config\.model\.encoder\.depth is 0: give a positive number"),
        ({"depth": 6}, r"config\.model\.encoder\.taps is empty, and 6 blocks have no quarters"),
        ({"taps": (3, 11)}, r"config\.model\.encoder\.taps is \(3, 11\): give rising .* the last 12"),
        ({"taps": (12, 3, 12)}, r"config\.model\.encoder\.taps is "),
        ({"taps": (0, 12)}, r"config\.model\.encoder\.taps is "),
        ({"grid": (24,)}, r"config\.model\.encoder\.grid is \(24,\): give rows and columns"),
        ({"drop_path": 1.0}, r"config\.model\.encoder\.drop_path is 1\.0: give a probability below 1"),
    ],
)
def test_build_refuses(options, told):
    with pytest.raises(UserError, match=told):
        vit.build("float32", **options)

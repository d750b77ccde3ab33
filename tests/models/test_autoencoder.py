"""Auxiliary networks: published costs, sizes of latents, and that examples do not meet."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost, deeplab, segnet
from mtl_jax.models.autoencoder import ARCHITECTURES, AutoEncoder, MappingEncoder
from mtl_jax.models.backbones import resnet
from mtl_jax.models.backbones import segnet as backbone
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import depth

WIDTHS = {"semseg": 13, "depth": 1, "normals": 3}
STACK = jax.random.uniform(jax.random.key(1), (3, 40, 64, 17))
COLUMN = jnp.array([1, 0, 1])


@pytest.fixture
def short(monkeypatch):
    """One convolution or block per stage: quicker to compile."""
    monkeypatch.setattr(backbone, "STAGES", tuple((c, 1) for c, _ in backbone.STAGES))
    monkeypatch.setitem(resnet.BLOCKS, 50, (1, 1, 1, 1))


def shapes(module, *args):
    """Of the variables."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *args))


def maps(stack=STACK):
    ends = np.cumsum([*WIDTHS.values()])[:-1]
    return dict(zip(WIDTHS, jnp.split(stack, ends, -1), strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_example_is_read_by_itself(short, random_variables, arch):
    module = AutoEncoder(17, arch, 0.1)
    variables = random_variables(module, STACK)
    assert set(variables) == {"params"}

    @jax.jit
    def run(x):
        encoded = module.apply(variables, x, method="encode")
        return encoded[-1], module.apply(variables, encoded, x.shape[1:3], method="decode")

    before, after = run(STACK), run(STACK.at[1:].add(1.0))
    assert before[1].shape == STACK.shape and before[1].dtype == jnp.float32
    for a, b in zip(before, after, strict=True):
        assert jnp.std(a) > 0.1 and jnp.abs(a - b)[1:].max() > 1e-3
        np.testing.assert_allclose(a[0], b[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_mapping_reads_each_example_by_its_column(short, random_variables, arch):
    module = MappingEncoder(WIDTHS, 2, arch, 0.1)
    variables = random_variables(module, maps(), COLUMN)
    assert set(variables["params"]) == {"encoder", "input@semseg", "input@depth", "input@normals"}
    assert all("film" not in variables["params"][f"input@{task}"] for task in WIDTHS)
    run = jax.jit(lambda stack, column: module.apply(variables, maps(stack), column))
    latents = run(STACK, COLUMN)
    rest_changed = run(STACK.at[1:].add(1.0), COLUMN.at[1:].set(1 - COLUMN[1:]))
    same_column = run(STACK[jnp.array([0, 2, 1])], COLUMN)
    other_column = run(STACK, 1 - COLUMN)
    for task, latent in latents.items():
        np.testing.assert_allclose(latent[0], rest_changed[task][0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(latent[0], same_column[task][0], rtol=1e-5, atol=1e-5)
        assert jnp.abs(latent - other_column[task]).max((1, 2, 3)).min() > 0.1


def test_the_columns_have_parameters_of_their_own(short, random_variables):
    """Only the tables know the column, and an example moves its own column alone."""
    module = MappingEncoder(WIDTHS, 3, width=0.1)
    column = jnp.array([1, 1, 1])
    variables = random_variables(module, maps(), column)

    def latent(module):
        return module.encode(module.embed(maps()["depth"], "depth"), column)

    def loss(params):
        return jnp.sum(module.apply({"params": params}, method=latent) ** 2)

    grads = jax.jit(jax.grad(loss))(variables["params"])
    tables = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree.leaves_with_path(grads)
        if "film" in [entry.key for entry in path]
    }
    assert len(tables) == 2 * 5
    for path, table in tables.items():
        assert np.any(table[1] != 0) and not np.any(table[0]) and not np.any(table[2]), path


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_latents_are_as_large_as_the_networks(arch):
    tasks, image = {"depth": depth.build("depth")}, jnp.zeros((2, 72, 96, 3))
    if arch == "segnet":
        network = segnet.build(tasks, "float32", 0.25)
    else:
        options = {"depth": 50, "output_stride": 8, "decoder": "own", "skip": False}
        network = deeplab.build(tasks, "float32", width=0.25, **options)
    mapping = MappingEncoder({"depth": 1}, 2, arch, 0.25)
    auto = AutoEncoder(5, arch, 0.25)
    key, column = jax.random.key(0), jnp.zeros(2, jnp.int32)
    encoded, _ = jax.eval_shape(lambda: network.init_with_output(key, image, ("depth",), False))
    latent, _ = jax.eval_shape(lambda: mapping.init_with_output(key, {"depth": image[..., :1]}, column))
    own, _ = jax.eval_shape(
        lambda: auto.init_with_output(key, jnp.zeros((2, 72, 96, 5)), method=lambda m, x: m.encode(x)[-1])
    )
    assert encoded.encoded["depth"].shape == latent["depth"].shape == own.shape
    assert own.shape == ((2, 3, 3, 128) if arch == "segnet" else (2, 9, 12, 512))


class Passes(nn.Module):
    """The passes of the NYU-v2 study with maps in the place of the image, for models/cost.py."""

    auto: AutoEncoder
    mapping: MappingEncoder

    def __call__(self, image, tasks, train):
        size, outputs = image.shape[1:3], {}
        encoded = self.auto.encode(jnp.zeros((1, *size, 17)))
        if "decode" in tasks:
            outputs["decode"] = self.auto.decode(encoded, size)
        if "map" in tasks:
            embedded = {
                task: self.mapping.embed(jnp.zeros((1, *size, n)), task) for task, n in WIDTHS.items()
            }
            outputs["map"] = self.mapping.encode(embedded["depth"], jnp.zeros(1, jnp.int32))
        return Prediction(outputs, {}, {})


def test_costs_are_those_published():
    """G multiply-adds for 288x384: 34.72 to encode 17 channels and 26.62 to decode; 37.7 for a mapping."""
    model, size = Passes(AutoEncoder(17), MappingEncoder(WIDTHS, 6)), (288, 384)
    variables = shapes(model, jnp.zeros((1, 64, 64, 3)), ("decode", "map"), False)

    def giga(*parts):
        return cost.multiply_adds(model, variables, parts, size) / 1e9

    encode, inputs = giga(), 288 * 384 * 9 * 17 * 64 / 1e9
    assert round(encode, 2) == 34.72
    assert round(giga("decode") - encode, 2) == 26.62
    np.testing.assert_allclose(giga("map") - encode - inputs, 37.7, atol=0.05)


def test_parameters():
    """A SegNet of 17 channels: first and last layer differ from the network's; its two norms do not."""
    trunk = 14_723_136 + 10_220_160 + 14 * 9 * 64
    size = cost.parameters(shapes(AutoEncoder(17), jnp.zeros((1, 32, 32, 17))))
    assert size == trunk + (9 * 64 + 1) * 64 + 65 * 17
    mapping = MappingEncoder(WIDTHS, 6)
    example = {task: jnp.zeros((1, 32, 32, n)) for task, n in WIDTHS.items()}
    size = cost.parameters(shapes(mapping, example, jnp.zeros(1, jnp.int32)))
    inputs = 9 * 17 * 64 + 3 * (1 + 2) * 64
    assert size == 14_723_136 + 61 * 9 * 64 + inputs + 6 * 8448

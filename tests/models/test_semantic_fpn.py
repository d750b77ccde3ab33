"""Semantic FPN for several tasks: its parts, what is shared, its size, and the methods over it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import names, train
from mtl_jax.errors import UserError
from mtl_jax.models import cost, semantic_fpn
from mtl_jax.models.backbones import hrnet, mobilenet_v2, resnet
from mtl_jax.models.decoders.fpn import FPN
from mtl_jax.models.decoders.semantic_fpn import SemanticBranch
from mtl_jax.models.modulation import Modulation
from mtl_jax.models.norm import ConvNorm
from mtl_jax.tasks import classification, depth, normals, semseg

DENSE = {"depth": depth.build("depth"), "semseg": semseg.build("semseg", 5)}
TASKS = DENSE | {"scene": classification.build("scene", 4)}
SIZE = (37, 50)
IMAGE = jax.random.uniform(jax.random.key(7), (2, *SIZE, 3))
STAGES = mobilenet_v2.STAGES
SMALL = {"backbone": "resnet", "encoder": {"depth": 26, "width": 0.125}}
SMALL |= {"pyramid_width": 16, "decoder_width": 8}


class Pools(nn.Module):
    """An encoder that is quick to compile: means of 4x4 to 32x32 pixels, and a layer with a norm each."""

    modulation = Modulation()

    @nn.compact
    def __call__(self, x, train, task=None):
        maps = []
        for stride in (4, 8, 16, 32):
            pooled = nn.avg_pool(x, (stride, stride), (stride, stride), "SAME")
            maps.append(ConvNorm(6, 1, activation=nn.tanh, name=f"stride{stride}")(pooled, train))
        return maps


@pytest.fixture(scope="module", autouse=True)
def short_encoder():
    """One block per stage: everything here is quicker to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
        patch.setattr(mobilenet_v2, "STAGES", tuple((min(t, 2), c, 1, s) for t, c, _, s in STAGES))
        yield


@pytest.fixture(scope="module")
def make(random_variables):
    """(tasks, dtype, options) -> model, variables."""

    def make(tasks=TASKS, dtype="float32", **options):
        model = semantic_fpn.build(tasks, dtype, **{**SMALL, **options})
        return model, random_variables(model, IMAGE, tuple(tasks), False)

    return make


@pytest.fixture(scope="module", params=["own", "shared"])
def network(request, make):
    return make(decoder=request.param)


@pytest.fixture(scope="module")
def predicted(network):
    return run(*network)


def run(model, variables, tasks=None):
    names = tuple(tasks or model.tasks)
    return jax.jit(lambda v: model.apply(v, IMAGE, names, train=False))(variables)


def sizes(tasks=TASKS, **options):
    """Model, and the shapes of its variables."""
    model = semantic_fpn.build(tasks, "float32", **options)
    image = jnp.zeros((1, 64, 64, 3))
    return model, jax.eval_shape(lambda: model.init(jax.random.key(0), image, tuple(tasks), train=False))


def test_outputs_have_the_images_size(predicted):
    for name, task in TASKS.items():
        assert predicted.outputs[name].shape == (2, *(SIZE if task.dense else (1, 1)), task.channels)
        assert predicted.outputs[name].dtype == jnp.float32
        assert jnp.isfinite(predicted.outputs[name]).all() and jnp.any(predicted.outputs[name] != 0)
    assert predicted.features["depth"].shape == (2, 10, 13, 8)
    assert predicted.encoded["depth"].shape == (2, 2, 2, 16)


def test_it_is_encoder_pyramid_branch_and_head(network, predicted):
    """Module by module, each run by itself; one label per image reads the pyramid's coarsest level."""
    model, variables = network
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    branch = "decoder@depth" if model.own_decoders else "decoder"

    def part(name):
        return {c: variables[c][name] for c in variables if name in variables[c]}

    @jax.jit
    def whole(image):
        maps = resnet.ResNet(26, 0.125, output_stride=32).apply(part("encoder"), (image - mean) / std, False)
        levels = FPN(16).apply(part("neck"), maps, False)
        return levels[-1], SemanticBranch(8).apply(part(branch), levels, False)

    last, features = whole(IMAGE)
    np.testing.assert_allclose(predicted.features["depth"], features, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(predicted.encoded["depth"], last, rtol=1e-4, atol=1e-4)
    dense = variables["params"]["head@scene"]["dense"]
    expected = np.float64(last).mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(predicted.outputs["scene"][:, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_a_task_depends_on_no_others_parts(make):
    """Without the others' parameters it is still predicted, and alike."""
    model, variables = make(decoder="own")
    expected = run(model, variables, ("depth",)).outputs["depth"]
    own = {k: v for k, v in variables["params"].items() if not k.endswith(("@semseg", "@scene"))}
    np.testing.assert_array_equal(
        run(model, {**variables, "params": own}, ("depth",)).outputs["depth"], expected
    )


@pytest.mark.parametrize("decoder", ["own", "shared"])
def test_what_is_shared(decoder):
    _, variables = sizes(decoder=decoder, **SMALL)
    branches = {"decoder@depth", "decoder@semseg"} if decoder == "own" else {"decoder"}
    heads = {f"head@{task}" for task in TASKS}
    assert set(variables["params"]) == {"encoder", "neck"} | branches | heads
    only, _ = sizes({"scene": TASKS["scene"]}, decoder=decoder, **SMALL)
    assert not only.bind({}).decoders


@pytest.mark.parametrize(
    "backbone,encoder",
    [
        ("mobilenet_v2", {}),
        ("efficientnet", {"variant": "lite0"}),
        ("hrnet", {"depth": "small_v1", "width": 16}),
        ("resnet", {"depth": 26}),
    ],
)
def test_every_backbone_gives_four_maps(backbone, encoder):
    """Of strides 4 to 32."""
    options = {"backbone": backbone, "encoder": encoder, "pyramid_width": 8, "decoder_width": 8}
    model, variables = sizes({"depth": TASKS["depth"]}, **options)
    assert {f"lateral{level}" for level in (2, 3, 4, 5)} < set(variables["params"]["neck"])
    image = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    prediction = jax.eval_shape(lambda v, x: model.apply(v, x, ("depth",), False), variables, image)
    assert prediction.features["depth"].shape == (1, 16, 24, 8)
    assert prediction.encoded["depth"].shape == (1, 2, 3, 8)


FIVE = {f"task{c}": semseg.build(f"task{c}", c) for c in (2, 3, 7, 10, 21)}
PYRAMID = 2_430_464  # of 256 channels on 18, 36, 72 and 144: 256 * 270 + 4 * 256 * (1 + 9 * 256 + 1)
BRANCH = 9 * 128 * (4 * 256 + 3 * 128) + 7 * 2 * 128


@pytest.mark.parametrize("decoder,branches", [("own", 5), ("shared", 1)])
def test_parameters_of_five_tasks(decoder, branches):
    """By the layers' sizes: on the smaller HRNet-W18, the default pyramid, branch and heads."""
    model, variables = sizes(FIVE, encoder={"depth": "small_v2"}, decoder=decoder)
    assert isinstance(model.encoder, hrnet.HRNet)
    params = variables["params"]
    assert cost.parameters(params["encoder"]) == 3_860_720
    assert cost.parameters(params["neck"]) == PYRAMID == 256 * 270 + 4 * 256 * (1 + 9 * 256 + 1)
    heads = sum(129 * channels for channels in (2, 3, 7, 10, 21))
    assert cost.parameters(params) == 3_860_720 + PYRAMID + branches * BRANCH + heads


def test_bfloat16_is_close(random_variables):
    tasks = {"depth": TASKS["depth"]}
    exact, half = (semantic_fpn.build(tasks, kind, **SMALL) for kind in ("float32", "bfloat16"))
    assert half.encoder.dtype == jnp.bfloat16
    exact, half = (model.clone(encoder=Pools()) for model in (exact, half))
    variables = random_variables(half, IMAGE, ("depth",), False)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact, rough = run(exact, variables), run(half, variables)
    assert rough.encoded["depth"].dtype == rough.features["depth"].dtype == jnp.bfloat16
    exact, rough = exact.outputs["depth"], rough.outputs["depth"]
    assert rough.dtype == jnp.float32
    assert 0 < jnp.abs(exact - rough).max() < 0.1 * jnp.abs(exact).max()


def test_training_reaches_every_parameter_and_statistic(random_variables):
    model = semantic_fpn.build(TASKS, "float32", **SMALL, decoder="shared").clone(encoder=Pools())
    variables = random_variables(model, IMAGE, tuple(TASKS), False)

    def loss(params):
        v = {**variables, "params": params}
        prediction, new = model.apply(v, IMAGE, tuple(TASKS), train=True, mutable=["batch_stats"])
        return sum(jnp.sum(jnp.sin(y)) for y in prediction.outputs.values()), new["batch_stats"]

    grads, moved = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert jnp.isfinite(g).all() and jnp.any(g != 0), jax.tree_util.keystr(path)
    before, after = (jax.tree.leaves(x) for x in (variables["batch_stats"], moved))
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "tasks,decoder,part,shape",
    [
        (DENSE, "shared", "decoder", (3, 3, 16, 8)),
        (DENSE, "own", "neck", (3, 3, 16, 16)),
        (TASKS, "shared", "neck", (3, 3, 16, 16)),
        (TASKS, "own", "neck", (3, 3, 16, 16)),
    ],
)
def test_path_of_the_last_shared_convolution(tasks, decoder, part, shape):
    model, variables = sizes(tasks, decoder=decoder, **SMALL)
    leaf = variables["params"]
    for key in model.last_shared:
        leaf = leaf[key]
    assert model.last_shared[0] == part and leaf["kernel"].shape == shape


# Methods over it. The gates of astmt are no part of it, but its turns and its discriminator are.

TWO = {"depth": depth.build("depth", 1.0), "normals": normals.build("normals")}
METHODS = {
    "astmt": {"name": "astmt", "discriminator_weight": 0.1, "steps": 4, "epochs": 2},
    "mtpsl": {"name": "mtpsl", "width": 0.0625},  # maps of 32 channels, as the pyramid's
    "jtr": {"name": "jtr", "width": 0.0625},
    "mgda": {"name": "supervised", "weighting": {"name": "mgda", "variant": "upper_bound"}},
    "gradnorm": {"name": "supervised", "weighting": {"name": "gradnorm"}},
}


def batch_of(views):
    rng = np.random.default_rng(0)
    shape = (2, 32, 64)
    normal = rng.normal(size=(*shape, 3)).astype(np.float32)
    given = np.array([[1, 0], [0, 1]], np.float32)[:, :, None, None, None]  # a label each

    def part():
        labels = {"depth": rng.uniform(1, 5, (*shape, 1)).astype(np.float32), "normals": normal}
        valid = {t: given[:, i] * np.ones((*shape, 1), np.float32) for i, t in enumerate(TWO)}
        return {"image": rng.random((*shape, 3)).astype(np.float32), "labels": labels, "valid": valid}

    return {**part(), "views": {name: part() for name in views}} if views else part()


def over_pools(name):
    """A method over a small network, and its train step."""
    options = {k: v for k, v in METHODS[name].items() if k != "name"}
    decoder = "shared" if name == "mgda" else "own"
    model = semantic_fpn.build(TWO, "float32", **{**SMALL, "pyramid_width": 32}, decoder=decoder)
    method = names.build("methods", METHODS[name]["name"], options, model.clone(encoder=Pools()), TWO)
    c = configs.default()
    batch = batch_of(method.views)
    state = jax.eval_shape(lambda: train.init_state(method, c, jax.random.key(0), batch))
    return train.make_step(method, c), state, batch


@pytest.mark.slow  # to compile
@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_step(name):
    """Its losses are finite, and encoder, pyramid, branches and heads all move."""
    step, shapes, batch = over_pools(name)
    rng = np.random.default_rng(0)

    def number(x):
        if jax.dtypes.issubdtype(x.dtype, np.integer):
            return jnp.zeros(x.shape, x.dtype)
        scale = np.prod(x.shape[:-1]) ** -0.5 if len(x.shape) > 1 else 0.1
        return jnp.asarray((len(x.shape) == 1) + scale * rng.normal(size=x.shape), x.dtype)

    state = jax.tree.map(number, shapes)
    after, metrics = jax.jit(step)(state, batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(metrics)))
    for part, values in state.params["model"].items():
        moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), values, after.params["model"][part])
        assert any(jax.tree.leaves(moved)), part


@pytest.mark.parametrize("name", METHODS)
def test_every_methods_step_can_be_traced(name):
    """It finds what it needs of the model: perturbations, the last shared layer, maps as large as its own."""
    step, state, batch = over_pools(name)
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state) and "all/loss" in metrics


@pytest.mark.parametrize(
    "options,words",
    [
        ({"dtype": "float"}, "config.dtype is 'float': choose one of float32, bfloat16"),
        (
            {"backbone": "segnet"},
            "config.model.backbone is 'segnet': choose one of hrnet, resnet, efficientnet",
        ),
        ({"norm": "layer"}, "config.model.norm is 'layer': choose one of batch, group"),
        ({"decoder": "ubernet"}, "config.model.decoder is 'ubernet': choose one of shared, own"),
        ({"pyramid_width": 0}, "config.model.pyramid_width is 0: give a number of channels"),
        ({"decoder_width": -1}, "config.model.decoder_width is -1: give a number of channels"),
        ({"encoder": {"deepness": 3}}, "models.backbones.hrnet has no option 'deepness'"),
        ({"encoder": {"depth": 3}}, "config.model.encoder.depth is 3: choose one of"),
        ({"skip": True}, "models.semantic_fpn has no option 'skip'"),
    ],
)
def test_wrong_options_are_named(options, words):
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    with pytest.raises(UserError) as error:
        names.build("models", "semantic_fpn", options, DENSE, dtype)
    assert words in str(error.value)

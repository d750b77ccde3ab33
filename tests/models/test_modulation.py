"""Gates, adapters and norms per task: their formulas, their places, and that tasks do not meet in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import cost, deeplab
from mtl_jax.models.backbones import resnet
from mtl_jax.models.backbones.resnet import Bottleneck, ResNet
from mtl_jax.models.modulation import Modulation, SqueezeExcite
from mtl_jax.models.naming import owned, owner
from mtl_jax.models.norm import ConvNorm
from mtl_jax.tasks import depth, normals, semseg

TASKS = {
    "semseg": semseg.build("semseg", 5),
    "depth": depth.build("depth"),
    "normals": normals.build("normals"),
}
IMAGE = jax.random.uniform(jax.random.key(7), (2, 33, 48, 3))
KEY = jax.random.key(0)
SEA = {"encoder_se": "task", "decoder_se": "task", "adapters": True}


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def of_task(tree, task):
    """{path: leaf} below submodules of a task; of None, of all that is shared."""
    paths = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in paths
        if next((o for o in (owner(entry.key) for entry in path) if o), None) == task
    }


def count(tree):
    return sum(leaf.size for leaf in tree.values())


@pytest.mark.parametrize(
    "name,task", [("norm", "norm"), ("head", "a_b"), ("se", "a@b"), ("stage1_block1", None)]
)
def test_names_tell_their_task(name, task):
    assert owner(owned(name, task)) == task


def test_gate_by_hand():
    params = {
        "squeeze": {"kernel": jnp.array([[1.0], [-1.0]]), "bias": jnp.array([2.0])},
        "excite": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.zeros(2)},
    }
    x = jnp.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    y, captured = SqueezeExcite(2).apply({"params": params}, x, mutable=["intermediates"])
    np.testing.assert_allclose(y[0, 0], [[0.731059, 0.537883], [2.193176, 1.075766]], rtol=1e-5)
    np.testing.assert_allclose(captured["intermediates"]["gate"][0], [[0.731059, 0.268941]], rtol=1e-5)


def test_order_within_a_unit():
    """Convolution + adapter of the same input, norm, activation, gate: in NumPy."""
    unit = ConvNorm(
        6, 1, activation=jax.nn.relu, modulation=Modulation("task", True, True), adapter=True, reduction=3
    )
    rng = np.random.default_rng(0)
    variables = unit.init(KEY, IMAGE, True, "t")
    variables = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), variables)
    out, _ = unit.apply(variables, IMAGE, True, "t", mutable=["batch_stats"])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    y = np.float64(IMAGE) @ (p["conv"]["kernel"] + p["adapter@t"]["kernel"])[0, 0]
    norm = p["norm@t"]["BatchNorm_0"]
    y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5) * norm["scale"] + norm["bias"]
    y = np.maximum(y, 0)
    gate = p["se@t"]
    hidden = np.maximum(y.mean((1, 2)) @ gate["squeeze"]["kernel"] + gate["squeeze"]["bias"], 0)
    y *= 1 / (1 + np.exp(-(hidden @ gate["excite"]["kernel"] + gate["excite"]["bias"])))[:, None, None]
    np.testing.assert_allclose(out, y, rtol=1e-3, atol=1e-4)


def test_tables_scale_and_shift_what_is_normalised():
    """Convolution with bias, norm, the example's column of the tables, activation: in NumPy."""
    unit = ConvNorm(
        6, 1, use_bias=True, norm="instance", activation=jax.nn.relu, modulation=Modulation(film=3)
    )
    column = jnp.array([2, 0])
    rng = np.random.default_rng(0)
    fresh = unit.init(KEY, IMAGE, True, column)["params"]
    table = fresh["film"]
    np.testing.assert_array_equal(table["scale"], np.ones((3, 6)))
    np.testing.assert_array_equal(table["bias"], np.zeros((3, 6)))
    params = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), fresh)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    y = np.float64(IMAGE) @ p["conv"]["kernel"][0, 0] + p["conv"]["bias"]
    y = (y - y.mean((1, 2), keepdims=True)) / np.sqrt(y.var((1, 2), keepdims=True) + 1e-5)
    (norm,) = p["norm"].values()
    y = y * norm["scale"] + norm["bias"]
    y[0] = y[0] * p["film"]["scale"][2] + p["film"]["bias"][2]
    y[1] = y[1] * p["film"]["scale"][0] + p["film"]["bias"][0]
    out = unit.apply({"params": params}, IMAGE, True, column)
    np.testing.assert_allclose(out, np.maximum(y, 0), rtol=1e-3, atol=1e-4)


def test_every_norm_of_a_residual_encoder_has_its_tables():
    encoder = ResNet(18, 0.125, "instance", modulation=Modulation(film=2))
    variables = jax.eval_shape(lambda: encoder.init(KEY, IMAGE, False, jnp.zeros(2, jnp.int32)))
    paths = [tuple(entry.key for entry in path) for path, _ in jax.tree.leaves_with_path(variables["params"])]
    norms, tables = (
        {path[: path.index(name)] for path in paths if name in path} for name in ("norm", "film")
    )
    assert norms == tables and ("stem",) in tables and len(tables) == 1 + 4 * 4


def test_an_adapter_stands_beside_the_3x3():
    """With a silent 3x3 and the identity as adapter, the block is that without its 3x3 convolution."""
    block = Bottleneck(4, stride=1, modulation=Modulation(adapters=True))
    x = jax.random.normal(KEY, (1, 5, 6, 16))
    params = block.init(KEY, x, False, "t")["params"]
    assert set(params["conv2"]) == {"conv", "norm", "adapter@t"}
    assert all("adapter@t" not in params[name] for name in ("conv1", "conv3"))
    assert not np.any(params["conv2"]["adapter@t"]["kernel"])
    centre = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
    as_conv = params | {"conv2": params["conv2"] | {"conv": {"kernel": centre}}}
    silent = {"conv": {"kernel": jnp.zeros((3, 3, 4, 4))}, "adapter@t": {"kernel": jnp.eye(4)[None, None]}}
    as_adapter = params | {"conv2": params["conv2"] | silent}
    stats = block.init(KEY, x, False, "t")["batch_stats"]
    a, b = (block.apply({"params": p, "batch_stats": stats}, x, False, "t") for p in (as_conv, as_adapter))
    np.testing.assert_allclose(a, b, atol=1e-6)


# Published and derived numbers of parameters; only shapes are computed.


def sizes(**options):
    """Shapes of a network's parameters for the one task `depth`."""
    model = deeplab.build({"depth": TASKS["depth"]}, "float32", decoder_width=64, **options)
    image = jnp.zeros((1, 64, 64, 3))
    return jax.eval_shape(lambda: model.init(KEY, image, ("depth",), train=False))["params"]


def gate(channels, reduction):
    return 2 * channels * (channels // reduction) + channels + channels // reduction


def by_hand(depth_):
    """Of a task: its gates in the encoder, its adapters there, and its norms there."""
    stages = list(zip(resnet.BLOCKS[depth_], (64, 128, 256, 512), strict=True))  # blocks, width p
    gates = sum(n * gate(4 * p, 16) for n, p in stages)
    return gates, sum(n * p * p for n, p in stages), sum(n * 12 * p + 8 * p for n, p in stages)


HEAD, DECODER_NORMS, DECODER_GATES = 64 + 1, 1048, 8 * gate(64, 16) + gate(12, 4)
DECODER_ADAPTERS = 4 * 2048 * 64 + 320 * 64 + 256 * 12 + 76 * 64 + 64 * 64


@pytest.mark.parametrize("depth_", [26, 50, 101])
def test_what_a_task_has_for_itself(depth_):
    gates, adapters, norms = by_hand(depth_)
    everything = HEAD + gates + adapters + norms + DECODER_GATES + DECODER_ADAPTERS + DECODER_NORMS
    assert count(of_task(sizes(depth=depth_, **SEA), "depth")) == everything


def test_what_each_kind_of_modulation_adds():
    gates, adapters, norms = by_hand(26)

    def own(**options):
        return count(of_task(sizes(depth=26, **options), "depth"))

    assert own(encoder_se="shared") == HEAD
    assert own(decoder_se="task") == HEAD + DECODER_GATES + DECODER_NORMS == HEAD + 5775
    both = {"encoder_se": "task", "decoder_se": "task"}
    assert own(**both) == HEAD + gates + norms + DECODER_GATES + DECODER_NORMS
    assert own(adapters=True) == HEAD + adapters + norms + DECODER_ADAPTERS + DECODER_NORMS
    assert own(task_norm=False, **both) == HEAD + gates + DECODER_GATES
    assert own(task_norm=True) == HEAD + norms + DECODER_NORMS
    shared = count(of_task(sizes(depth=26, encoder_se="shared"), None))
    assert shared - count(of_task(sizes(depth=26), None)) == gates
    assert not any("stem" in path for path in of_task(sizes(depth=26, **SEA), "depth"))


# A small network with everything per task.


@pytest.fixture(scope="module", autouse=True)
def short_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 18, (1, 1, 1, 1))
        yield


def network(tasks=TASKS, width=16, **options):
    return deeplab.build(tasks, "float32", depth=18, width=0.125, decoder_width=width, **{**SEA, **options})


def outputs(model, variables, tasks):
    return jax.jit(lambda v: model.apply(v, IMAGE, tasks, train=False).outputs)(variables)


def test_fresh_parameters_of_a_task_do_not_depend_on_the_others():
    unit = ConvNorm(6, modulation=Modulation("task", True, True), adapter=True, reduction=3)

    def call(module, x, tasks):
        return [module(x, False, task) for task in tasks]

    few, many = (unit.init(KEY, IMAGE, tasks, method=call)["params"] for tasks in (("a",), ("a", "b")))
    assert set(few) == {"conv", "adapter@a", "norm@a", "se@a"} and len(many) == 7
    assert same(few, {name: many[name] for name in few})
    assert not np.any(few["adapter@a"]["kernel"])


def test_adding_a_task_changes_no_other_tasks_output(random_variables):
    two = {name: TASKS[name] for name in ("semseg", "depth")}
    small, large = network(two), network()
    few, many = (random_variables(m, IMAGE, tuple(m.tasks), False) for m in (small, large))
    before, after = outputs(small, few, ("depth",)), outputs(large, many, ("depth",))
    np.testing.assert_array_equal(before["depth"], after["depth"])


def test_a_task_runs_and_moves_its_own_modules_only(random_variables):
    model = network()
    variables = random_variables(model, IMAGE, tuple(TASKS), False)
    own = {collection: _without_others(tree, "depth") for collection, tree in variables.items()}
    step = jax.jit(lambda v: model.apply(v, IMAGE, ("depth",), train=True, mutable=["batch_stats"]))
    (with_others, new), (alone, _) = step(variables), step(own)
    np.testing.assert_allclose(alone.outputs["depth"], with_others.outputs["depth"], rtol=1e-4, atol=1e-5)
    before, after = variables["batch_stats"], new["batch_stats"]
    for task in ("semseg", "normals"):
        assert of_task(before, task) and same(of_task(before, task), of_task(after, task))
    assert all("stem" in path for path in of_task(after, None))
    assert not same(of_task(before, None), of_task(after, None))
    assert not same(of_task(before, "depth"), of_task(after, "depth"))


def _without_others(tree, task):
    return {
        key: _without_others(value, task) if isinstance(value, dict) else value
        for key, value in tree.items()
        if owner(key) in (None, task)
    }


@pytest.mark.parametrize("encoder_se,adapters,decoder_se", [
    ("shared", False, "none"), ("shared", False, "task"), ("task", False, "task"), ("none", True, "none"),
])  # fmt: skip
def test_arithmetic_shows_what_runs_once(encoder_se, adapters, decoder_se):
    """T tasks cost one encoder if only the decoder differs, T of all if the encoder does."""
    model = network(encoder_se=encoder_se, adapters=adapters, decoder_se=decoder_se, width=64)
    variables = jax.eval_shape(lambda: model.init(KEY, IMAGE, tuple(TASKS), train=False))
    one, three = (cost.flops(model, variables, tasks, (64, 96)) for tasks in (("depth",), tuple(TASKS)))
    encoder = ResNet(18, 0.125, modulation=Modulation(encoder_se))
    lowered = jax.jit(lambda v, x: encoder.apply(v, x, False)).lower(
        jax.eval_shape(lambda: encoder.init(KEY, IMAGE, False)), jnp.zeros((1, 64, 96, 3))
    )
    encode = lowered.cost_analysis()["flops"]
    decode = one - encode
    if encoder_se == "task" or adapters:
        np.testing.assert_allclose(three, 3 * one, rtol=0.02)
    elif decoder_se == "task":
        np.testing.assert_allclose(three, encode + 3 * decode, rtol=0.02)
    else:
        assert three < encode + 1.15 * decode

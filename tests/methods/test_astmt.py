"""ASTMT: double backprop against finite differences, the reversal, and what a turn leaves alone."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import names, train
from mtl_jax.errors import UserError
from mtl_jax.methods import astmt
from mtl_jax.models import deeplab, pad_net
from mtl_jax.models.backbones import resnet
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import classification, depth, detection, normals

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A task whose loss is curved: mean of (sin(pred) - label)^2 over the valid places."""

    channels: int
    label_is_map = True

    def loss(self, pred, label, valid):
        return jnp.sum(valid * (jnp.sin(pred) - label) ** 2, (1, 2, 3)) / jnp.sum(valid, (1, 2, 3))


class Net(nn.Module):
    """A small model, smooth everywhere: a shared layer with batch norm, a layer, norm and head per task."""

    tasks: Any

    def setup(self):
        self.trunk = nn.Conv(4, (3, 3), (2, 2))
        self.bn = nn.BatchNorm(momentum=0.9)
        self.norm = {t: nn.BatchNorm(momentum=0.9, name=owned("norm", t)) for t in self.tasks}
        self.branch = {t: nn.Conv(5, (1, 1), name=owned("branch", t)) for t in self.tasks}
        self.head = {t: nn.Conv(x.channels, (1, 1), name=owned("head", t)) for t, x in self.tasks.items()}

    def encode(self, image, task, train):
        return [image, jnp.sin(self.bn(self.trunk(image), not train))]

    def decode(self, maps, task, train):
        return jnp.tanh(self.norm[task](self.branch[task](maps[-1]), not train))

    def features(self, image, task, train):
        return self.decode(self.encode(image, task, train), task, train)

    def predict(self, features, task, size):
        return jnp.kron(self.head[task](features), jnp.ones((1, 2, 2, 1)))

    def __call__(self, image, tasks, train):
        features = {t: self.features(image, t, train) for t in tasks}
        return Prediction({t: self.predict(features[t], t, None) for t in tasks}, features, {})


TOYS = {"a": Toy(1), "b": Toy(2)}


def toy_batch(dtype=np.float64):
    rng = np.random.default_rng(0)
    labels = {name: rng.normal(size=(2, 6, 8, task.channels)).astype(dtype) for name, task in TOYS.items()}
    valid = {name: (rng.random((2, 6, 8, 1)) < 0.8).astype(dtype) for name in TOYS}
    return {"image": rng.normal(size=(2, 6, 8, 3)).astype(dtype), "labels": labels, "valid": valid}


def build(model=None, tasks=TOYS, **options):
    options = {"discriminator_weight": 0.3, "steps": 100, "weights": {"b": 3.0}, **options}
    return astmt.build(model or Net(tasks), tasks, **options)


def loss_of(method, variables, batch, turn, step=40):
    """params -> (total, metrics) at one step of one turn."""

    def loss(params):
        return method.loss(params, variables["state"], batch, KEY, step, turn)

    return lambda params: (lambda total, aux: (total, aux[0]))(*loss(params))


@pytest.mark.parametrize("tap,kernel", [("decoder", 1), ("decoder", 3), ("encoder", 1)])
def test_second_order_gradient_against_finite_differences(tap, kernel):
    """(1 - w) d(w_t L_t) - lambda w d(L_d) for the network and + w d(L_d) for the discriminator, float64."""
    with jax.enable_x64(True):
        method, batch = build(tap=tap, discriminator_kernel=kernel), toy_batch()
        variables = method.init(KEY, batch)
        rng = np.random.default_rng(1)
        noise = jax.tree.map(lambda p: 0.3 * rng.normal(size=p.shape), variables["params"])
        params = jax.tree.map(jnp.add, variables["params"], noise)
        loss = loss_of(method, variables, batch, "b")
        grads = jax.jit(jax.grad(lambda p: loss(p)[0]))(params)
        values = jax.jit(lambda p: (loss(p)[1]["b/loss"], loss(p)[1]["b/discriminator_loss"]))
        ramp, seen = float(astmt.strength(40, 100, 60)), 0
        assert 0.9 < ramp < 1

        leaves, structure = jax.tree.flatten_with_path(params)
        for index, (path, leaf) in enumerate(leaves):
            direction, size = rng.normal(size=leaf.shape), 1e-5

            def at(shift, index=index, direction=direction):
                moved = [p + shift * direction if i == index else p for i, (_, p) in enumerate(leaves)]
                return np.array(values(jax.tree.unflatten(structure, moved)))

            task_slope, adversary_slope = (at(size) - at(-size)) / (2 * size)
            sign = 1 if path[0].key == "method" else -ramp
            expected = 0.7 * 3.0 * task_slope + sign * 0.3 * adversary_slope
            got = jnp.vdot(jax.tree.leaves(grads)[index], direction)
            where = jax.tree_util.keystr(path)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8, err_msg=where)
            seen += abs(adversary_slope) > 1e-4
        assert seen >= 9  # the discriminator's loss depends on network and discriminator alike


class Vector(nn.Module):
    """The features are two parameters; the head is the identity."""

    tasks: Any

    def setup(self):
        self.f = self.param("f", lambda _: jnp.array([3.0, 4.0]))

    def features(self, image, task, train):
        return jnp.broadcast_to(self.f, (1, 1, 1, 2))

    def predict(self, features, task, size):
        return features

    def __call__(self, image, tasks, train):
        return self.features(image, None, train)


class HalfSquare(Toy):
    def loss(self, pred, label, valid):
        return 0.5 * jnp.sum(pred**2, (1, 2, 3))


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("v", lambda _: jnp.eye(2))


@pytest.mark.parametrize("weight", [1.0, 50.0])
@pytest.mark.parametrize(
    "ramp,expected", [(1.0, (2.712316, 3.590763)), (0.5, (2.706158, 3.595381)), (0.0, (2.7, 3.6))]
)
def test_worked_example(ramp, expected, weight):
    """f = (3, 4), L = |f|^2 / 2, D = identity: worked by hand; the task's weight does not reach D."""
    tasks = {"a": HalfSquare(2), "b": HalfSquare(2)}
    method = dataclasses.replace(
        build(Vector(tasks), tasks, weights={"a": weight}, discriminator_weight=0.1),
        discriminator=Linear(),
        reversal=ramp / astmt.strength(40, 100, 60),
    )
    ones = {"a": jnp.ones((1, 1, 1, 1)), "b": jnp.ones((1, 1, 1, 1))}
    batch = {"image": jnp.ones((1, 1, 1, 3)), "labels": ones, "valid": ones}
    variables = method.init(KEY, batch)
    total, metrics = loss_of(method, variables, batch, "a")(variables["params"])
    grads = jax.grad(lambda p: loss_of(method, variables, batch, "a")(p)[0])(variables["params"])
    np.testing.assert_allclose(metrics["a/discriminator_loss"], 0.798139, rtol=1e-6)
    np.testing.assert_allclose(total, 0.9 * weight * 12.5 + 0.0798139, rtol=1e-6)
    plain = np.array([2.7, 3.6])
    np.testing.assert_allclose(grads["model"]["f"], np.array(expected) + (weight - 1) * plain, rtol=1e-6)
    ours = np.array([[-0.3299, 0.3299], [-0.439867, 0.439867]])
    np.testing.assert_allclose(grads["method"]["discriminator"]["v"], 0.1 * ours, rtol=1e-4)


def test_strength_grows_from_epoch_to_epoch():
    epochs = [0, 5, 29, 59]
    steps = jnp.array([e * 10 + within for e in epochs for within in (0, 9)])
    expected = np.repeat([0.083141, 0.462117, 0.986614, 0.999909], 2)
    np.testing.assert_allclose(astmt.strength(steps, 600, 60), expected, atol=1e-6)
    assert astmt.strength(jnp.array(600), 600, 60) == astmt.strength(jnp.array(599), 600, 60)


def test_a_place_without_gradient_has_no_direction_and_finite_derivatives():
    g = jnp.array([[[[3.0, 4.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(astmt.directions(g), [[[[0.6, 0.8], [0, 0]]]], rtol=1e-6)
    slope = jax.grad(lambda g: jnp.sum(astmt.directions(g)[..., 0]))(g)
    assert jnp.isfinite(slope).all() and jnp.all(slope[0, 0, 1] == 0)


@pytest.mark.parametrize(
    "size,strided,places", [(12, 3, (0, 4, 8)), (37, 10, range(0, 37, 4)), (37, 3, (0, 16, 32))]
)
def test_labels_are_read_at_the_first_row_and_column_of_each_cell(size, strided, places):
    valid = jnp.arange(size * size, dtype=jnp.float32).reshape(1, size, size, 1)
    expected = np.arange(size * size).reshape(size, size)[np.ix_(list(places), list(places))]
    np.testing.assert_array_equal(astmt.reduced(valid, (strided, strided))[0, ..., 0], expected)


def config(tasks, **optimizer):
    c = configs.default()
    c.optimizer.update(schedule="constant", decay="all", **optimizer)
    c.train.steps = 100
    return c


def run(method, c, batch, steps, state=None):
    state = state or train.init_state(method, c, KEY, batch)
    step, losses = jax.jit(train.make_step(method, c)), []
    for _ in range(steps):
        state, metrics = step(state, batch)
        losses.append(metrics)
    return state, losses


@pytest.mark.parametrize("alike", [False, True])
def test_the_discriminator_learns_to_tell_gradients_apart_only_if_they_differ(alike):
    """The network is frozen. Equal heads and labels send equal gradients: its loss stays near log 2."""
    tasks, batch = {"a": Toy(1), "b": Toy(1)}, toy_batch(np.float32)
    batch["labels"] = {
        "a": batch["labels"]["a"],
        "b": batch["labels"]["a"] if alike else -batch["labels"]["a"],
    }
    batch["valid"] = dict.fromkeys(tasks, jnp.ones((2, 6, 8, 1)))
    method = build(Net(tasks), tasks, weights={}, discriminator_weight=1.0, tap="encoder")
    frozen = {"shared": 0.0, "task": 0.0}
    c = config(tasks, learning_rate=0.02 if alike else 0.1, lr_scale=frozen, weight_decay=0.0)
    state = train.init_state(method, c, KEY, batch)
    if alike:
        model = dict(state.params["model"])
        model |= {name.replace("@a", "@b"): value for name, value in model.items() if name.endswith("@a")}
        state = state.replace(params={**state.params, "model": model})
    state, history = run(method, c, batch, 60, state)
    last = np.mean([history[-1][f"{t}/discriminator_loss"] for t in tasks])
    if alike:
        assert abs(last - np.log(2)) < 0.02
    else:
        assert last < 0.35 and all(history[-1][f"{t}/discriminator_accuracy"] > 0.85 for t in tasks)


class Product(nn.Module):
    """L_t = shared * own(t)."""

    tasks: Any

    @nn.compact
    def __call__(self, image, tasks, train):
        shared = self.param("shared", lambda _: jnp.float32(1.0))
        own = {t: nn.Dense(1, use_bias=False, kernel_init=nn.initializers.constant(v), name=owned("own", t))
               for t, v in (("a", 2.0), ("b", 3.0))}  # fmt: skip
        return Prediction({t: shared * own[t](jnp.ones((1, 1, 1, 1))) for t in tasks}, {}, {})

    def features(self, image, task, train):
        return self(image, (task,), train).outputs[task]

    def predict(self, features, task, size):
        return features


class Itself(Toy):
    def loss(self, pred, label, valid):
        return pred[:, 0, 0, 0]


def test_update_rule_by_hand():
    """Two steps a, b, a, b with momentum and decay; a naive optimiser would end at other numbers."""
    tasks = {"a": Itself(1), "b": Itself(1)}
    method = build(Product(tasks), tasks, weights={}, discriminator_weight=0.0)
    ones = dict.fromkeys(tasks, jnp.ones((1, 1, 1, 1)))
    batch = {"image": jnp.ones((1, 1, 1, 3)), "labels": ones, "valid": ones}
    c = config(tasks, learning_rate=0.1, momentum=0.9, weight_decay=0.01, lr_scale={"shared": 0.5})
    state, _ = run(method, c, batch, 2)
    model = state.params["model"]
    got = model["shared"], model["own@a"]["kernel"][0, 0], model["own@b"]["kernel"][0, 0]
    np.testing.assert_allclose(got, (-0.079799773325, 1.738441975, 2.785831832512), rtol=1e-5)


def test_without_reversal_the_network_learns_as_without_discriminator():
    """Gradients are (1 - w_d) times those of the plain method; the discriminator's do not change."""
    batch = toy_batch(np.float32)
    plain, control = build(discriminator_weight=0.0), build(reversal=0.0)
    variables = control.init(KEY, batch)

    def grads(method, params):
        return jax.jit(jax.grad(lambda p: loss_of(method, variables, batch, "b")(p)[0]))(params)

    def close(x, y):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)

    ours, theirs = grads(control, variables["params"]), grads(plain, {**variables["params"], "method": {}})
    jax.tree.map(lambda x, y: close(x, 0.7 * y), ours["model"], theirs["model"])
    reverse = grads(build(), variables["params"])
    jax.tree.map(close, ours["method"], reverse["method"])
    for name in ("trunk", "branch@b", "head@b"):
        assert not np.allclose(ours["model"][name]["kernel"], reverse["model"][name]["kernel"], rtol=1e-3)


def test_the_discriminator_is_no_part_of_the_deployed_network():
    """Same tree, same bits, same predictions; the groups cover all parameters."""
    batch = toy_batch(np.float32)
    a, b = (build(discriminator_weight=w).init(KEY, batch) for w in (0.1, 0.0))
    assert same(a["params"]["model"], b["params"]["model"]) and b["params"]["method"] == {}
    assert jax.tree.structure(a["params"]["model"]) == jax.tree.structure(b["params"]["model"])
    groups = set(jax.tree.leaves(build().groups(a["params"])))
    assert groups == {"shared", "task:a", "task:b", "auxiliary"}


def test_a_task_without_labels_in_the_batch_has_no_turn():
    """Everything is as if the method had the other turn alone, what tasks share included."""
    batch, c = toy_batch(np.float32), config(TOYS, learning_rate=0.01, momentum=0.9, weight_decay=0.1)
    batch["valid"]["b"] *= 0
    one, _ = run(build(), c, batch, 3)
    other, _ = run(dataclasses.replace(build(), order=("a",)), c, batch, 3)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), one, other)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


# On a real network, with batch norm and all modulation.

REAL = {"depth": depth.build("depth", 1.0), "normals": normals.build("normals")}


@pytest.fixture(scope="module")
def network():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.BLOCKS, 26, (1, 1, 1, 1))
        options = {"encoder_se": "task", "decoder_se": "task", "adapters": True}
        yield deeplab.build(REAL, "float32", depth=26, width=0.125, decoder_width=16, **options)


def real_batch():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(4, 24, 32, 3)).astype(np.float32)
    labels = {"depth": rng.uniform(1, 5, (4, 24, 32, 1)).astype(np.float32), "normals": normal}
    valid = {t: np.ones((4, 24, 32, 1), np.float32) for t in REAL}
    return {"image": rng.random((4, 24, 32, 3)).astype(np.float32), "labels": labels, "valid": valid}


def parts(tree, task):
    """Leaves below submodules of a task."""
    return [x for path, x in jax.tree.leaves_with_path(tree) if f"@{task}" in jax.tree_util.keystr(path)]


def test_a_turn_leaves_the_other_tasks_weights_momentum_and_statistics_bit_identical(network):
    """Three steps of depth alone (a task without labels has no turn) after one of both tasks."""
    method, batch = build(network, REAL, weights={}, discriminator_weight=0.1), real_batch()
    c = config(REAL, learning_rate=0.01, momentum=0.9, weight_decay=0.1)
    before, _ = run(method, c, batch, 1)
    unlabelled = {**batch, "valid": {**batch["valid"], "normals": np.zeros((4, 24, 32, 1), np.float32)}}
    after, metrics = run(method, c, unlabelled, 3, before)
    for tree in (lambda s: s.params["model"], lambda s: s.state["model"]):
        assert len(parts(tree(before), "normals")) > 10
        assert same(parts(tree(before), "normals"), parts(tree(after), "normals"))
        assert not same(parts(tree(before), "depth"), parts(tree(after), "depth"))
    inner = before.opt_state.inner_states, after.opt_state.inner_states
    assert same(inner[0]["task:normals"], inner[1]["task:normals"])
    assert not same(inner[0]["task:depth"], inner[1]["task:depth"])
    assert all(np.isfinite(x) for x in jax.tree.leaves(jax.device_get(metrics)))


@pytest.mark.parametrize(
    "tasks,options,words",
    [
        (REAL, {"discriminator_weight": 1.5}, "config.method.discriminator_weight is 1.5: give 0 to 1"),
        (REAL, {"discriminator_weight": -0.1}, "config.method.discriminator_weight is -0.1: give 0 to 1"),
        ({"depth": REAL["depth"]}, {}, "nothing to tell apart with 'depth' as the only task"),
        (REAL, {"order": ("depth",)}, "config.method.order must name each of depth, normals once, not depth"),
        (REAL, {"weights": {"parts": 1.0}}, "names 'parts', which is not one of config.tasks"),
        (REAL, {"tap": "head"}, "config.method.tap is 'head': choose one of decoder, encoder"),
        (REAL, {"discriminator_kernel": 2}, "give a positive depth and an odd kernel"),
        (REAL, {"reversal": 2.0}, "config.method.reversal is 2.0: give 0 to 1"),
        (REAL, {"steps": None}, "config.method: steps is None and epochs 60"),
        ({**REAL, "scene": classification.build("scene", 4)}, {}, "task 'scene' is not dense"),
        ({**REAL, "boxes": detection.build("boxes", 4)}, {}, "task 'boxes' is not dense"),
    ],
)
def test_wrong_options_are_named(tasks, options, words):
    with pytest.raises(UserError) as error:
        names.build("methods", "astmt", {"discriminator_weight": 0.1, "steps": 10, **options}, None, tasks)
    assert words in str(error.value)


def test_networks_whose_branches_read_each_other_have_no_turns():
    with pytest.raises(UserError, match="config.method is 'astmt', which runs one task at a time, but"):
        astmt.build(pad_net.build(REAL, "float32"), REAL)


def test_features_of_different_widths_need_the_other_tap():
    class Wide(Net):
        def features(self, image, task, train):
            return jnp.tile(super().features(image, task, train), 1 + (task == "b"))

    with pytest.raises(
        UserError, match="same width for all tasks, not a 5, b 10: set config.method.tap='encoder'"
    ):
        build(Wide(TOYS)).init(KEY, toy_batch(np.float32))

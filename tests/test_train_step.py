"""The generic train step against its definition, with a toy network and a toy method."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import config as configs
from mtl_jax import tasks as task_modules
from mtl_jax import train
from mtl_jax.methods import weighting
from mtl_jax.methods.base import Method
from mtl_jax.models.naming import owned

BATCH = {"image": jnp.arange(12.0).reshape(4, 3) / 10, "a": jnp.ones(4), "b": -jnp.ones(4)}


class Net(nn.Module):
    @nn.compact
    def __call__(self, image, tasks, train):
        shared = nn.BatchNorm(not train, momentum=0.9)(nn.Dense(5, use_bias=False, name="trunk")(image))
        return {task: nn.Dense(1, name=owned("head", task))(shared)[:, 0] for task in tasks}


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Squared errors; optionally one task per turn."""

    in_turns: bool = False

    @property
    def turns(self):
        return tuple(self.tasks) if self.in_turns else (None,)

    def trains(self, turn):
        return None if turn is None else frozenset({"shared", f"task:{turn}"})

    def loss(self, params, state, batch, rng, step, turn=None):
        outputs, state = self.forward(params, state, batch["image"], rng)
        names = self.tasks if turn is None else (turn,)
        losses = {f"{t}/loss": jnp.mean((outputs[t] - batch[t]) ** 2) for t in names}
        return sum(losses.values()), (losses, state)


def toy(*names, in_turns=False, kind=Toy):
    tasks = dict.fromkeys(names)
    return kind(Net(), tasks, weighting.make(tasks), in_turns)


def config(**changes):
    c = configs.default()
    c.optimizer.update(
        name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01, decay="all", schedule="constant"
    )
    c.train.steps = 10
    c.update(changes)
    return c


def run(method, c, steps):
    state = train.init_state(method, c, jax.random.key(0), BATCH)
    step = jax.jit(train.make_step(method, c))
    states, metrics = [state], []
    for _ in range(steps):
        state, m = step(state, BATCH)
        states.append(state)
        metrics.append(m)
    return states, metrics


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: np.array_equal(x, y), a, b)))


def test_a_turn_leaves_the_other_tasks_bit_identical():
    """Weights that a turn does not train keep value, momentum and decay (T = 2, one task per turn)."""

    @dataclasses.dataclass(frozen=True)
    class OnlyA(Toy):
        @property
        def turns(self):
            return ("a",)

    states, _ = run(toy("a", "b", in_turns=True, kind=OnlyA), config(), 3)
    first, last = states[0], states[-1]
    assert same(first.params["model"]["head@b"], last.params["model"]["head@b"])
    assert same(first.opt_state.inner_states["task:b"], last.opt_state.inner_states["task:b"])
    for trained in ("head@a", "trunk"):
        assert not same(first.params["model"][trained], last.params["model"][trained])


def test_turns_see_what_earlier_turns_updated():
    """Two turns in one step equal two single-turn steps by hand, in float64 NumPy terms of the optimiser."""
    tasks = ("a", "b")
    c = config()
    both, metrics = run(toy(*tasks, in_turns=True), c, 1)

    method = toy(*tasks, in_turns=True)
    params, state = both[0].params, both[0].state
    moment = jax.tree.map(jnp.zeros_like, params)
    for turn in tasks:
        grads, (_, state) = jax.grad(method.loss, has_aux=True)(
            params, state, BATCH, jax.random.key(0), 0, turn
        )
        groups = method.groups(params)
        on = jax.tree.map(lambda g, turn=turn: g in method.trains(turn), groups)
        moment = jax.tree.map(
            lambda v, g, p, u: 0.9 * v + g + 0.01 * p if u else v, moment, grads, params, on
        )
        params = jax.tree.map(lambda p, v, u: p - 0.1 * v if u else p, params, moment, on)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6), both[1].params, params)
    assert {"a/loss", "b/loss", "a/grad_norm", "b/grad_norm"} <= set(metrics[0])


def test_average_follows_its_formula():
    states, _ = run(toy("a"), config(ema_decay=0.8), 3)
    expected = states[0].current()
    for state in states[1:]:
        expected = jax.tree.map(lambda a, p: 0.8 * a + 0.2 * p, expected, state.current())
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), states[-1].deployed(), expected
    )
    assert not same(states[-1].deployed(), states[-1].current())


@pytest.mark.parametrize("ema", [None, 0.8])
def test_split_and_join_are_inverse(ema):
    state = run(toy("a"), config(ema_decay=ema), 2)[0][-1]
    again = train.TrainState.join(*state.split())
    assert jax.tree.structure(again) == jax.tree.structure(state) and same(again, state)


def test_gradient_clipping_scales_the_whole_gradient():
    c = config()
    c.optimizer.update(momentum=0.0, weight_decay=0.0, clip_norm=0.01)
    states, metrics = run(toy("a"), c, 1)
    assert metrics[0]["all/grad_norm"] > 0.1
    moved = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), states[0].params, states[1].params)
    np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(moved))), 0.1 * 0.01, rtol=1e-3)


def test_the_culprit_of_a_loss_that_is_not_finite_is_its_task():
    assert train.first_bad({"all/loss": np.nan, "a/loss": 1.0, "b/loss": np.nan}) == "the loss of task 'b'"
    assert train.first_bad({"all/loss": 1.0, "all/grad_norm": np.inf, "b/loss": 1.0}) == "the gradient"
    assert train.first_bad({"all/loss": 1.0, "b/loss": 1.0}) is None


def test_parameter_groups():
    """A task called like a module (`trunk`) or like the end of another task's name swallows nothing."""
    method = toy("a", "trunk", "b_a")
    params = method.init(jax.random.key(0), BATCH)["params"]
    params["method"] = {"critic": {"a": jnp.ones(2)}}
    groups = method.groups(params)
    assert set(jax.tree.leaves(groups["model"]["trunk"])) == {"shared"}
    for task in method.tasks:
        assert set(jax.tree.leaves(groups["model"][f"head@{task}"])) == {f"task:{task}"}
    assert jax.tree.leaves(groups["method"]) == ["auxiliary"]


def test_gains_over_a_constant_that_scores_nothing_are_absolute():
    labels = {"depth": {}, "semseg": {"num_classes": 2}}
    tasks = task_modules.build({"depth": {}, "semseg": {}}, labels)
    reference = {"depth/rmse": 2.0, "semseg/mIoU": 0.0}
    gain = train.over_constant({"depth/rmse": 1.0, "semseg/mIoU": 0.3}, reference, tasks)
    np.testing.assert_allclose(gain, (50 + 30) / 2)
    reference["semseg/mIoU"] = 0.2
    gain = train.over_constant({"depth/rmse": 1.0, "semseg/mIoU": 0.3}, reference, tasks)
    np.testing.assert_allclose(gain, (50 + 50) / 2)

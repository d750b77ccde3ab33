import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import optimizer
from mtl_jax.errors import UserError


def options(**changes):
    values = dict(
        name="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.01, decay="kernels",
        schedule="constant", warmup_steps=0, halve_every=0.5, lr_scale={}, own={},
    )  # fmt: skip
    return ConfigDict({**values, **changes})


def test_poly_and_cosine_by_hand():
    poly = optimizer.schedule(options(schedule="poly", learning_rate=0.5), 100)
    np.testing.assert_allclose(poly(30), 0.5 * (1 - 0.3) ** 0.9, rtol=1e-6)
    assert poly(100) == 0
    cosine = optimizer.schedule(options(schedule="cosine", learning_rate=0.08, warmup_steps=500), 5000)
    # Values of MuST's schedule: linear to the peak at 500, half of it half-way through the decay.
    for step, rate in {0: 0.0, 250: 0.04, 500: 0.08, 2750: 0.04, 5000: 0.0}.items():
        np.testing.assert_allclose(cosine(step), rate, atol=1e-7)


def reference_sgd(p, grads, decay, scale, mu=0.9, lr=0.1):
    """d = g + wd p; v <- mu v + d; p <- p - lr v, in float64."""
    v = np.zeros_like(p, np.float64)
    p = p.astype(np.float64)
    for g in grads:
        v = mu * v + g + decay * p
        p = p - lr * scale * v
    return p


@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_sgd_groups_and_decay_mask(decay):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(3), "c": jnp.full((1, 2), 2.0)}
    groups = {"a": "shared", "b": "shared", "c": "task:depth"}
    tx = optimizer.transformation(options(decay=decay, lr_scale={"shared": 0.5, "task": 2.0}), groups)
    state = tx.init(params)
    rng = np.random.default_rng(0)
    history = [jax.tree.map(lambda p: rng.normal(size=p.shape), params) for _ in range(4)]
    new = params
    for grads in history:
        updates, state = tx.update(grads, state, new)
        new = jax.tree.map(lambda p, u: p - 0.1 * u, new, updates)
    for key, scale in {"a": 0.5, "b": 0.5, "c": 2.0}.items():
        wd = 0.01 if decay == "all" or params[key].ndim > 1 else 0.0
        expected = reference_sgd(np.asarray(params[key]), [g[key] for g in history], wd, scale)
        np.testing.assert_allclose(new[key], expected, rtol=1e-5)


def test_adamw_decay_is_decoupled():
    params = {"w": jnp.full((1, 1), 3.0)}
    tx = optimizer.transformation(options(name="adamw"), {"w": "shared"})
    updates, _ = tx.update({"w": jnp.full((1, 1), 7.0)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], 1.0 + 0.01 * 3.0, rtol=1e-5)  # sign-like step + wd * p


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"name": "lamb"}, "lamb"), ({"lr_scale": {"heads": 2.0}}, "heads"), ({"schedule": "step"}, "'step'")],
)
def test_wrong_values_are_named(changes, named):
    wrong = options(**changes)
    with pytest.raises(UserError, match=named):
        optimizer.schedule(wrong, 10)
        optimizer.transformation(wrong, {"w": "shared"})


def test_warmup_must_end_before_the_run():
    with pytest.raises(UserError, match="warmup_steps=10"):
        optimizer.schedule(options(warmup_steps=10), 10)


def test_halving_by_hand():
    rate = optimizer.schedule(options(schedule="halve", learning_rate=1e-4, halve_every=0.5), 400)
    for step, value in {0: 1e-4, 199: 1e-4, 200: 5e-5, 399: 5e-5}.items():
        np.testing.assert_allclose(rate(step), value, rtol=1e-6)
    # MTPSL's scales and shifts: every 30 of 200 epochs of 5 steps.
    rate = optimizer.schedule(options(schedule="halve", learning_rate=1e-3, halve_every=0.15), 1000)
    for step in (0, 149, 150, 449, 450, 999):
        np.testing.assert_allclose(rate(step), 1e-3 * 0.5 ** (step // 150), rtol=1e-6)


def test_a_group_may_have_its_own_schedule():
    own = {"film": {"learning_rate": 1e-3, "schedule": "constant"}, "task": {"learning_rate": 0.2}}
    o = options(schedule="halve", own=own)
    found = optimizer.schedules(o, 100, {"shared", "film", "task:depth"})
    np.testing.assert_allclose([found["shared"](0), found["shared"](50)], [0.1, 0.05], rtol=1e-6)
    np.testing.assert_allclose([found["film"](0), found["film"](50)], [1e-3, 1e-3], rtol=1e-6)
    np.testing.assert_allclose([found["task:depth"](0), found["task:depth"](50)], [0.2, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"flim": {"learning_rate": 1.0}}, "config.optimizer.own names 'flim': the groups are film, shared"),
        (
            {"film": {"momentum": 1.0}},
            "config.optimizer.own.film has no key 'momentum': it has learning_rate",
        ),
    ],
)
def test_a_wrong_own_schedule_is_named(own, message):
    with pytest.raises(UserError, match=message):
        optimizer.schedules(options(own=own), 100, {"shared", "film"})


def test_groups_are_taken_in_one_order():
    """Else every process would compile a program of its own, and find none in the cache."""
    labels = [f"task:{i}" for i in range(20)] + ["shared"]
    assert list(optimizer.schedules(options(), 100, reversed(labels))) == sorted(labels)
    state = optimizer.transformation(options(), {label: label for label in labels}).init(
        dict.fromkeys(labels, jnp.zeros(1))
    )
    assert list(state.inner_states) == sorted(labels)

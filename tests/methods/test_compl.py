"""Composite learning: its losses by value, whom they train, and what the key network and the banks hold."""

import dataclasses
import functools
import itertools
import json
import math
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mtl_jax import config as configs
from mtl_jax import experiment, main, train
from mtl_jax.checkpoint import Checkpoints, abstract
from mtl_jax.errors import UserError
from mtl_jax.methods import compl, supervised, two_views
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import classification, depth, semseg

TASKS = {"depth": depth.build("depth"), "semseg": semseg.build("semseg", 3)}
CANVAS, N = (10, 12), 9
OPTIONS = {"canvas": CANVAS, "window": (5, 6), "shift": 2, "grid": 3, "width": 4}


class Net(nn.Module):
    """One shared convolution, and a linear head per task."""

    tasks: dict
    marked: str = "features"
    norm: bool = False
    dtype = jnp.float32

    def setup(self):
        self.trunk = nn.Conv(6, (3, 3))
        self.normalise = nn.BatchNorm(use_running_average=False)
        self.heads = {n: nn.Dense(t.channels, name=owned("head", n)) for n, t in self.tasks.items()}

    def features(self, image, task, train):
        x = nn.tanh(3 * self.trunk(image))
        return self.normalise(x) if self.norm else x

    def __call__(self, image, tasks, train):
        x = self.features(image, None, train)
        if not self.is_initializing():
            x = self.perturb(self.marked, x)
        return Prediction({t: self.heads[t](x) for t in tasks}, dict.fromkeys(tasks, x), {})


def make(auxiliary="densecl", tasks=TASKS, images=N, **options):
    method = compl.build(Net(tasks), tasks, auxiliary=auxiliary, **{**OPTIONS, **options})
    return dataclasses.replace(method, images=images)


@pytest.fixture
def batch(partial):
    return make_batch(partial)


def make_batch(partial, ids=(3, 7, 0), seed=0):
    made = partial.make_batch([[1, 1]] * len(ids), TASKS, seed=seed)
    images = np.random.default_rng(seed + 1).uniform(size=(len(ids), *CANVAS, 3)).astype(np.float32)
    return {**made, "streams": {"auxiliary": {"image": images, "id": np.array(ids, np.int32)}}}


REAL = two_views.changed
info_nce = jax.jit(compl.info_nce)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Views that are the two windows themselves, which take less time to compile."""
    monkeypatch.setattr(two_views, "changed", lambda rng, image: image)


def start(method, batch):
    variables = jax.jit(method.init)(jax.random.key(0), batch)
    return variables["params"], variables["state"]


@functools.cache
def compiled(auxiliary, options):
    method = make(auxiliary, **dict(options))

    def rest(params, kept, state, batch, step):
        state = {**state, "method": kept}
        values, rest, (metrics, new) = method.losses(params, state, batch, jax.random.key(0), step)
        return rest, (values, metrics, new)

    return method, jax.jit(jax.value_and_grad(rest, (0, 1), has_aux=True))


def taken(auxiliary="densecl", **options):
    """A method, and its step: weight L_a, the tasks' losses, metrics, new state, its two gradients."""
    method, step_fn = compiled(auxiliary, tuple(options.items()))

    def step(params, state, batch, step=0):
        (value, aux), gradients = step_fn(params, state["method"], state, batch, jnp.asarray(step))
        return value, *aux, *gradients

    return method, step


def units(*shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def at(degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], -1)


# The second formulation: every term on its own, in float64.


def share(query, positive, bank, own, temperature):
    """-log of the positive's share; an image's own row in the bank is left out."""
    query, positive, bank = (np.asarray(x, np.float64) for x in (query, positive, bank))
    same = math.exp(query @ positive / temperature)
    others = [math.exp(query @ row / temperature) for j, row in enumerate(bank) if j != own]
    return -math.log(same / (same + sum(others)))


def nearest(query, key):
    """Of each row of `query` the number of the most similar row of `key`."""
    return [max(range(len(key)), key=lambda j: float(np.float64(q) @ np.float64(key[j]))) for q in query]


def embedding(image=None, cells=None, pooled=None, seen=None):
    """An Embedding of arrays that need not be float32."""
    return compl.Embedding(
        *(None if x is None else jnp.asarray(x, jnp.float32) for x in (image, cells, pooled, seen))
    )


# By value.

BANK = [[0, 1], [1, 0], [-0.6, 0.8]]
QUERY, KEY = [1, 0], [0.8, 0.6]


def nce(query=QUERY, positive=KEY, bank=BANK, own=1, temperature=0.4):
    arrays = (jnp.asarray(x, jnp.float32) for x in ([query], [positive], bank))
    return float(info_nce(*arrays, jnp.array([own]), temperature)[0])


def test_contrast_of_images_by_value():
    assert nce() == pytest.approx(0.1531782, abs=1e-6)
    # What a mistake would give: the own row a negative, the stored row the positive, another temperature.
    assert nce(own=-1) == pytest.approx(1.0346972, abs=1e-6)
    assert nce(positive=BANK[1]) == pytest.approx(0.0956743, abs=1e-6)
    assert nce(temperature=0.2) == pytest.approx(0.0190450, abs=1e-6)
    bank = compl.written(jnp.asarray(BANK), jnp.array([1]), jnp.asarray([KEY]))
    np.testing.assert_allclose(bank, [BANK[0], KEY, BANK[2]])


def test_contrast_of_cells_by_value():
    seen, other = [[1, 0], [0, 1]], [[0, 1], [0.6, 0.8]]
    cells, others = [[1, 0], [0.6, 0.8]], [[0, 1], [0.8, 0.6]]
    bank = jnp.asarray([[0, 1], [0.6, 0.8], [-1, 0]], jnp.float32)

    def local(seen, other):
        pair = (embedding(cells=[c], seen=[s]) for c, s in ((cells, seen), (others, other)))
        return float(compl.cell_loss(*pair, bank, jnp.array([1]), 0.4)[0])

    assert compl.matches(jnp.asarray([seen]), jnp.asarray([other])).tolist() == [[1, 0]]
    each = [nce(cells[0], others[1], bank), nce(cells[1], others[0], bank)]
    assert each == pytest.approx([0.1366652, 0.7081330], abs=1e-6)
    assert local(seen, other) == pytest.approx(0.4223991, abs=1e-6)
    assert 0.3 * nce() + 0.7 * local(seen, other) == pytest.approx(0.3416328, abs=1e-6)
    # What a mistake would give: cells of the same place, and a match of the embeddings.
    assert local(seen, seen) == pytest.approx(0.6292154, abs=1e-6)
    assert local(cells, others) == pytest.approx(0.3308631, abs=1e-6)


def test_the_bank_has_as_many_terms_as_images():
    """Of equal logits each term has the same share: 1 / N, the own row left out and the key put in."""
    for rows in (1, 795):
        query, orthogonal = [[1.0, 0.0]], jnp.tile(jnp.array([[0.0, 1.0]]), (rows, 1))
        loss = info_nce(jnp.asarray(query), orthogonal[:1], orthogonal, jnp.array([0]), 0.4)
        assert float(loss[0]) == pytest.approx(math.log(rows), abs=1e-5)


@pytest.mark.parametrize(("rows", "level"), [(795, 6.68), (300, 5.70)])
def test_the_loss_starts_near_the_logarithm_of_the_number_of_images(rows, level):
    losses = info_nce(
        units(500, 128), units(500, 128, seed=1), units(rows, 128, seed=2), jnp.arange(500) % rows, 0.4
    )
    assert np.mean(losses) == pytest.approx(level, abs=0.06)


# Against the second formulation.


def test_contrast_of_images_by_hand():
    query, positive, bank, ids = units(5, 7), units(5, 7, seed=1), units(11, 7, seed=2), [10, 0, 3, 4, 6]
    found = info_nce(query, positive, bank, jnp.array(ids), 0.3)
    expected = [share(query[b], positive[b], bank, ids[b], 0.3) for b in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("at_a_time", [128, 5, 4])
def test_contrast_of_cells_by_hand(monkeypatch, at_a_time):
    """And its gradient by the query, whatever the number of cells that are done at a time."""
    monkeypatch.setattr(compl, "CELLS", at_a_time)
    images, cells, ids, bank = 3, 10, [4, 0, 8], units(9, 6, seed=5)
    query = embedding(cells=units(images, cells, 6), seen=units(images, cells, 5, seed=1))
    key = embedding(cells=units(images, cells, 6, seed=2), seen=units(images, cells, 5, seed=3))

    def loss(cells):
        return compl.cell_loss(query._replace(cells=cells), key, bank, jnp.array(ids), 0.4)

    found = jax.jit(loss)(query.cells)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(loss(x))))(query.cells)
    matched = compl.matches(query.seen, key.seen)
    for b in range(images):
        match = nearest(query.seen[b], key.seen[b])
        assert matched[b].tolist() == match and match != list(range(cells)) and len(set(match)) < cells
        terms = [share(query.cells[b, p], key.cells[b, match[p]], bank, ids[b], 0.4) for p in range(cells)]
        assert float(found[b]) == pytest.approx(np.mean(terms), rel=1e-5)
        moved, direction = np.array(query.cells, np.float64), np.ones(6) / 6
        moved[b, 2] += 1e-5 * direction
        change = share(moved[b, 2], key.cells[b, match[2]], bank, ids[b], 0.4) - terms[2]
        assert float(slope[b, 2] @ direction) == pytest.approx(change / 1e-5 / cells, rel=1e-3, abs=1e-5)


def test_only_the_own_row_has_no_say():
    query, positive, bank, ids = units(2, 7), units(2, 7, seed=1), units(5, 7, seed=2), jnp.array([1, 4])
    before = info_nce(query, positive, bank, ids, 0.4)
    for row in range(5):
        other = bank.copy()
        other[row] = -other[row]
        after = info_nce(query, positive, other, ids, 0.4)
        assert (after != before).tolist() == [row != 1, row != 4]


@pytest.mark.parametrize("size", [(107, 140, 8), (5, 3, 8), (32, 32, 32), (31, 21, 32), (9, 11, 1)])
def test_averages_of_cells_are_torchs(size):
    torch = pytest.importorskip("torch", reason="install the extra `parity` (see setup.py)")
    *shape, grid = size
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    pool = torch.nn.AdaptiveAvgPool2d(grid)
    expected = pool(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(compl.adaptive_average(jnp.asarray(x), grid), expected, atol=1e-6)


def test_the_heads_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 5, 7, 6)).astype(np.float32)

    def parameters(module):
        made = module.init(jax.random.key(0), x)["params"]
        return made, jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), made)

    def linear(x, p):
        return x @ p["dense"]["kernel"] + p["dense"]["bias"]

    def project(x, p, name):
        return linear(np.maximum(linear(x, p[f"{name}1"]), 0), p[f"{name}2"])

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    turned = compl.RotationHead()
    made, p = parameters(turned)
    np.testing.assert_allclose(
        turned.apply({"params": made}, x), linear(x.mean((1, 2)), p["linear"]), atol=1e-5
    )
    module = compl.ContrastHead(4, 2)
    made, p = parameters(module)
    found = module.apply({"params": made}, x)
    # Of 5 rows the first 3 and the last 3, of 7 columns the first 4 and the last 4.
    seen = np.stack([x[:, r : r + 3, c : c + 4].mean((1, 2)) for r in (0, 2) for c in (0, 3)], 1)
    cells = project(seen, p, "cells")
    expected = [project(x.mean((1, 2)), p, "image"), cells, cells.mean(1), seen]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, unit(theirs), atol=1e-5)
    alone, p = parameters(compl.ContrastHead(4))
    assert set(p) == {"image1", "image2"} and compl.ContrastHead(4).apply({"params": alone}, x).cells is None


def test_the_papers_heads_have_this_many_parameters_and_start_as_torchs():
    x = jnp.zeros((1, 2, 2, 256))
    sizes = {}
    heads = {
        "rotation": compl.RotationHead(),
        "moco": compl.ContrastHead(128),
        "densecl": compl.ContrastHead(128, 2),
    }
    for name, module in heads.items():
        leaves = jax.tree.leaves(module.init(jax.random.key(0), x)["params"])
        sizes[name] = sum(leaf.size for leaf in leaves)
        for leaf in leaves:
            assert np.abs(leaf).max() <= 1 / 16 and (leaf.size < 100 or np.abs(leaf).max() > 0.9 / 16)
            assert leaf.size < 100 or np.std(leaf) == pytest.approx(1 / 16 / 3**0.5, rel=0.15)
    projection = 256 * 256 + 256 + 256 * 128 + 128
    assert sizes == {"rotation": 256 * 4 + 4, "moco": projection, "densecl": 2 * projection}


# The whole step.


def views_of(method, batch):
    """The two windows of each image that the step of `taken` sees."""
    keys = jax.random.split(jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 3)[0], 3)
    options = {"window": method.window, "shift": method.shift, "size": batch["image"].shape[1:3]}
    views = jax.jit(jax.vmap(functools.partial(two_views.contrast_views, **options)))
    return views(keys, batch["streams"]["auxiliary"]["image"])


def network(params):
    return {"model": params["model"], "head": params["method"]["head"]}


@functools.partial(jax.jit, static_argnums=1)
def embed(net, head, image):
    features = Net(TASKS).apply({"params": net["model"]}, image, None, True, method="features")
    return head.apply({"params": net["head"]}, features)


def test_a_step_by_hand(partial):
    """After many steps, when the key network and the trained one differ; one image of the batch is none."""
    method, step = taken()
    batch = make_batch(partial, ids := (3, -1, 0))
    params, state = start(method, batch)
    kept = state["method"]
    kept["key"] = jax.tree.map(lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size).reshape(x.shape)), kept["key"])
    value, _, metrics, new, gradient, into_kept = step(params, state, batch, 5)

    def follows(found, old, now):
        np.testing.assert_allclose(found - old, 0.001 * (now - old), rtol=1e-2, atol=1e-7)

    jax.tree.map(follows, new["method"]["key"], kept["key"], network(params))
    head = compl.ContrastHead(4, 3)
    first, second = views_of(method, batch)
    query, key = embed(network(params), head, first), embed(new["method"]["key"], head, second)
    there = [0, 2]
    wide = [share(query.image[b], key.image[b], kept["bank"], ids[b], 0.4) for b in there]
    local = []
    for b in there:
        match = nearest(query.seen[b], key.seen[b])
        pairs = zip(query.cells[b], key.cells[b][np.array(match)], strict=True)
        local += [share(*pair, kept["local_bank"], ids[b], 0.4) for pair in pairs]
    expected = 0.3 * np.mean(wide) + 0.7 * np.mean(local)
    assert metrics["all/contrast_global"] == pytest.approx(np.mean(wide), rel=1e-4)
    assert metrics["all/contrast_local"] == pytest.approx(np.mean(local), rel=1e-4)
    assert metrics["all/auxiliary"] == pytest.approx(expected, rel=1e-4)
    assert value == pytest.approx(0.2 * expected, rel=1e-4)

    # The banks: the rows of the images that are there, and no other; each bank its own.
    for name, rows in (("bank", key.image), ("local_bank", key.pooled)):
        after, before = np.asarray(new["method"][name]), np.asarray(kept[name])
        assert np.flatnonzero(np.any(after != before, -1)).tolist() == [0, 3]
        np.testing.assert_allclose(after[[3, 0]], rows[np.array(there)], atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(after, axis=-1), 1, atol=1e-5)
    assert np.abs(key.image - key.pooled).max() > 0.1 and np.any(kept["bank"] != kept["local_bank"])

    # Whom it trains: what is shared and its own head; no task's head, no key network, no bank.
    assert all(jnp.any(g != 0) for g in jax.tree.leaves([gradient["model"]["trunk"], gradient["method"]]))
    heads = [gradient["model"][owned("head", name)] for name in TASKS]
    assert all(jnp.all(g == 0) for g in jax.tree.leaves([heads, into_kept]))
    assert set(params["method"]) == {"head"}


def test_the_key_network_follows_from_the_second_step_on(batch):
    """Even if the weights were changed before the first, as pretrained ones are."""
    method, step = taken()
    params, state = start(method, batch)
    first = jax.tree.map(lambda x: x + 1.5, params)
    state = step(first, state, batch, 0)[3]
    jax.tree.map(np.testing.assert_array_equal, state["method"]["key"], network(first))
    state = step(jax.tree.map(lambda x: x - 0.25, first), state, batch, 1)[3]
    jax.tree.map(
        lambda key, x: np.testing.assert_allclose(key, 0.999 * x + 0.001 * (x - 0.25), rtol=1e-6),
        state["method"]["key"],
        network(first),
    )


def test_no_auxiliary_image_is_no_loss_and_no_row(partial):
    method, step = taken()
    batch = make_batch(partial, (-1, -1, -1))
    params, state = start(method, batch)
    value, _, _, new, gradient, _ = step(params, state, batch)
    assert value == 0 and all(jnp.all(g == 0) for g in jax.tree.leaves(gradient))
    for name in ("bank", "local_bank"):
        np.testing.assert_array_equal(new["method"][name], state["method"][name])


def test_the_examples_losses_do_not_depend_on_the_auxiliary_images(partial, batch):
    """Those of Supervised; what the shared features learn does depend."""
    method, step = taken()
    params, state = start(method, batch)
    first = step(params, state, batch)
    second = step(params, state, {**batch, "streams": make_batch(partial, seed=40)["streams"]})
    assert first[1] == second[1] and set(first[1]) == set(TASKS)
    assert first[0] != second[0]
    assert jnp.any(first[4]["model"]["trunk"]["kernel"] != second[4]["model"]["trunk"]["kernel"])
    plain, _, _ = supervised.build(Net(TASKS), TASKS).losses(params, state, batch, jax.random.key(0), 0)
    assert {n: float(v) for n, v in plain.items()} == pytest.approx(
        {n: float(v) for n, v in first[1].items()}, rel=1e-6
    )


def test_equal_views_of_equal_networks_are_equal_and_others_not(batch):
    method, step = taken("moco", shift=0)
    params, state = start(method, batch)
    head = compl.ContrastHead(4)
    first, second = views_of(method, batch)
    np.testing.assert_array_equal(first, second)
    query = embed(network(params), head, first).image
    bank, ids = step(params, state, batch)[3]["method"]["bank"], jnp.array([3, 7, 0])
    np.testing.assert_allclose(np.sum(query * bank[ids], -1), 1, atol=1e-5)
    query, key = (embed(network(params), head, view).image for view in views_of(make("moco"), batch))
    there, back = info_nce(query, key, bank, ids, 0.4), info_nce(key, query, bank, ids, 0.4)
    assert np.abs(there - back).max() > 1e-3


def test_turned_images_by_hand(partial):
    method, step = taken("rotation", window=(50, 50))  # windows have no say
    batch = make_batch(partial, (3, -1, 0))
    params, state = start(method, batch)
    value, _, metrics, new, gradient, _ = step(params, state, batch)
    assert new == state == {"model": {}, "method": {}}
    place, _ = jax.random.split(jax.random.fold_in(jax.random.key(0), 1))
    images = jnp.asarray(batch["streams"]["auxiliary"]["image"])
    turned = jax.vmap(lambda key, image: two_views.rotation_view(key, image, 4))  # the crops are 4x6
    views, quarters = turned(jax.random.split(place, 3), images)
    logits = np.float64(embed(network(params), compl.RotationHead(), views))
    quarters = quarters.tolist()
    losses = [math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(logits, quarters, strict=True)]
    right = [float(row.argmax() == k) for row, k in zip(logits, quarters, strict=True)]
    assert metrics["all/rotation_accuracy"] == pytest.approx((right[0] + right[2]) / 2)
    assert metrics["all/auxiliary"] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-4)
    assert value == pytest.approx(0.05 * (losses[0] + losses[2]) / 2, rel=1e-4)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves([gradient["model"]["trunk"], gradient["method"]]))


# Whole runs.


def training(method, batch):
    """The first train state of a method, and its step."""
    config = configs.default()
    config.optimizer.learning_rate = 0.1
    state = jax.jit(lambda key: train.init_state(method, config, key, batch))(jax.random.key(3))
    return state, jax.jit(train.make_step(method, config))


@pytest.fixture(scope="module")
def without(partial):
    """The states and metrics of two steps of training without an auxiliary task."""
    batches = [make_batch(partial, seed=seed) for seed in (0, 10)]
    state, step = training(supervised.build(Net(TASKS), TASKS), batches[0])
    return list(
        itertools.accumulate(batches, lambda before, batch: step(before[0], batch), initial=(state, {}))
    )


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("auxiliary", compl.WEIGHTS)
def test_weight_0_is_supervised_training_bit_for_bit(partial, without, tmp_path, auxiliary):
    """The network and its state; and what is beside them goes through a checkpoint unchanged."""
    batches = [make_batch(partial, seed=seed) for seed in (0, 10)]
    begun, step = training(make(auxiliary, weight=0.0), batches[0])
    first, first_metrics = step(begun, batches[0])
    last, last_metrics = step(first, batches[1])
    states, metrics = zip(*without, strict=True)
    for ours, theirs in zip((begun, first, last), states, strict=True):
        same_bits(ours.deployed(), theirs.deployed())
    for ours, theirs in zip((first_metrics, last_metrics), metrics[1:], strict=True):
        assert {k: float(ours[k]) for k in theirs} == {k: float(v) for k, v in theirs.items()}
    assert jnp.any(last.params["model"]["trunk"]["kernel"] != begun.params["model"]["trunk"]["kernel"])

    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(1, *first.split())
    checkpoints.wait()
    (device,) = first.step.devices()
    shapes = abstract(first, jax.sharding.SingleDeviceSharding(device))
    again = train.TrainState.join(*checkpoints.restore(1, *shapes.split()))
    checkpoints.close()
    same_bits(again, first)
    same_bits(step(again, batches[1])[0], last)


def test_pretraining_is_a_weight_of_0_for_every_task(batch):
    method = make("rotation", weights=dict.fromkeys(TASKS, 0.0))
    params, state = start(method, batch)
    loss, (metrics, _) = method.loss(params, state, batch, jax.random.key(0), jnp.zeros((), jnp.int32))
    assert loss == pytest.approx(0.05 * float(metrics["all/auxiliary"])) and metrics["depth/loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("auxiliary", compl.WEIGHTS)
def test_a_run_of_deeplab_resumes_bit_for_bit(tmp_path, monkeypatch, auxiliary):
    """From scenes to checkpoints: the images of the stream, their rows, and what has followed since."""
    monkeypatch.setattr(two_views, "changed", REAL)
    c = configs.default()
    c.data.options = {
        "size": (32, 48), "train_examples": 10, "test_examples": 4, "data_dir": str(tmp_path / "scenes")
    }  # fmt: skip
    c.data.size = (32, 48)
    c.data.batch_size = c.data.eval_batch_size = 4
    c.tasks = {"depth": {}}
    c.model = {"name": "deeplab", "depth": 26, "width": 0.125, "decoder_width": 16, "norm": "group"}
    c.method = {
        "name": "compl", "auxiliary": auxiliary, "canvas": (40, 60), "window": (30, 45), "shift": 2, "grid": 3
    }  # fmt: skip
    c.train.update(steps=4, log_every=1, eval_every=4, checkpoint_every=2)
    c.figures.examples = 0
    c.lock()
    workdir = tmp_path / "run"
    main.run(c, str(workdir))
    whole = kept(workdir, 4)
    if auxiliary != "rotation":
        assert whole["method"]["state"]["bank"].shape == (10, 128)
    shutil.rmtree(workdir / "checkpoints" / "latest" / "4")
    (workdir / "eval.json").unlink()
    main.run(c, str(workdir))
    same_bits(kept(workdir, 4), whole)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [x["train/all/auxiliary"] for x in lines if "train/all/auxiliary" in x]
    assert np.isfinite(losses).all() and losses[-1] > 0.5


def kept(workdir, step):
    """All that a run's checkpoint holds beside the network, and the network."""
    trained = experiment.load(str(workdir))
    with ocp.StandardCheckpointer() as reader:
        rest = reader.restore(workdir / "checkpoints" / "latest" / str(step) / "train")
    return {**rest, "model": trained.variables}


def test_its_own_parameters_are_auxiliary_and_streams_are_those_of_the_canvas(batch):
    method = make(same_images=True, images=0)
    (stream,) = method.streams.values()
    assert stream.size == CANVAS and stream.labelled and not make().streams["auxiliary"].labelled
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), batch))
    assert set(jax.tree.leaves(method.groups(shapes["params"])["method"])) == {"auxiliary"}
    kept = shapes["state"]["method"]
    assert kept["bank"].shape == (3, 4)  # as many as the batch has, since nothing else is known
    known = method.with_streams({"auxiliary": 20})
    shapes = jax.eval_shape(lambda: known.init(jax.random.key(0), batch))
    assert shapes["state"]["method"]["local_bank"].shape == (20, 4)
    assert jax.tree.structure(kept["key"]["model"]) == jax.tree.structure(shapes["params"]["model"])
    moco = jax.eval_shape(lambda: make("moco").init(jax.random.key(0), batch))["state"]["method"]
    assert set(moco) == {"key", "bank"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"auxiliary": "simclr"}, "method.auxiliary is 'simclr': choose one of rotation, moco, densecl"),
        ({"weight": -1}, "method.weight is -1: give 0 or"),
        ({"canvas": 512}, "method.canvas is 512: give height and width"),
        ({"window": (5, 0)}, r"method.window is \(5, 0\): give height and width"),
        ({"window": (8, 9)}, r"window \(8, 9\) and its shift by 2 do not fit into the canvas \(10, 12\)"),
        ({"shift": -1}, "method.shift is -1"),
        ({"grid": 0}, "method.grid is 0: give at least 1"),
        ({"width": 0}, "method.width is 0: give at least 1"),
        ({"temperature": 0.0}, "method.temperature is 0.0: give a positive number"),
        ({"momentum": 1.1}, "method.momentum is 1.1: give a share"),
        ({"local_weight": -0.1}, "method.local_weight is -0.1: give a share"),
        ({"average": "mean"}, "method.average is 'mean'"),
        ({"weights": {"edges": 1.0}}, "weights names 'edges'"),
        ({"tasks": {"kind": classification.build("kind", 3)}}, "task 'kind' is not dense"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ({"norm": True}, "batch statistics: set config.model.norm to 'group'"),
        ({"marked": "maps"}, "set config.model.decoder to 'shared'"),
    ],
)
def test_models_that_do_not_suit_are_refused(batch, net, message):
    method = compl.build(Net(TASKS, **net), TASKS, **OPTIONS)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: method.init(jax.random.key(0), batch))

"""Contrast across tasks: who is alike, what is mined, what it costs, and whom it trains."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.methods import ccr, supervised
from mtl_jax.methods.maps import encoded
from mtl_jax.models.naming import owned
from mtl_jax.models.prediction import Prediction
from mtl_jax.tasks import depth, edges, normals, semseg

MARGIN = 0.2
TASKS = {
    "semseg": semseg.build("semseg", 5),
    "depth": depth.build("depth"),
    "normals": normals.build("normals"),
    "edges": edges.build("edges"),
}
UNKNOWN = {"semseg": 255, "depth": 0.0, "normals": 0.0, "edges": 255.0}


@pytest.fixture
def make(partial):
    def make(tasks=partial.TASKS, **options):
        return ccr.build(partial.Pixels(tasks), tasks, **options)

    return make


def circle(degrees):
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], -1).astype(np.float32)


# The second formulation: every pixel on its own, in float64.


def label_distance(name, a, b):
    if name == "normals":
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return float(np.arccos(np.clip(cosine, -1, 1)))
    return float(abs(a[0] - b[0]))


def sets(name, label, known, anchor, k):
    """The positives and negatives of an anchor, as sorted lists of pixels."""
    others = [p for p in range(len(label)) if known[p] and p != anchor]
    far = {p: label_distance(name, label[anchor], label[p]) for p in others}
    if name in ("semseg", "edges"):
        return [p for p in others if far[p] == 0], [p for p in others if far[p] > 0]
    count = min(k, (int(sum(known)) - 1) // 2)
    positive = sorted(others, key=lambda p: (far[p], p))[:count]
    rest = [p for p in others if p not in positive]
    return sorted(positive), sorted(sorted(rest, key=lambda p: (-far[p], p))[:count])


def anchor_loss(features, anchor, positive, negative, count, margin=MARGIN):
    """(loss, hardest positive or None, semi-hard negatives) of one anchor."""
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    distance = np.linalg.norm(unit - unit[anchor], axis=-1)
    if not positive:
        return 0.0, None, []
    hardest = max(positive, key=lambda p: (distance[p], -p))
    beyond = sorted((p for p in negative if distance[p] > distance[hardest]), key=lambda p: (distance[p], p))
    chosen = beyond[:count]
    hinges = [max(0.0, distance[hardest] - distance[n] + margin) for n in chosen]
    return (float(np.mean(hinges)) if hinges else 0.0), hardest, chosen


def random_label(name, shape, rng):
    if name == "semseg":
        return rng.integers(0, 3, (*shape, 1)).astype(np.int32)
    if name == "edges":
        return rng.integers(0, 2, (*shape, 1)).astype(np.float32)
    if name == "depth":
        return rng.integers(2, 9, (*shape, 1)).astype(np.float32) / 2  # few values: many are equally far
    return rng.normal(size=(*shape, 3)).astype(np.float32)


def one_image(task, features, label, known, anchors, monkeypatch, **options):
    """(eq. 1, the triplets) for one image and these anchors, the features being what is compared."""
    anchors = jnp.asarray(anchors)
    monkeypatch.setattr(ccr, "draw_anchors", lambda rng, known, count: (anchors, known[anchors]))
    method = ccr.build(None, TASKS, margin=MARGIN, **options)
    known, label = np.asarray(known, bool), np.asarray(label)
    label = encoded(task, jnp.asarray(label)[None], jnp.asarray(known, jnp.float32)[None, :, None])[0]
    features = ccr.unit(jnp.asarray(features, jnp.float32))
    triplets = method.select(task, features, label, jnp.asarray(known), jax.random.key(0))
    return float(ccr.triplet_loss(features, triplets, MARGIN)["contrast"]), triplets


# By value.


def test_semi_hard_negatives_by_value(monkeypatch):
    labels = np.array([0, 0, 0, 1, 1, 255])[:, None]
    run = functools.partial(one_image, TASKS["semseg"], monkeypatch=monkeypatch, anchors=[0])
    loss, triplets = run(circle([0, 10, 60, 20, 66, 62]), labels, labels[:, 0] < 255)
    chord = 2 * np.sin(np.radians([30, 33]))
    assert loss == pytest.approx(chord[0] - chord[1] + MARGIN, abs=1e-6) == pytest.approx(0.110722, abs=1e-6)
    assert triplets.positive.tolist() == [2]
    # Not the hardest negative, at 20 degrees: the first one beyond the positive.
    assert triplets.negative[0][triplets.usable[0]].tolist() == [4]
    assert run(circle([0, 10, 60, 20, 90, 62]), labels, labels[:, 0] < 255)[0] == 0
    without = np.array([0, 0, 0, 1, 1, 1])[:, None]
    loss, triplets = run(circle([0, 10, 90, 20, 30, 40]), without, np.ones(6))
    assert loss == 0 and not triplets.usable.any()


def test_nearest_and_farthest_quantities_by_value(monkeypatch):
    label = np.array([1.0, 1.1, 1.5, 3.0, 5.0, 0.0, 9.0, 2.0])[:, None]
    features = circle([0, 8, 25, 40, 28, 26, 90, 12])
    run = functools.partial(
        one_image, TASKS["depth"], features, label, label[:, 0] > 0, [0], monkeypatch=monkeypatch
    )
    loss, triplets = run(k=2)
    assert loss == pytest.approx(0.074518, abs=1e-6)
    assert triplets.positive.tolist() == [2] and triplets.negative[0, :2].tolist() == [4, 6]
    assert run(k=4)[0] == pytest.approx(0.049678, abs=1e-6)  # of the six others three are near, three far


@pytest.mark.parametrize(
    ("name", "label", "count", "expected"),
    [
        ("semseg", lambda p: [p % 4], 4, 0.046240),
        ("semseg", lambda p: [p % 4], 16, 0.046100),
        ("depth", lambda p: [1 + 0.5 * (11 * p % 16)], 4, 0.045978),
        ("depth", lambda p: [0 if p in (3, 5, 8) else 1 + 0.5 * (11 * p % 16)], 4, 0.007190),
        ("normals", lambda p: [np.sin(np.radians(10 * p)), 0, np.cos(np.radians(10 * p))], 4, 0.111756),
    ],
)
def test_loss_of_an_image_by_value(name, label, count, expected, monkeypatch):
    pixels = range(16)
    features = (1 + np.arange(16))[:, None] * circle([180 * (37 * p % 101) / 101 for p in pixels])
    label = np.array([label(p) for p in pixels], np.int32 if name == "semseg" else np.float32)
    known = np.any(label != UNKNOWN[name], -1)
    loss, _ = one_image(
        TASKS[name], features, label, known, [0, 5, 10, 15], monkeypatch, k=4, negatives=count
    )
    assert loss == pytest.approx(expected, abs=1e-6)


# Against the second formulation.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", TASKS)
def test_all_pixels_by_hand(name, seed, monkeypatch):
    """Every pixel an anchor; among them are unknown ones, ties of labels, and a class of one pixel."""
    rng = np.random.default_rng(seed)
    label, known = random_label(name, (24,), rng), rng.uniform(size=24) < 0.8
    if name == "semseg":
        label[7], known[7] = 4, True
    label[~known] = UNKNOWN[name]
    features = rng.normal(size=(24, 3))
    k, count = (5, 30)[seed % 2], (4, 30)[seed % 2]
    loss, found = one_image(
        TASKS[name], features, label, known, np.arange(24), monkeypatch, k=k, negatives=count
    )
    total = []
    for anchor in np.flatnonzero(known):
        positive, negative = sets(name, label.astype(np.float64), known, anchor, k)
        both = ccr.alike(
            TASKS[name],
            encoded(TASKS[name], jnp.asarray(label)[None], jnp.asarray(known, jnp.float32)[None, :, None])[0],
            jnp.asarray(known),
            anchor,
            k,
        )
        assert [np.flatnonzero(x).tolist() for x in both] == [positive, negative]
        value, hardest, chosen = anchor_loss(features, anchor, positive, negative, count)
        usable = np.asarray(found.usable[anchor])
        assert found.negative[anchor][usable].tolist() == chosen
        if chosen:
            assert found.positive[anchor] == hardest
        total.append(value)
    assert 0 < sum(v > 0 for v in total) < 24
    assert loss == pytest.approx(np.mean(total), abs=1e-5) and 0 <= loss < MARGIN
    assert np.asarray(found.known).tolist() == known.tolist()


def test_uniform_triplets_are_of_the_two_sets_and_evenly_spread(monkeypatch):
    label = np.array([0, 0, 0, 0, 1, 1, 2, 255])[:, None]
    known = label[:, 0] < 255
    encoded_label = encoded(TASKS["semseg"], jnp.asarray(label)[None], jnp.asarray(known)[None, :, None])[0]
    positive, negative = ccr.alike(TASKS["semseg"], encoded_label, jnp.asarray(known), 0, 4)
    one, other, usable = jax.vmap(lambda key: ccr.draw(key, positive, negative))(
        jax.random.split(jax.random.key(0), 3000)
    )
    assert usable.all() and other.shape == (3000, 1)
    np.testing.assert_allclose(np.bincount(one, minlength=8) / 1000, [0, 1, 1, 1, 0, 0, 0, 0], atol=0.1)
    np.testing.assert_allclose(
        np.bincount(other[:, 0], minlength=8) / 1000, [0, 0, 0, 0, 1, 1, 1, 0], atol=0.1
    )
    alone = jnp.zeros(8, bool)
    assert (
        not ccr.draw(jax.random.key(0), alone, negative)[2]
        and not ccr.draw(jax.random.key(0), positive, alone)[2]
    )


def test_anchors_are_known_pixels_without_replacement():
    known = jnp.arange(40) % 4 > 0
    draws = jax.vmap(lambda key: ccr.draw_anchors(key, known, 10))(jax.random.split(jax.random.key(1), 900))
    anchors, exist = (np.asarray(x) for x in draws)
    assert exist.all() and all(len(set(row)) == 10 for row in anchors.tolist())
    np.testing.assert_allclose(np.bincount(anchors.reshape(-1), minlength=40) / 300, known, atol=0.2)
    few, exist = ccr.draw_anchors(jax.random.key(0), known & (jnp.arange(40) < 8), 10)
    assert np.sum(exist) == 6 and bool(known[few[:6]].all())


def test_labels_are_sampled_at_the_corner_of_each_cell():
    assert ccr.downsampled(jnp.arange(8.0).reshape(1, 8, 1, 1), (2, 1)).ravel().tolist() == [0, 4]
    odd = jnp.arange(35).reshape(1, 5, 7, 1)
    expected = [[7 * (i * 5 // 3) + j * 7 // 4 for j in range(4)] for i in range(3)]
    assert ccr.downsampled(odd, (3, 4))[0, ..., 0].tolist() == expected


# What has no say.


def contrast(method, features, batch, seed=0):
    """(sum over the targets, metrics) for a method without projectors."""
    run = jax.jit(lambda f, b, key: method.regularise({}, {}, f, b, key)[:2])
    return run(features, batch, jax.random.key(seed))


def features_like(batch, tasks, seed=3, width=6):
    rng = np.random.default_rng(seed)
    shape = (*batch["image"].shape[:3], width)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name in tasks}


PLAIN = {"sharing": "identity", "pairs": "all", "gamma": 0.5, "k": 4}


def test_unknown_pixels_have_no_influence(make, partial):
    """Neither their labels nor their features."""
    method = make(**PLAIN)
    batch = partial.make_batch([[1, 1, 1]] * 2)
    everywhere = {name: np.copy(batch["valid"]["depth"]) for name in partial.TASKS}
    batch["valid"] = everywhere
    features = features_like(batch, partial.TASKS)
    expected, metrics = contrast(method, features, batch)
    assert expected > 0 and all(metrics[f"{name}/contrast"] > 0 for name in partial.TASKS)
    moved = {n: jnp.where(everywhere["depth"] > 0, f, 1e6 * f[:, ::-1]) for n, f in features.items()}
    assert contrast(method, moved, partial.spoilt(batch))[0] == expected


@pytest.mark.parametrize("mining", ccr.MINING)
def test_without_any_pair_the_loss_and_its_gradient_are_zero(make, partial, mining):
    """No label at all; one class alone and one known pixel of the rest; all features equal."""
    method = make(**PLAIN, mining=mining)
    batch = partial.make_batch([[1, 1, 1]] * 2)
    run = jax.value_and_grad(lambda f, b: contrast(method, f, b)[0])
    none = {name: np.zeros_like(valid) for name, valid in batch["valid"].items()}
    one = {name: np.zeros_like(valid) for name, valid in batch["valid"].items()}
    for name in one:
        one[name][:, 0, 0] = 1
    one["semseg"][:] = 1
    same = {**batch["labels"], "semseg": np.full_like(batch["labels"]["semseg"], 2)}
    features = features_like(batch, partial.TASKS)
    for case in ({**batch, "valid": none}, {**batch, "labels": same, "valid": one}):
        loss, gradient = run(features, partial.spoilt(case))
        assert loss == 0 and all(np.all(g == 0) for g in gradient.values())
    equal = {name: jnp.ones_like(f) for name, f in features.items()}
    loss, gradient = run(equal, batch)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradient.values())
    assert (loss == 0) == (mining == "semihard")


def test_a_target_never_reads_its_own_labels(make, partial):
    batch = partial.make_batch([[1, 1, 1]] * 2)
    features = features_like(batch, partial.TASKS)
    for pairs in ccr.PAIRS:
        method = make(**PLAIN | {"pairs": pairs})
        _, before = contrast(method, features, batch)
        other = {**batch, "labels": {**batch["labels"], "depth": batch["labels"]["depth"][::-1] ** 2}}
        _, after = contrast(method, features, other)
        assert after["depth/contrast"] == before["depth/contrast"] > 0
        if pairs == "all":
            assert all(after[f"{n}/contrast"] != before[f"{n}/contrast"] for n in ("semseg", "normals"))


def test_only_the_order_of_labels_counts(make, partial):
    """Depth in another unit, normals in another frame, classes by other numbers: the same loss."""
    method = make(**PLAIN)
    batch = partial.make_batch([[1, 1, 1]] * 2)
    features = features_like(batch, partial.TASKS)
    expected, _ = contrast(method, features, batch)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    labels = {
        "depth": 4 * batch["labels"]["depth"] + 1,
        "normals": (batch["labels"]["normals"] @ turn).astype(np.float32),
        "semseg": (batch["labels"]["semseg"] + 1) % 3,
    }
    other, _ = contrast(method, features, {**batch, "labels": labels})
    assert float(other) == pytest.approx(float(expected), abs=1e-6)
    longer = {n: f * (1 + jnp.arange(6.0))[None, None, :, None] for n, f in features.items()}
    assert float(contrast(method, longer, batch)[0]) == pytest.approx(float(expected), abs=1e-6)


def two(partial):
    return {name: partial.TASKS[name] for name in ("semseg", "depth")}


def test_images_are_mined_one_by_one(make, partial):
    tasks = two(partial)
    method = make(tasks, **PLAIN | {"gamma": 1.0})  # every known pixel is an anchor, whatever is drawn
    batch = partial.make_batch([[1, 1]] * 2, tasks)
    features = features_like(batch, tasks)
    parts = []
    for index in range(2):
        cut = functools.partial(jax.tree.map, lambda x, i=index: x[i : i + 1])
        parts.append(contrast(method, cut(features), cut(batch))[0])
    assert float(contrast(method, features, batch)[0]) == pytest.approx(np.mean(parts), abs=1e-6)


@pytest.mark.parametrize("mining", ccr.MINING)
def test_blocks_change_nothing(make, partial, mining):
    tasks = two(partial)
    batch = partial.make_batch([[1, 1]] * 2, tasks)
    features = features_like(batch, tasks)
    methods = [make(tasks, **PLAIN, mining=mining, block=block) for block in (1, 7, None)]
    values = [contrast(method, features, batch)[0] for method in methods]
    assert values[0] > 0
    np.testing.assert_allclose(values, values[0], atol=1e-6)


# Projectors: whose they are, and whom the loss trains.


@pytest.mark.parametrize(
    ("sharing", "names"),
    [
        ("none", {f"{t}_by_{s}" for t, s in itertools.permutations(["depth", "normals", "semseg"], 2)}),
        ("t_shared", {"depth", "normals", "semseg"}),
        ("s_shared", {"depth", "normals", "semseg"}),
        ("both", {"all"}),
        ("identity", set()),
    ],
)
def test_projectors_of_each_way_to_share(make, partial, sharing, names):
    method = make(sharing=sharing, width=4)
    shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), partial.make_batch([[1, 1, 1]])))
    projectors = shapes["params"]["method"]["projectors"]
    assert set(projectors) == names == set(shapes["state"]["method"]["projectors"])
    for projector in projectors.values():  # of 5 features: 5x5 + 5, 5x4 + 4, and a scale and shift of 4
        assert sum(leaf.size for leaf in jax.tree.leaves(projector)) == 30 + 24 + 8


def test_the_papers_projector_has_33_280_parameters():
    made = jax.eval_shape(
        lambda key: ccr.Projector(128).init(key, jnp.zeros((1, 2, 2, 128)), False), jax.random.key(0)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(made["params"])) == 33_280


def test_the_projector_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    module = ccr.Projector(3)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        module.init(jax.random.key(0), x, False),
    )
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    hidden = np.maximum(x @ p["conv1"]["kernel"][0, 0] + p["conv1"]["bias"], 0)
    y = hidden @ p["conv2"]["kernel"][0, 0] + p["conv2"]["bias"]
    y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5)
    (norm,) = p["norm"].values()
    y = y * norm["scale"] + norm["bias"]
    found, _ = module.apply(variables, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, y / np.linalg.norm(y, axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("sharing", ["none", "s_shared", "t_shared", "both"])
def test_one_source_is_drawn_and_its_projector_alone_changes(make, partial, sharing):
    """Drawn evenly over the steps and for each target on its own; never the target itself."""
    tasks = partial.TASKS
    method = make(sharing=sharing, width=4, gamma=0.3, k=3)
    batch = partial.make_batch([[1, 1, 1]] * 2)
    params, state = partial.variables_of(method, batch)
    projectors, statistics = params["method"]["projectors"], state["method"]["projectors"]
    features = features_like(batch, tasks, width=5)

    @jax.jit
    def step(key):
        def loss(p):
            total, _, new = method.regularise(p, statistics, features, batch, key)
            return total, new

        gradient, new = jax.grad(loss, has_aux=True)(projectors)
        moved = jax.tree.map(lambda a, b: jnp.any(a != b), statistics, new)
        moves = {n: jnp.any(jnp.stack(jax.tree.leaves(x))) for n, x in moved.items()}
        learns = {n: jnp.any(x["conv1"]["kernel"] != 0) for n, x in gradient.items()}
        return moves, learns

    steps = 120
    moves, learns = jax.vmap(step)(jax.random.split(jax.random.key(0), steps))
    moves, learns = ({n: np.asarray(x) for n, x in tree.items()} for tree in (moves, learns))
    for name in projectors:  # what was not drawn takes no gradient
        assert not np.any(learns[name] & ~moves[name])
        assert np.sum(learns[name]) > 0.8 * np.sum(moves[name])
    if sharing in ("s_shared", "both"):
        assert all(m.all() for m in moves.values())
    if sharing == "none":
        together = np.zeros((2, 2))
        for target in tasks:
            first, second = (moves[f"{target}_by_{s}"] for s in tasks if s != target)
            assert np.all(first != second) and 0.3 < first.mean() < 0.7
        for one, other in zip(moves["depth_by_normals"], moves["normals_by_depth"], strict=True):
            together[int(one), int(other)] += 1
        assert together.min() > steps / 10  # each target draws on its own


def test_all_pairs_are_the_sum_of_the_drawn_ones(make, partial):
    """With every known pixel an anchor the sum over targets and sources has no randomness left."""
    batch = partial.make_batch([[1, 1, 1]] * 2)
    features = features_like(batch, partial.TASKS)
    total, metrics = contrast(make(**PLAIN | {"gamma": 1.0}), features, batch)
    drawn = make(**PLAIN | {"gamma": 1.0, "pairs": "drawn"})
    values = jax.vmap(lambda key: drawn.regularise({}, {}, features, batch, key)[1])(
        jax.random.split(jax.random.key(0), 24)
    )
    for target in partial.TASKS:
        two = sorted(set(np.round(np.asarray(values[f"{target}/contrast"]), 5).tolist()))
        assert len(two) == 2
        assert sum(two) / 2 == pytest.approx(float(metrics[f"{target}/contrast"]), abs=2e-5)
    both = 2 * sum(float(metrics[f"{t}/contrast"]) for t in partial.TASKS)
    assert float(total) == pytest.approx(both, abs=1e-5)
    assert metrics["all/contrast"] == total


def test_the_weight_rises_over_the_first_steps(make, partial):
    tasks = two(partial)
    batch = partial.make_batch([[1, 1]] * 2, tasks)
    method = make(tasks, weight=3.0, ramp_steps=8, width=4, k=3, gamma=0.3)
    params, state = partial.variables_of(method, batch)
    run = jax.jit(lambda step: method.losses(params, state, batch, jax.random.key(0), step)[1:])
    shares = []
    for step in (0, 2, 8, 20):
        rest, (metrics, _) = run(step)
        shares.append(float(rest / metrics["all/contrast"]))
    assert shares == pytest.approx([0, 0.75, 3, 3])
    assert run._cache_size() == 1


def test_without_a_rise_the_weight_is_whole_from_the_first_step(make, partial):
    tasks = two(partial)
    batch = partial.make_batch([[1, 1]] * 2, tasks)
    method = make(tasks, weight=3.0, width=4, k=3, gamma=0.3)
    params, state = partial.variables_of(method, batch)
    _, rest, (metrics, _) = jax.jit(lambda: method.losses(params, state, batch, jax.random.key(0), 0))()
    assert float(rest) == pytest.approx(3 * float(metrics["all/contrast"])) and rest > 0


class Branches(nn.Module):
    """A layer that all tasks share, and two of each task's own, at half of the image's resolution."""

    tasks: dict
    dtype = jnp.float32

    @nn.compact
    def __call__(self, image, tasks, train):
        x = nn.tanh(nn.Dense(5, name="encoder")(image[:, ::2, ::2]))
        features = {t: nn.tanh(nn.Dense(4, name=owned("decoder", t))(x)) for t in tasks}
        heads = {t: nn.Dense(self.tasks[t].channels, name=owned("head", t)) for t in tasks}
        outputs = {t: jnp.repeat(jnp.repeat(heads[t](features[t]), 2, 1), 2, 2) for t in tasks}
        return Prediction(outputs, features, dict.fromkeys(tasks, x))


def test_a_targets_loss_trains_its_own_branch_and_what_all_share(partial):
    batch = partial.make_batch([[1, 1, 1]] * 4)
    method = ccr.build(Branches(partial.TASKS), partial.TASKS, width=4, gamma=0.6, k=2)
    params, state = partial.variables_of(method, batch)

    def of_depth(params):
        _, _, (metrics, _) = method.losses(params, state, batch, jax.random.key(0), 0)
        return metrics["depth/contrast"]

    gradient = jax.jit(jax.grad(of_depth))(params)

    def size(tree):
        return sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for part in ("encoder", "decoder@depth"):
        assert size(gradient["model"][part]) > 0, part
    for part in ("decoder@semseg", "decoder@normals", "head@semseg", "head@depth", "head@normals"):
        assert size(gradient["model"][part]) == 0, part
    projectors = gradient["method"]["projectors"]
    assert size(projectors["depth"]) > 0 == size(projectors["semseg"]) == size(projectors["normals"])


def test_gradients_reach_anchor_positive_and_negatives(monkeypatch):
    features = jnp.asarray(circle([0, 10, 60, 20, 66, 62]))
    triplets = ccr.Triplets(*map(jnp.array, ([0], [True], [2], [[4, 3]], [[True, False]])))
    gradient = jax.grad(lambda f: ccr.triplet_loss(f, triplets, MARGIN)["contrast"])(features)
    assert np.flatnonzero(np.any(gradient != 0, -1)).tolist() == [0, 2, 4]
    np.testing.assert_allclose(np.sum(gradient, 0), 0, atol=1e-6)


def test_the_network_is_the_same_with_and_without(partial):
    """Its parameters from the first on, its state, its program, and so the cost of a prediction."""
    tasks, model = partial.TASKS, Branches(partial.TASKS)
    batch = partial.make_batch([[1, 1, 1]] * 2)
    methods = (supervised.build(model, tasks), ccr.build(model, tasks, width=4, k=8))
    plain, regularised = (jax.jit(m.init)(jax.random.key(3), batch) for m in methods)
    for part in ("params", "state"):
        a, b = plain[part]["model"], regularised[part]["model"]
        assert jax.tree.structure(a) == jax.tree.structure(b)
        assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    predict = jax.jit(
        lambda params, state: (
            model.apply({"params": params, **state}, batch["image"], tuple(tasks), False).outputs
        )
    )
    lowered = [predict.lower(v["params"]["model"], v["state"]["model"]) for v in (plain, regularised)]
    assert lowered[0].as_text() == lowered[1].as_text()
    assert lowered[0].cost_analysis()["flops"] == lowered[1].cost_analysis()["flops"] > 0
    trained = methods[1].groups(regularised["params"])
    assert set(jax.tree.leaves(trained["method"])) == {"auxiliary"}


def test_wrong_options_are_named(make, partial):
    for options, message in (
        ({"sharing": "all"}, "sharing is 'all': choose one of none, t_shared"),
        ({"mining": "hard"}, "mining is 'hard'"),
        ({"pairs": "some"}, "pairs is 'some'"),
        ({"k": 0}, "k is 0: give at least 1"),
        ({"block": 0}, "block is 0"),
        ({"gamma": 0.0}, "gamma is 0.0: give the share"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"ramp_steps": -1}, "ramp_steps is -1"),
    ):
        with pytest.raises(UserError, match=message):
            make(**options)
    with pytest.raises(UserError, match="'ccr' needs at least 2 tasks, not depth alone"):
        make({"depth": partial.TASKS["depth"]})


def test_projectors_are_shared_by_features_of_one_width(partial, monkeypatch):
    method = ccr.build(partial.Pixels(partial.TASKS), partial.TASKS, sharing="both")
    forward = ccr.CCR.forward

    def wider(self, *args):
        prediction, state = forward(self, *args)
        features = {**prediction.features, "semseg": jnp.zeros((1, 4, 6, 9))}
        return prediction.replace(features=features), state

    monkeypatch.setattr(ccr.CCR, "forward", wider)
    with pytest.raises(
        UserError, match="task 'semseg' have 9 channels and others 5: choose s_shared or none"
    ):
        method.init(jax.random.key(0), partial.make_batch([[1, 1, 1]]))

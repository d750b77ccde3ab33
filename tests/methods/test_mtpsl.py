"""Pairwise mapping of partial labels: which pairs, and what each of them costs."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.methods import maps, mtpsl
from mtl_jax.methods import weighting as weightings

SOME = [[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]


class Mapping(nn.Module):
    """Stands for the mapping network: a layer per task, a scale per pair."""

    widths: dict

    def setup(self):
        self.layers = {name: nn.Dense(6, name=f"input@{name}") for name in self.widths}
        self.film = self.param("film", nn.initializers.ones, (6, 5))
        self.last = nn.Conv(5, (2, 2), (2, 2))

    def embed(self, x, task):
        return nn.tanh(self.layers[task](x))

    def encode(self, x, column):
        return nn.tanh(self.last(x)) * self.film[column][:, None, None]

    def __call__(self, maps, column):
        return {name: self.encode(self.embed(maps[name], name), column) for name in self.widths}


@pytest.fixture
def make(partial):
    def make(**options):
        widths = {name: task.channels for name, task in partial.TASKS.items()}
        options = {"average": "image", "mapping": Mapping(widths), "max_pairs": 2} | options
        model, weighting = partial.Pixels(partial.TASKS), weightings.make(partial.TASKS, None, "fixed")
        return mtpsl.MTPSL(model, partial.TASKS, weighting, **options)

    return make


def test_column_of_a_pair():
    pairs = maps.ordered_pairs(3)
    assert pairs == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    for tasks in (2, 5):
        for column, (s, t) in enumerate(maps.ordered_pairs(tasks)):
            assert column == s * (tasks - 1) + (t if t < s else t - 1)


@pytest.mark.parametrize("tasks", [2, 3, 4, 5])
def test_pairs_are_those_of_a_missing_and_a_given_label(tasks):
    known = np.array(list(itertools.product([False, True], repeat=tasks)))
    columns, present = mtpsl.present_pairs(jnp.asarray(known), tasks**2 // 4)
    for row, chosen, real in zip(known, columns, present, strict=True):
        found = [maps.ordered_pairs(tasks)[c] for c in np.asarray(chosen)[np.asarray(real)]]
        wanted = [(s, t) for s in range(tasks) for t in range(tasks) if not row[s] and row[t]]
        assert sorted(found) == wanted


def test_loss_of_a_pair_by_value():
    a, b, f = (jnp.array(x, jnp.float32).reshape(1, 1, 1, 2) for x in ((1, 0), (0, 1), (1, 1)))
    distance = maps.cosine_distance
    np.testing.assert_allclose(distance(a, b), 1, atol=1e-6)
    np.testing.assert_allclose(distance(a, f), 0.292893, atol=1e-6)
    np.testing.assert_allclose(distance(a, b) + 0.5 * (distance(a, f) + distance(b, f)), 1.292893, atol=1e-6)


@pytest.mark.parametrize("regulariser", [0.0, 0.5])
def test_sum_over_the_pairs_of_each_image(make, partial, regulariser):
    """Against a loop over images and pairs."""
    method = make(regulariser=regulariser)
    batch = partial.make_batch(SOME, views=method.views)
    params = partial.variables_of(method, batch)[0]["method"]["mapping"]
    view, key = batch["views"]["mapped"], jax.random.key(2)
    rng = np.random.default_rng(0)
    outputs = {
        n: jnp.asarray(rng.normal(size=(4, *partial.SIZE, t.channels)), jnp.float32)
        for n, t in partial.TASKS.items()
    }
    feature = jnp.asarray(rng.normal(size=(4, 2, 3, 5)), jnp.float32)
    got = method.pair_loss(params, outputs, feature, view, key)

    def apply(*args, name):
        return method.mapping.apply({"params": params}, *args, method=name)

    tasks = list(partial.TASKS.items())
    # Class maps are sampled; the same key gives the same sample.
    sampled = {n: maps.sampled(t, outputs[n], jax.random.fold_in(key, i)) for i, (n, t) in enumerate(tasks)}
    total = 0.0
    for x, given in enumerate(SOME):
        for s, t in itertools.permutations(range(3), 2):
            if given[s] or not given[t]:
                continue
            column = jnp.array([s * 2 + (t if t < s else t - 1)])
            mapped = []
            for k, values in ((s, sampled[tasks[s][0]][x : x + 1]), (t, None)):
                name, task = tasks[k]
                if values is None:
                    values = task.encode(view["labels"][name][x : x + 1]) * view["valid"][name][x : x + 1]
                if name == "depth":
                    values = values / jnp.abs(values).max()
                if name == "normals":
                    values = (values + 1) / 2
                mapped.append(apply(apply(values, name, name="embed"), column, name="encode"))
            a, b = (np.asarray(m[0], np.float64).reshape(-1, 5) for m in mapped)
            f = np.asarray(feature[x], np.float64).reshape(-1, 5)

            def cos(u, v):
                return np.mean((u * v).sum(1) / np.linalg.norm(u, axis=1) / np.linalg.norm(v, axis=1))

            total += 1 - cos(a, b) + regulariser * (2 - cos(a, f) - cos(b, f))
    np.testing.assert_allclose(got, total / 4, rtol=1e-5)


def test_the_encoders_feature_takes_no_gradient(make, partial):
    method = make()
    batch = partial.make_batch(SOME, views=method.views)
    params = partial.variables_of(method, batch)[0]["method"]["mapping"]
    outputs = {n: jnp.ones((4, *partial.SIZE, t.channels)) for n, t in partial.TASKS.items()}
    rng = np.random.default_rng(0)
    feature = jnp.asarray(rng.normal(size=(4, 2, 3, 5)), jnp.float32)

    def loss(p, f):
        return method.pair_loss(p, outputs, f, batch["views"]["mapped"], jax.random.key(0))

    to_params, to_feature = jax.grad(loss, (0, 1))(params, feature)
    assert (to_feature == 0).all() and jnp.abs(to_params["film"]).max() > 0
    # Scales of pairs that no image has: (0, 2) of the second image is (depth, semseg).
    present = {maps.ordered_pairs(3).index(p) for p in ((1, 0), (2, 0), (0, 1), (0, 2))}
    moved = {c for c in range(6) if jnp.abs(to_params["film"][c]).max() > 0}
    assert moved == present


def test_labels_that_are_not_given_have_no_influence(make, partial):
    method = make()
    batch = partial.make_batch(SOME, views=method.views)
    clean = partial.loss_and_gradient(method, batch)
    dirty = partial.loss_and_gradient(method, partial.spoilt(batch))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_scales_and_shifts_are_a_group_of_their_own(make, partial):
    method = make()
    params, _ = partial.variables_of(method, partial.make_batch(SOME, views=method.views))
    groups = method.groups(params)
    assert groups["method"]["mapping"]["film"] == "film"
    assert groups["method"]["mapping"]["last"]["kernel"] == "auxiliary"
    assert groups["model"]["head@depth"]["kernel"] == "task:depth"


def test_more_pairs_than_the_step_is_compiled_for(make):
    given = {name: np.array(column, bool) for name, column in zip("abc", np.transpose(SOME), strict=True)}
    make().check_labels(given)
    with pytest.raises(UserError, match="max_pairs is 1, but there are images with 2 pairs"):
        make(max_pairs=1).check_labels(given)


def test_a_single_task_has_no_pairs(partial):
    tasks = {"depth": partial.TASKS["depth"]}
    with pytest.raises(UserError, match="'mtpsl' needs at least 2 tasks, not depth alone"):
        mtpsl.build(partial.Pixels(tasks), tasks)

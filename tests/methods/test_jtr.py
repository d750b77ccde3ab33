"""Joint-task regularisation: its parts by value, and who is trained by what."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from mtl_jax.errors import UserError
from mtl_jax.methods import jtr, maps
from mtl_jax.methods import weighting as weightings

ONE = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]  # depth, normals, semseg
SOME = [[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]]
CHANNELS = {"depth": slice(0, 1), "normals": slice(1, 4), "semseg": slice(4, 7)}


class Coder(nn.Module):
    """g in small: patches of 2x2, a hidden layer, and back."""

    channels: int = 7

    def setup(self):
        self.down, self.up = nn.Conv(9, (2, 2), (2, 2)), nn.Dense(4 * self.channels)

    def encode(self, x):
        return [nn.tanh(self.down(x))]

    def decode(self, maps, size):
        blocks = self.up(maps[-1]).reshape(*maps[-1].shape[:3], 2, 2, self.channels)
        return jnp.swapaxes(blocks, 2, 3).reshape(-1, *size, self.channels)

    def __call__(self, x):
        return self.decode(self.encode(x), x.shape[1:3])


@pytest.fixture
def make(partial):
    def make(**options):
        options = {"average": "image", "coder": Coder(), "moments": {"depth": (3.0, 1.5)}} | options
        return jtr.JTR(
            partial.Pixels(partial.TASKS),
            partial.TASKS,
            weightings.make(partial.TASKS, None, "fixed"),
            **options,
        )

    return make


def norm(tree):
    return max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))


def test_distance_takes_the_cosine_over_channels_at_each_place():
    a, b = jnp.array([[[[1.0, 0], [0, 2]]]]), jnp.array([[[[1.0, 0], [1, 1]]]])
    # Of the flattened maps it would be 0.2254, of their averages 0.2.
    np.testing.assert_allclose(maps.cosine_distance(a, b), [0.146447], atol=1e-6)
    dead = a.at[0, 0, 1].set(0)
    value, grad = jax.value_and_grad(lambda x: maps.cosine_distance(x, b)[0])(dead)
    np.testing.assert_allclose(value, 0.5, atol=1e-6)
    assert np.isfinite(grad).all()


def test_quantities_and_directions_are_squashed(partial):
    metres = jnp.array([0, 0.5, 1, 2, 3, 5.0])
    squashed = maps.unit_range(partial.TASKS["depth"], metres, 2.3618, 1.5876)
    expected = [0.068421, 0.120455, 0.195509, 0.409865, 0.656154, 0.951719]
    np.testing.assert_allclose(squashed, expected, atol=1e-6)
    vectors = jnp.array([[0.0, 0, -1], [0, 0, 0]])
    squashed = maps.unit_range(partial.TASKS["normals"], vectors, 0.0, 1.0)
    np.testing.assert_allclose(squashed, [[0.5, 0.5, 0], [0.5, 0.5, 0.5]])


def test_sampled_classes_are_one_hot_and_pass_the_gradient_of_the_soft_sample():
    logits = jnp.log(jnp.array([0.7, 0.2, 0.1])) * jnp.ones((20000, 1))
    key = jax.random.key(0)
    hard = maps.straight_through(logits, key)
    assert set(np.unique(np.round(hard, 6))) == {0, 1} and (np.abs(hard.sum(-1) - 1) < 1e-5).all()
    np.testing.assert_allclose(hard.mean(0), [0.7, 0.2, 0.1], atol=0.01)

    def soft(x):
        return jax.nn.softmax(x + jax.random.gumbel(key, x.shape))

    weights = jnp.array([1.0, -2, 3])
    grads = [
        jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(logits)
        for f in (soft, lambda x: maps.straight_through(x, key))
    ]
    np.testing.assert_allclose(*grads, atol=1e-6)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("given", [ONE, SOME])
def test_labels_that_are_not_given_have_no_influence(make, partial, joint, given):
    method = make(joint=joint, unlabelled=True)
    batch = partial.make_batch(given, views=method.views)
    clean = partial.loss_and_gradient(method, batch)
    dirty = partial.loss_and_gradient(method, partial.spoilt(batch))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def only(**weights):
    off = dict.fromkeys(("distance_weight", "encoder_weight", "reconstruction_weight"), 0.0)
    return off | weights


def test_the_distance_trains_the_network_and_the_rest_trains_g(make, partial):
    method = make(**only(distance_weight=4.0))
    batch = partial.make_batch(SOME[:3], views=method.views)
    grads = partial.regulariser_gradient(method, batch)
    assert norm(grads["method"]) == 0 and norm(grads["model"]) > 1e-4
    method = make(**only(encoder_weight=8.0, reconstruction_weight=2.0))
    grads = partial.regulariser_gradient(method, batch)
    assert norm(grads["method"]) > 1e-4 and norm(grads["model"]) == 0
    grads = partial.regulariser_gradient(make(**only(encoder_weight=8.0)), batch)
    assert norm(grads["method"]["coder"]["down"]) > 1e-4 and norm(grads["method"]["coder"]["up"]) == 0


def test_the_distance_passes_the_branches_of_missing_labels_alone(make, partial):
    method = make(**only(distance_weight=4.0))
    batch = partial.make_batch([[0, 0, 1]], views=method.views)
    grads = partial.regulariser_gradient(method, batch)["model"]
    assert norm(grads["head@semseg"]) == 0
    assert norm(grads["head@depth"]) > 1e-4 and norm(grads["head@normals"]) > 1e-4
    batch = partial.make_batch([[1, 1, 1]], views=method.views)  # nothing is missing
    assert norm(partial.regulariser_gradient(method, batch)) == 0


def test_to_the_letter_the_distance_passes_all_branches_and_g(make, partial):
    method = make(joint=True, **only(distance_weight=1.0))
    batch = partial.make_batch([[0, 0, 1]])
    assert method.views == {}
    grads = partial.regulariser_gradient(method, batch)
    for part in (*(grads["model"][f"head@{t}"] for t in partial.TASKS), grads["method"]["coder"]["down"]):
        assert norm(part) > 1e-5
    assert norm(grads["method"]["coder"]["up"]) == 0
    # <> around what is reconstructed: it trains g alone.
    grads = partial.regulariser_gradient(make(joint=True, **only(reconstruction_weight=1.0)), batch)
    assert norm(grads["model"]) == 0 and norm(grads["method"]["coder"]["up"]) > 1e-4


def stacked(make, partial, batch, **options):
    method = make()
    rng = np.random.default_rng(3)
    outputs = {
        n: jnp.asarray(rng.normal(size=(len(batch["id"]), *partial.SIZE, t.channels)), jnp.float32)
        for n, t in partial.TASKS.items()
    }
    moments = {"depth": (3.0, 1.5)}
    predicted, reliable = method.stacks(outputs, batch, moments, jax.random.key(0), **options)
    return outputs, np.asarray(predicted, np.float64), np.asarray(reliable, np.float64)


def test_stacks_by_hand(make, partial):
    batch = partial.make_batch(SOME)
    outputs, predicted, reliable = stacked(make, partial, batch, soft=True)
    valid = {n: v[..., 0] > 0 for n, v in batch["valid"].items()}
    for i, given in enumerate(SOME):
        mask = np.ones(partial.SIZE)
        for name, has in zip(partial.TASKS, given, strict=True):
            mask = mask * valid[name][i] if has else mask
        mask = mask[..., None]
        raw = {n: np.asarray(o[i], np.float64) for n, o in outputs.items()}

        def phi(x):
            return scipy.stats.norm.cdf((x - 3.0) / 1.5)

        unit = raw["normals"] / np.linalg.norm(raw["normals"], axis=-1, keepdims=True)
        soft = np.exp(raw["semseg"]) / np.exp(raw["semseg"]).sum(-1, keepdims=True)
        ours = {"depth": phi(raw["depth"] * mask), "normals": (unit * mask + 1) / 2, "semseg": soft * mask}
        labels = {n: batch["labels"][n][i].astype(np.float64) for n in partial.TASKS}
        one_hot = np.eye(3)[batch["labels"]["semseg"][i, ..., 0]] * valid["semseg"][i][..., None]
        truth = {"depth": phi(labels["depth"]), "normals": (labels["normals"] + 1) / 2, "semseg": one_hot}
        for name, has in zip(partial.TASKS, given, strict=True):
            got, target = predicted[i, ..., CHANNELS[name]], reliable[i, ..., CHANNELS[name]]
            np.testing.assert_allclose(got, ours[name], atol=1e-5)
            if has:  # the label with its own mask, also where another label is unknown
                np.testing.assert_allclose(target, truth[name], atol=1e-5)
            elif name == "semseg":  # a sample of the prediction
                assert set(np.unique(np.round(target, 5))) <= {0, 1}
                np.testing.assert_allclose(target.sum(-1), mask[..., 0], atol=1e-5)
            else:
                np.testing.assert_allclose(target, ours[name], atol=1e-5)


def test_two_samples_of_a_missing_class_map_differ(make, partial):
    batch = partial.make_batch([[1, 0, 0]])
    _, predicted, reliable = stacked(make, partial, batch)
    assert set(np.unique(np.round(predicted[..., CHANNELS["semseg"]], 5))) <= {0, 1}
    assert (predicted != reliable)[..., CHANNELS["semseg"]].any()
    assert (predicted == reliable)[..., CHANNELS["normals"]].all()


def test_predictions_like_the_labels_are_at_no_distance(make, partial):
    batch = partial.make_batch([[0, 0, 1]])
    method = make()
    one_hot = np.eye(3)[batch["labels"]["semseg"][..., 0]]
    rng = np.random.default_rng(0)
    outputs = {
        "semseg": jnp.asarray(100 * one_hot, jnp.float32),
        "depth": jnp.asarray(rng.normal(size=(1, *partial.SIZE, 1)), jnp.float32),
        "normals": jnp.asarray(rng.normal(size=(1, *partial.SIZE, 3)), jnp.float32),
    }
    params = partial.variables_of(method, partial.make_batch([[0, 0, 1]], views=method.views))[0]

    def distance(outputs):
        stacks = method.stacks(outputs, batch, {"depth": (3.0, 1.5)}, jax.random.key(0))
        return method._distance(params["method"]["coder"], *stacks)[0]

    value, grads = jax.value_and_grad(distance)(outputs)
    assert abs(value) < 1e-6 and norm(grads) < 1e-6
    outputs["semseg"] = outputs["semseg"][..., ::-1]
    assert distance(outputs) > 1e-3


def test_an_image_without_labels_is_compared_between_two_colourings(make, partial):
    batch = partial.make_batch([[0, 0, 0], [1, 0, 0]])
    rng = np.random.default_rng(5)
    other = {
        n: jnp.asarray(rng.normal(size=(2, *partial.SIZE, t.channels)), jnp.float32)
        for n, t in partial.TASKS.items()
    }
    outputs, predicted, reliable = stacked(make, partial, batch, recoloured=other, soft=True)

    def phi(x):
        return scipy.stats.norm.cdf((np.asarray(x, np.float64) - 3.0) / 1.5)

    depth = CHANNELS["depth"]
    np.testing.assert_allclose(predicted[0, ..., depth], phi(outputs["depth"][0]), atol=1e-5)
    np.testing.assert_allclose(reliable[0, ..., depth], phi(other["depth"][0]), atol=1e-5)
    # The labelled image does not look at it.
    normals = CHANNELS["normals"]
    np.testing.assert_array_equal(predicted[1, ..., normals], reliable[1, ..., normals])


def test_images_without_labels_are_of_use_if_asked_for(make):
    assert not make().uses_unlabelled and "recoloured" not in make().views
    method = make(unlabelled=True)
    assert method.uses_unlabelled and method.views["recoloured"].of == "distance"
    assert make(unlabelled=True, joint=True).views["recoloured"].of is None


def test_reconstruction_by_hand(partial):
    rng = np.random.default_rng(0)
    mask = (rng.uniform(size=(2, 3, 4, 1)) < 0.6).astype(np.float32)
    mask[1] = 0
    count = mask[0].sum()
    for name, task in partial.TASKS.items():
        raw = rng.normal(size=(2, 3, 4, task.channels))
        target = rng.uniform(size=raw.shape)
        sigmoid = 1 / (1 + np.exp(-raw))
        per_pixel = {
            "semseg": -(target * np.log(sigmoid) + (1 - target) * np.log(1 - sigmoid)).sum(-1),
            "depth": np.abs(sigmoid - target)[..., 0],
            "normals": 1 - (raw / np.linalg.norm(raw, axis=-1, keepdims=True) * (2 * target - 1)).sum(-1),
        }[name]
        got = jtr.reconstruction(task, jnp.float32(raw), jnp.float32(target), mask)
        expected = [(per_pixel[0] * mask[0, ..., 0]).sum() / count, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_moments_are_those_of_the_labels_seen(make, partial):
    method = make(moments={})
    batches = [
        partial.make_batch(given, views=method.views, seed=i)
        for i, given in enumerate((ONE, SOME[1:2], SOME))
    ]
    _, state = partial.variables_of(method, batches[0])
    means, squares = [], []
    for batch in batches:
        state, _ = method._moments(state, batch)
        known = batch["labels"]["depth"][batch["valid"]["depth"] > 0].astype(np.float64)
        if known.size:
            means.append(known.mean())
            squares.append((known**2).mean())
        _, moments = method._moments(state, jax.tree.map(jnp.zeros_like, batch))
        np.testing.assert_allclose(moments["depth"][0], np.mean(means), rtol=1e-5)
        np.testing.assert_allclose(
            moments["depth"][1] ** 2, np.mean(squares) - np.mean(means) ** 2, rtol=1e-4
        )
    assert len(means) == 2


def test_one_program_for_all_patterns_of_labels(make, partial):
    method = make(unlabelled=True)
    patterns = [SOME, SOME[::-1], [[1, 1, 1]] * 4, [[0, 0, 0]] * 4]
    batches = [partial.make_batch(given, views=method.views) for given in patterns]
    params, state = partial.variables_of(method, batches[0])
    step = jax.jit(jax.grad(lambda p, batch: method.loss(p, state, batch, jax.random.key(0), 0)[0]))
    for batch in batches:
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(step(params, batch)))
    assert step._cache_size() == 1


def test_wrong_options_are_named(partial):
    with pytest.raises(UserError, match="moments names 'semseg': the unbounded quantities are depth"):
        jtr.build(partial.Pixels(partial.TASKS), partial.TASKS, moments={"semseg": (0.0, 1.0)})

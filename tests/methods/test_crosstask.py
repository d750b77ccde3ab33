"""Maps from task to task: which pairs train what, and their losses by hand."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.methods import crosstask, maps
from mtl_jax.methods import weighting as weightings

SOME = [[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]]


@pytest.fixture
def make(partial):
    def make(kind, **options):
        names = tuple(partial.TASKS)
        networks = {(s, t): nn.Dense(partial.TASKS[t].channels) for s in names for t in names if s != t}
        weighting = weightings.make(partial.TASKS, None, "fixed")
        model = partial.Pixels(partial.TASKS)
        return crosstask.CrossTask(model, partial.TASKS, weighting, "image", kind, networks, **options)

    return make


def dense(params, x):
    return x @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def as_input(task, values):
    """What a map reads, of values in the space of labels."""
    return {"depth": values / np.abs(values).max(), "normals": (values + 1) / 2, "semseg": values}[task]


def difference(task, raw, target):
    """Per pixel, between a raw output and a map in the space of labels."""
    return {
        "depth": lambda: np.abs(raw - target)[..., 0],
        "normals": lambda: 1 - (unit(raw) * target).sum(-1),
        "semseg": lambda: -(target * np.log(softmax(raw))).sum(-1),
    }[task]()


@pytest.mark.parametrize("kind", crosstask.KINDS)
def test_pairs_by_hand(make, partial, kind):
    method = make(kind, weight=3.0)
    batch = partial.make_batch(SOME)
    params, state = partial.variables_of(method, batch)
    key = jax.random.key(0)
    loss, metrics, _ = partial.loss_and_gradient(method, batch, params, state)
    prediction, _ = method.forward(params, state, batch["image"], key)
    networks, names = params["method"]["maps"], list(partial.TASKS)
    expected = 0.0
    for i, given in enumerate(SOME):
        pair = -1
        for s in range(3):
            for t in (t for t in range(3) if t != s):
                pair += 1
                if given[s] or not given[t]:
                    continue
                missing, known = names[s], names[t]
                mask = batch["valid"][known][i, ..., 0]

                def read(task, pair=pair, i=i):
                    return np.asarray(  # the same key gives the same sample
                        maps.sampled(
                            partial.TASKS[task], prediction.outputs[task], jax.random.fold_in(key, pair)
                        )[i],
                        np.float64,
                    )

                truth = np.asarray(partial.TASKS[known].encode(batch["labels"][known])[i], np.float64)
                truth = truth * mask[..., None]
                if kind == "direct":
                    mapped = dense(networks[f"{missing}_to_{known}"], as_input(missing, read(missing)))
                    expected += (difference(known, mapped, truth) * mask).sum() / mask.sum()
                else:
                    network = networks[f"{known}_to_{missing}"]
                    ours = dense(network, as_input(known, read(known) * mask[..., None]))
                    theirs = dense(network, as_input(known, truth))
                    raw = np.asarray(prediction.outputs[missing][i], np.float64)
                    sharp = {"depth": lambda x: x, "normals": unit, "semseg": softmax}[missing]
                    expected += difference(missing, ours, sharp(theirs)).mean()
                    expected += difference(missing, theirs, sharp(raw)).mean()
    np.testing.assert_allclose(metrics["all/pairs"], expected / len(SOME), rtol=1e-5)
    supervised = sum(metrics[f"{task}/loss"] for task in names)
    np.testing.assert_allclose(loss, supervised + 3.0 * expected / len(SOME), rtol=1e-5)


@pytest.mark.parametrize(("kind", "used"), [("direct", "{s}_to_{t}"), ("perceptual", "{t}_to_{s}")])
def test_networks_of_absent_pairs_stay(make, partial, kind, used):
    method = make(kind)
    batch = partial.make_batch([[1, 0, 0]])
    grads = partial.loss_and_gradient(method, batch)[2]["method"]["maps"]
    moved = {name for name, g in grads.items() if np.abs(g["kernel"]).max() > 0}
    assert moved == {used.format(s=s, t="depth") for s in ("normals", "semseg")}


@pytest.mark.parametrize("kind", crosstask.KINDS)
def test_labels_that_are_not_given_have_no_influence(make, partial, kind):
    batch = partial.make_batch(SOME)
    clean = partial.loss_and_gradient(make(kind), batch)
    dirty = partial.loss_and_gradient(make(kind), partial.spoilt(batch))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_array_equal(a, b)


def test_an_unknown_kind_is_named(partial):
    with pytest.raises(UserError, match="kind is 'both': choose one of direct, perceptual"):
        crosstask.build(partial.Pixels(partial.TASKS), partial.TASKS, kind="both")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, jaccard_score

from mtl_jax.metrics import confusion
from mtl_jax.metrics.confusion import Confusion, histogram, joint_counts


def results(label, pred, classes, scored=None):
    """Of flat lists; labels outside [0, classes) are ignored."""
    label = np.asarray(label).reshape(1, 1, -1, 1)
    valid = ((label >= 0) & (label < classes)).astype(np.float32)
    score = jax.nn.one_hot(np.asarray(pred).reshape(1, 1, -1), classes)
    empty = Confusion.empty([str(c) for c in range(classes)], scored)
    return jax.jit(Confusion.update)(empty, score, label, valid).compute()


# Worked by hand.
@pytest.mark.parametrize(
    ("label", "pred", "classes", "miou"),
    [
        ([0, 0, 0, 1, 1, 2, -1, 0], [0, 0, 1, 1, 1, 1, 2, 0], 3, (0.75 + 0.5 + 0) / 3),
        ([0, 0, 1, 255], [0, 1, 1, 1], 3, 0.5),  # class 2 occurs nowhere
        ([0, 0, 1, 1, 255, 2], [0, 1, 1, 1, 1, 0], 4, (1 / 3 + 2 / 3 + 0) / 3),
        ([0, 0, 1, 1, 2, 255], [0, 1, 1, 1, 0, 2], 3, 1 / 3),
    ],
)
def test_examples(label, pred, classes, miou):
    assert results(label, pred, classes)["mIoU"] == pytest.approx(miou, rel=1e-12)


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    label, pred = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    ours = results(label, pred, 6)
    iou = jaccard_score(label, pred, average=None)
    np.testing.assert_allclose([ours[f"IoU_{c}"] for c in range(6)], iou, rtol=1e-12)
    assert ours["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    assert ours["pixAcc"] == pytest.approx(np.mean(label == pred), rel=1e-12)


def test_counts_have_labels_in_rows():
    metric = Confusion.empty("ab")
    metric = metric.update(jnp.array([[[[0.1, 0.9]]]]), jnp.zeros((1, 1, 1, 1), int), jnp.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(metric.counts.numpy(), [[0, 1], [0, 0]])


def test_mean_over_scored_classes_alone():
    rng = np.random.default_rng(3)
    label, pred = rng.integers(0, 6, 500), rng.integers(0, 6, 500)
    ours, every = results(label, pred, 6, scored=(4, 1)), results(label, pred, 6)
    # What is of another class and is taken for 1 or 4 counts against them.
    iou = jaccard_score(label, pred, labels=[1, 4], average=None)
    assert ours["mIoU"] == pytest.approx(iou.mean(), rel=1e-12)
    assert ours["mIoU"] != pytest.approx(every["mIoU"], rel=1e-3)
    assert {k: v for k, v in ours.items() if k != "mIoU"} == {k: v for k, v in every.items() if k != "mIoU"}


def test_scored_classes_that_do_not_occur():
    label, pred = [0, 0, 1, 255], [0, 1, 1, 1]
    assert results(label, pred, 4, scored=(1, 3))["mIoU"] == pytest.approx(0.5)
    assert np.isnan(results(label, pred, 4, scored=(2, 3))["mIoU"])


def test_nothing_valid_is_nan():
    assert np.isnan(results([255, 255], [0, 1], 3)["mIoU"])


@pytest.mark.parametrize("count", [confusion._scatter, confusion._multiply])
def test_both_ways_of_counting(count, monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (3, 40, 2)), rng.integers(0, 7, (3, 40, 2))
    valid = rng.integers(0, 2, a.shape)
    a[valid == 0], b[valid == 0] = 255, -1  # must not count
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, **_: count((5, 7), *args))
    counts = joint_counts(jnp.asarray(a), jnp.asarray(b), (5, 7), jnp.asarray(valid))
    for example in range(3):
        known = valid[example] == 1
        expected = confusion_matrix(a[example][known], b[example][known], labels=range(7))[:5]
        np.testing.assert_array_equal(counts[example], expected)


@pytest.mark.parametrize("bins", [1, 10, 512])
def test_histogram(bins):
    index = np.random.default_rng(2).integers(0, bins, (2, 300))
    counts = histogram(jnp.asarray(index), bins, jnp.ones((2, 300), bool))
    np.testing.assert_array_equal(counts, [np.bincount(row, minlength=bins) for row in index])

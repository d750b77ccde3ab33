"""Average precision against its definition, counted out."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.metrics.ranking import MeanAveragePrecision


def by_definition(labels, scores):
    """Sum over the cuts at each distinct score of (rise in recall) x precision; plain loops."""
    total, before = 0.0, 0.0
    positive = sum(labels)
    for cut in sorted(set(scores), reverse=True):
        chosen = [label for label, score in zip(labels, scores, strict=True) if score >= cut]
        recall = sum(chosen) / positive
        total += (recall - before) * sum(chosen) / len(chosen)
        before = recall
    return total


def result(scores, labels, valid=None, batch=3):
    scores, labels = (np.asarray(x)[:, None, None, :] for x in (scores, labels))
    valid = np.ones(len(scores)) if valid is None else np.asarray(valid)
    metric = MeanAveragePrecision()
    for i in range(0, len(scores), batch):
        rows = slice(i, i + batch)
        metric = metric.update(
            jnp.asarray(scores[rows], jnp.float32),
            jnp.asarray(labels[rows], jnp.float32),
            jnp.asarray(valid[rows, None, None, None], jnp.float32),
        )
    return metric.compute()["mAP"]


def test_a_small_case_by_hand():
    scores = [[0.9], [0.8], [0.7], [0.6], [0.5]]
    labels = [[1], [0], [1], [1], [0]]
    assert result(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert result([[0.5]] * 5, labels) == pytest.approx(3 / 5)  # equal scores come in together


@pytest.mark.parametrize("batch", [1, 4, 40])
def test_mean_over_the_classes_with_images(batch):
    rng = np.random.default_rng(0)
    scores = np.round(rng.random((40, 6)), 1)  # many ties
    labels = (rng.random((40, 6)) < [0.02, 0.5, 0.2, 0.9, 0.0, 0.3]).astype(int)
    labels[:, 4], labels[0, 0] = 0, 1  # nobody has class 4
    labels[rng.random((40, 6)) < 0.2] = 255
    labels[:, 5] = np.where(labels[:, 5] == 1, 255, labels[:, 5])  # nobody is known to have class 5
    valid = rng.random(40) < 0.8
    valid[0], labels[0, 0] = True, 1
    expected = []
    for c in range(4):
        use = valid & (labels[:, c] != 255)
        expected.append(by_definition(labels[use, c].tolist(), scores[use, c].tolist()))
    assert result(scores, labels, valid, batch) == pytest.approx(np.mean(expected), rel=1e-12)


def test_without_any_image_there_is_no_result():
    assert np.isnan(MeanAveragePrecision().compute()["mAP"])
    assert np.isnan(result([[0.3, 0.2]], [[1, 0]], valid=[0]))
    assert np.isnan(result([[0.3, 0.2]], [[0, 255]]))

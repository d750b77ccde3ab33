import jax
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from mtl_jax.metrics.accuracy import Accuracy


def run(scores, labels, valid=None):
    scores = np.asarray(scores, np.float32)[:, None, None]
    labels = np.asarray(labels)[:, None, None, None]
    valid = np.ones(labels.shape) if valid is None else np.asarray(valid)[:, None, None, None]
    metric = Accuracy.empty(scores.shape[-1])
    return jax.jit(Accuracy.update)(metric, scores, labels, valid.astype(np.float32)).compute()


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 12)), rng.integers(0, 12, 200)
    valid = rng.random(200) < 0.6
    ours = run(scores, np.where(valid, labels, -1), valid)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels[valid], scores[valid], k=k, labels=range(12))
        assert ours[f"top{k}"] == pytest.approx(expected, rel=1e-12)


def test_equal_scores_rank_by_class():
    assert run(np.full((4, 12), 0.5), [0, 4, 5, 11]) == {"top1": 0.25, "top5": 0.5}


def test_few_classes_have_no_top5():
    assert run([[0.1, 0.9, 0]], [1]) == {"top1": 1.0}


def test_nothing_valid_is_nan():
    assert np.isnan(run([[1, 2, 3]], [-1], [0])["top1"])

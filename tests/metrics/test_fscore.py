import jax
import numpy as np
import pytest
from sklearn.metrics import fbeta_score

from mtl_jax.metrics.fscore import MaxF, Saliency


def run(metric, prob, label, valid=None):
    """Of lists of one row per image."""
    prob, label = (np.asarray(x, np.float32)[:, None, :, None] for x in (prob, label))
    valid = np.ones_like(label) if valid is None else np.asarray(valid, np.float32)[:, None, :, None]
    return jax.jit(type(metric).update)(metric, prob, label, valid).compute()


@pytest.mark.parametrize(("beta2", "expected"), [(0.3, 0.8125), (1.0, 0.8)])
def test_example(beta2, expected):
    ours = run(MaxF.empty(beta2, thresholds=19), [[0.11, 0.08, 0.06, 0.02]], [[1, 1, 0, 0]])
    assert ours["maxF"] == pytest.approx(expected, rel=1e-9)


def test_against_scikit_learn_at_every_threshold():
    rng = np.random.default_rng(0)
    label = rng.random((2, 200)) < 0.3
    prob = np.clip(0.3 * label + 0.7 * rng.random(label.shape), 0, 1).astype(np.float32)
    prob[0, :50] = rng.integers(0, 257, 50) / 256  # just on thresholds, and 0 and 1
    valid = rng.random(label.shape) < 0.8
    truth, score = label[valid], prob[valid]
    f = [fbeta_score(truth, score >= k / 256, beta=np.sqrt(0.3)) for k in range(1, 256)]
    assert run(MaxF.empty(0.3), prob, np.where(valid, label, np.nan), valid)["maxF"] == pytest.approx(max(f))


def test_saliency_averages_images_before_the_maximum():
    prob = [(0.92, 0.43, 0.33, 0.12), (0.62, 0.12, 0.83, 0.33)]
    ours = run(Saliency.empty(), prob, [(1, 1, 0, 0), (0, 0, 1, 1)])
    assert ours["mIoU"] == pytest.approx(2 / 3, rel=1e-6)  # 5/6 if each image chose its threshold
    assert ours["maxF1_image"] == pytest.approx(0.8, rel=1e-6)


def test_saliency_against_a_loop():
    rng = np.random.default_rng(1)
    label, prob = rng.random((5, 60)) < 0.4, rng.random((5, 60)).astype(np.float32)
    label[1], prob[1] = False, 0.1  # neither truth nor prediction
    valid = rng.random(label.shape) < 0.7
    valid[4] = False  # no image
    iou, precision, recall = np.zeros((3, 15))
    for k, threshold in enumerate(np.linspace(0.2, 0.9, 15).astype(np.float32)):
        for truth, positive, known in zip(label, prob > threshold, valid, strict=True):
            if known.any():
                truth, positive = truth[known], positive[known]
                hits, union = (truth & positive).sum(), (truth | positive).sum()
                iou[k] += (hits / union if union else 1) / 4
                precision[k] += (hits / positive.sum() if positive.any() else 0) / 4
                recall[k] += (hits / truth.sum() if truth.any() else 0) / 4
    ours = run(Saliency.empty(), prob, label, valid)
    assert ours["mIoU"] == pytest.approx(iou.max(), rel=1e-6)
    assert ours["maxF1_image"] == pytest.approx(
        (2 * precision * recall / (precision + recall)).max(), rel=1e-6
    )


def test_nothing_valid_is_nan_and_nothing_positive_is_zero():
    assert all(np.isnan(v) for v in run(Saliency.empty(), [[0.5]], [[1]], [[0]]).values())
    assert run(MaxF.empty(1.0), [[0.5, 0.7]], [[0, 0]])["maxF"] == 0

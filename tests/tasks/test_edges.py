import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.metrics.boundary import BoundaryBenchmark
from mtl_jax.tasks import edges

U = 255


def loss(logits, label, **options):
    """Loss of one row of pixels; `label` [pixels] or [pixels][annotators]."""
    label = np.asarray(label, np.float32).reshape(len(logits), -1)
    task = edges.build("edges", annotators=label.shape[1], **options)
    label = jnp.asarray(label)[None, None]
    return float(task.loss(jnp.array(logits, float)[None, None, :, None], label, task.known(label) * 1.0)[0])


def softplus(z):
    return np.log1p(np.exp(z))


def test_loss_by_hand():
    assert loss([0, 1, -1, 2], [1, 0, 0, 1]) == pytest.approx(0.215099, abs=1e-6)
    assert loss([0, 1, -1, 2, 9], [1, 0, 0, 1, U]) == pytest.approx(0.215099, abs=1e-6)
    assert loss([0, 1, -1, 2], [1, 0, 0, 1], positive_weight=None) == pytest.approx(0.305825, abs=1e-6)
    unbalanced = (0.75 * softplus(-1.0) + 0.25 * (softplus(2.0) + softplus(0) + softplus(-3.0))) / 4
    assert loss([1, 2, 0, -3], [1, 0, 0, 0], positive_weight=None) == pytest.approx(unbalanced, abs=1e-6)


def test_annotators_vote():
    logits = [2, 3, 4, 5]
    votes = [[1, 1, U], [1, 0, U], [0, 0, U], [U, U, U]]
    positive, other = 0.95 * softplus(-np.array(logits)), 0.05 * softplus(np.array(logits))
    any_vote = (positive[0] + positive[1] + other[2]) / 3
    ignored = (positive[0] + other[2]) / 2
    negative = (positive[0] + other[1] + other[2]) / 3
    assert loss(logits, votes) == pytest.approx(any_vote, rel=1e-5)
    assert loss(logits, votes, positive_from=2) == pytest.approx(ignored, rel=1e-5)
    assert loss(logits, votes, positive_from=2, ignore_doubtful=False) == pytest.approx(negative, rel=1e-5)


def test_encoding_is_the_share_of_those_present():
    task = edges.build("edges", annotators=3)
    label = jnp.array([[1, 1, 0], [1, 0, U], [1, U, U], [0, 0, 0], [U, U, U]], jnp.float32)
    np.testing.assert_allclose(task.encode(label)[:, 0], [2 / 3, 1 / 2, 1, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(task.known(label)[:, 0], [1, 1, 1, 1, 0])


def test_pixel_metric_uses_the_same_truth_as_the_loss():
    task = edges.build("edges", annotators=2, positive_from=2)
    label = np.array([[1, 1], [1, 1], [1, 0], [0, 0], [0, 0]], np.float32)[None, None]
    prob = np.array([0.9, 0.3, 0.8, 0.6, 0.1], np.float32)[None, None, :, None]
    result = task.metric().update(prob, label, np.ones_like(prob)).compute()
    # At 0.3: 2 of 2 found, 1 false; the doubtful pixel counts for nothing.
    assert result == {"maxF": pytest.approx(2 * 2 / (2 * 2 + 1))}
    assert task.headline == "maxF"


def test_the_benchmark_is_an_option():
    task = edges.build("edges", annotators=2, benchmark=True, nms=False, max_distance=0.011)
    metric = task.metric()
    assert isinstance(metric, BoundaryBenchmark)
    assert (metric.max_distance, metric.suppress) == (0.011, False)
    label = np.full((1, 20, 30, 2), U, np.float32)
    label[..., 0] = np.arange(20)[:, None] == 9
    prob = label[..., :1]
    result = metric.update(prob, label, np.ones_like(prob)).compute()
    assert result[task.headline] == pytest.approx(1)


def test_the_task_knows_its_channels():
    task = edges.build("edges", annotators=9)
    assert (task.label_channels, task.channels) == (9, 1)
    assert edges.build("edges").label_channels == 1


def test_positive_from_more_annotators_than_there_are():
    with pytest.raises(UserError, match="edges.*positive_from is 3.*1 annotators"):
        edges.build("edges", positive_from=3)

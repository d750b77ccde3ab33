import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import saliency


def loss(logits, label):
    logits, label = (jnp.asarray(x, jnp.float32)[:, None, :, None] for x in (logits, label))
    task = saliency.build("saliency")
    return np.asarray(task.loss(logits, label, task.known(label).astype(jnp.float32)))


def test_loss_by_hand():
    ours = loss([(0, 1, -1, 2, -2, -3), (0, 1, -1, 2, 7, 7)], [(1, 0, 0, 0, 0, 0), (1, 0, 0, 1, 255, 255)])
    np.testing.assert_allclose(ours, [0.205408, 0.305825], atol=1e-6)


def test_both_classes_weigh_the_same():
    # All logits 0: each pixel costs ln 2; a share p of positives makes 2 p (1 - p) ln 2.
    for positives in (1, 3, 6):
        label = np.arange(8) < positives
        p = positives / 8
        assert loss([np.zeros(8)], [label])[0] == pytest.approx(2 * p * (1 - p) * np.log(2), rel=1e-6)


def test_an_image_without_salient_pixels_costs_nothing():
    assert loss([(1, 2)], [(0, 0)])[0] == 0

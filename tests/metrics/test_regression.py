import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.metrics.regression import Errors, PositiveErrors


def run(metric, pred, label, valid=None):
    """Of lists of one row per image."""
    pred, label = (np.asarray(x, np.float32)[:, None, :, None] for x in (pred, label))
    valid = np.ones_like(label) if valid is None else np.asarray(valid, np.float32)[:, None, :, None]
    return jax.jit(type(metric).update)(metric, pred, label, valid).compute()


# Errors per image, padded by None; pooled RMSE and mean of the images' RMSE by hand.
@pytest.mark.parametrize(
    ("errors", "pooled", "per_image"),
    [
        ([[1, 1, 1, 1], [3, None, None, None]], 1.6124515497, 2.0),
        ([[1, 1, None, None], [3, 3, 3, 3]], 2.5166114784, 2.0),
        ([[1, 1, 1, 1], [0, 3, None, None]], 1.4719601444, 1.5606601718),
        ([[2, 2, 2, 2], [None, None, None, None]], 2.0, 2.0),
    ],
)
def test_both_kinds_of_rmse(errors, pooled, per_image):
    valid = [[e is not None for e in row] for row in errors]
    pred = [[np.nan if e is None else e for e in row] for row in errors]
    ours = run(Errors.empty(), pred, np.zeros((2, 4)), valid)
    assert ours["rmse"] == pytest.approx(pooled, rel=1e-7)
    assert ours["rmse_image"] == pytest.approx(per_image, rel=1e-7)


def test_against_float64():
    rng = np.random.default_rng(0)
    pred, label = rng.uniform(0.1, 5, (2, 3, 300)).astype(np.float32)
    valid = rng.random((3, 300)) < 0.7
    label[~valid] = 0  # unknown
    ours = run(PositiveErrors.empty(), pred, label, valid)
    p, t = pred[valid].astype(np.float64), label[valid].astype(np.float64)
    assert ours["absErr"] == pytest.approx(np.mean(abs(p - t)), rel=1e-6)
    assert ours["rmse"] == pytest.approx(np.sqrt(np.mean((p - t) ** 2)), rel=1e-6)
    assert ours["absRel"] == pytest.approx(np.mean(abs(p - t) / t), rel=1e-6)
    for k in (1, 2, 3):
        assert ours[f"delta{k}"] == pytest.approx(np.mean(np.maximum(p / t, t / p) < 1.25**k), abs=1e-12)


def test_a_ratio_of_just_the_limit_is_outside():
    ours = run(PositiveErrors.empty(), [[1.2, 2.6, 4.9, 2.5]], [[1, 2, 4, 2]])
    assert ours["delta1"] == 0.5  # ratios 1.2, 1.3, 1.225, 1.25


def test_predictions_are_clipped_to_what_can_be():
    assert run(PositiveErrors.empty(), [[-5.0]], [[1.0]])["absErr"] == pytest.approx(1.0)
    assert run(Errors.empty(low=0.0, high=1.0), [[-1.0, 3.0]], [[0.5, 0.0]])["absErr"] == pytest.approx(0.75)
    assert run(Errors.empty(), [[-1.0, 3.0]], [[0.5, 0.0]])["absErr"] == pytest.approx(2.25)


def test_channels_are_averaged():
    pred, label = jnp.zeros((1, 1, 2, 3)), jnp.array([[[[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]]])
    valid = jnp.array([[[[1.0], [0.0]]]])
    assert Errors.empty().update(pred, label, valid).compute()["absErr"] == pytest.approx(2.0)


def test_nothing_valid_is_nan():
    ours = run(PositiveErrors.empty(), [[1.0]], [[0.0]], [[0]])
    assert all(np.isnan(value) for value in ours.values())

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mtl_jax.metrics.angular import Angular, angle, unit


def run(pred, label, valid=None):
    """Of lists of vectors."""
    pred, label = (np.asarray(x, np.float32).reshape(1, 1, -1, 3) for x in (pred, label))
    valid = np.ones(label.shape[1:3]) if valid is None else np.asarray(valid)
    valid = valid.reshape(1, 1, -1, 1).astype(np.float32)
    return jax.jit(Angular.update)(Angular.empty(), pred, label, valid).compute()


def tilted(degrees):
    """(0, 0, 1) turned by `degrees`, in float64."""
    radians = np.deg2rad(degrees)
    return np.stack([np.sin(radians), np.zeros_like(radians), np.cos(radians)], -1)


def test_examples():
    label = [(0, 0, 1), (0, 0, 0), (1, 0, 0), (0, 0, -1)]
    pred = [(0, 0, 1), (1, 0, 0), (1, 0, 1), (0, 0, 1)]
    ours = run(pred, label, [1, 0, 1, 1])  # 0, 45 and 180 degrees
    assert ours["mErr"] == pytest.approx(75, rel=1e-6)
    assert ours["rmse"] == pytest.approx(np.sqrt((45**2 + 180**2) / 3), rel=1e-6)
    assert ours["within30"] == pytest.approx(1 / 3)
    assert run([tilted(10.0), tilted(12.0)], [(0, 0, 1)] * 2)["within11.25"] == 0.5


def test_against_float64():
    rng = np.random.default_rng(0)
    label = rng.standard_normal((2000, 3))
    turn = Rotation.from_rotvec(rng.standard_normal((2000, 3)) * 0.4)
    pred = turn.apply(label) * rng.uniform(0.1, 3, (2000, 1))  # lengths do not matter
    cosine = (pred * label).sum(-1) / np.linalg.norm(pred, axis=-1) / np.linalg.norm(label, axis=-1)
    degrees = np.rad2deg(np.arccos(cosine))
    ours = run(pred, label)
    assert ours["mErr"] == pytest.approx(degrees.mean(), rel=1e-6)
    assert ours["median"] == pytest.approx(np.median(degrees), abs=180 / 4096)
    assert ours["rmse"] == pytest.approx(np.sqrt((degrees**2).mean()), rel=1e-6)
    for limit in ("11.25", "22.5", "30"):
        assert ours[f"within{limit}"] == np.mean(degrees < float(limit))


@pytest.mark.parametrize("degrees", [1e-3, 0.1, 179.9])
def test_small_and_straight_angles_keep_their_digits(degrees):
    ours = float(np.rad2deg(angle(tilted(degrees).astype(np.float32), np.float32([0, 0, 1]))))
    assert ours == pytest.approx(degrees, rel=1e-4)  # arccos of a float32 would give 0 or 0.02


def test_a_zero_prediction_is_a_right_angle_off():
    assert run([(0, 0, 0)], [(0, 0, 1)])["mErr"] == pytest.approx(90)


def test_median_within_its_bin():
    # Mass 1 below, 3 in the bin around 45 degrees, 1 above: the median is in the bin's middle.
    ours = run([tilted(d) for d in (0.01, 45.0, 45.0, 45.0, 170.0)], [(0, 0, 1)] * 5)
    assert ours["median"] == pytest.approx(45, abs=180 / 4096)
    assert run([tilted(180.0)], [(0, 0, 1)])["median"] == pytest.approx(180, abs=180 / 4096)


def test_nothing_valid_is_nan():
    assert all(np.isnan(value) for value in run([(0, 0, 1)], [(np.nan, 0, 0)], [0]).values())


def test_unit_vectors_have_finite_gradients_at_zero():
    np.testing.assert_allclose(unit(np.float32([3, 0, 4])), [0.6, 0, 0.8], rtol=1e-6)
    assert np.isfinite(jax.jacobian(unit)(np.zeros(3, np.float32))).all()

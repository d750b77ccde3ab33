"""Regions' features against a loop over sample points, torchvision, and numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.detection import roi_align as module
from mtl_jax.models.detection.roi_align import levels_of
from tests.weights import conftest

torch, torchvision = conftest.torch, conftest.torchvision

STATIC = ("size", "samples", "aligned")
roi_align = jax.jit(module.roi_align, static_argnames=STATIC)
pyramid_roi_align = jax.jit(module.pyramid_roi_align, static_argnames=STATIC)

RAMP = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
SPOT = np.zeros((4, 4, 1), np.float32)
SPOT[1, 1] = 1
# Inside, at the border, beyond it on each side, outside, without area, one point, the whole map, tiny.
BOXES = np.float32(
    [
        [0.5, 1.25, 3.5, 4],
        [0, 0, 2, 3],
        [-2, -1.5, 1.5, 2],
        [3, 4, 8.5, 9],
        [20, 20, 24, 23],
        [1, 1, 1, 3],
        [2, 2, 2, 2],
        [0, 0, 5, 6],
        [2.2, 3.3, 2.21, 3.32],
    ]
)


def loop(features, box, size, samples, aligned):
    height, width = features.shape[:2]

    def pixel(y, x):
        return features[y, x] if 0 <= y < height and 0 <= x < width else np.zeros(features.shape[2])

    def bilinear(y, x):
        if aligned:
            y, x = y - 0.5, x - 0.5
        else:
            y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        low_y, low_x = int(np.floor(y)), int(np.floor(x))
        part_y, part_x = y - low_y, x - low_x
        return (
            (1 - part_y) * (1 - part_x) * pixel(low_y, low_x)
            + (1 - part_y) * part_x * pixel(low_y, low_x + 1)
            + part_y * (1 - part_x) * pixel(low_y + 1, low_x)
            + part_y * part_x * pixel(low_y + 1, low_x + 1)
        )

    ymin, xmin, ymax, xmax = np.float64(box)
    bin_y, bin_x = (ymax - ymin) / size, (xmax - xmin) / size
    out = np.zeros((size, size, features.shape[2]))
    for i in range(size):
        for j in range(size):
            for a in range(samples):
                for b in range(samples):
                    y = ymin + (i + (a + 0.5) / samples) * bin_y
                    x = xmin + (j + (b + 0.5) / samples) * bin_x
                    out[i, j] += bilinear(y, x) / samples**2
    return out


def crop(features, box, size, samples, aligned=True):
    return np.asarray(roi_align(features, np.float32([box]), size, samples, aligned))[0, :, :, 0]


def test_numbers_by_hand():
    box = [0.5, 0.5, 2.5, 2.5]
    np.testing.assert_allclose(crop(RAMP, box, 2, 1, aligned=False), [[5, 6], [9, 10]], atol=1e-5)
    for samples in (1, 2):
        np.testing.assert_allclose(crop(RAMP, box, 2, samples), [[2.5, 3.5], [6.5, 7.5]], atol=1e-5)
    np.testing.assert_allclose(crop(RAMP, [0, 0, 4, 4], 2, 2), [[2.5, 4.5], [10.5, 12.5]], atol=1e-5)
    spot = [crop(SPOT, [0, 0, 3, 3], 1, n, aligned).item() for aligned in (True, False) for n in (1, 2)]
    np.testing.assert_allclose(spot, [1, 0.0625, 0.25, 0.140625], atol=1e-6)


@pytest.mark.parametrize("size,samples,aligned", [(3, 2, True), (2, 3, True), (3, 2, False), (7, 1, False)])
def test_a_loop_over_samples_gives_the_same(size, samples, aligned):
    features = np.random.default_rng(0).normal(size=(5, 6, 3)).astype(np.float32)
    expected = np.stack([loop(features, box, size, samples, aligned) for box in BOXES])
    ours = roi_align(features, BOXES, size, samples, aligned)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    if aligned:
        assert not np.any(ours[4])
    assert np.all(np.isfinite(ours))


def test_gradient_is_that_of_finite_differences():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4, 5, 1))
    weight = rng.normal(size=(len(BOXES), 2, 2, 1))

    def reference(features):
        return sum(np.sum(w * loop(features, box, 2, 2, True)) for w, box in zip(weight, BOXES, strict=True))

    ours = jax.grad(lambda f: jnp.sum(weight * roi_align(f, BOXES, 2, 2)))(jnp.float32(features))
    numeric = np.zeros_like(features)
    for place in np.ndindex(features.shape):
        moved = np.zeros_like(features)
        moved[place] = 0.5  # it is linear: any step will do
        numeric[place] = reference(features + moved) - reference(features - moved)
    np.testing.assert_allclose(ours, numeric, atol=1e-5)
    assert np.abs(numeric).max() > 0.1


def test_torchvision_gives_the_same_inside(torch, torchvision, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # of its formulation in Python
    features = np.random.default_rng(2).normal(size=(9, 11, 4)).astype(np.float32)
    boxes = np.float32([[1, 1, 8, 10], [0.5, 0.5, 3.25, 8], [4, 2.5, 4.75, 6], [3, 3, 3, 9]])
    rois = np.concatenate([np.zeros((4, 1)), boxes[:, [1, 0, 3, 2]]], axis=1).astype(np.float32)
    theirs = torchvision.ops.roi_align(
        torch.tensor(features).permute(2, 0, 1)[None], torch.tensor(rois), 7, 1.0, 2, aligned=True
    )
    np.testing.assert_allclose(roi_align(features, boxes), theirs.permute(0, 2, 3, 1), atol=1e-5)


def test_levels_by_hand():
    sides = np.float32([0, 1, 111, 112, 223.9, 224, 447, 448, 640, 895.9, 896, 1791, 1792, 9999])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=1)
    expected = [3, 3, 3, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7]
    np.testing.assert_array_equal(levels_of(boxes), expected)
    np.testing.assert_array_equal(levels_of(boxes, 4, 5), np.clip(expected, 4, 5))
    # The area decides, not a side.
    assert levels_of(np.float32([[0, 0, 112, 448]]))[0] == 4
    assert levels_of(np.float32([[0, 0, -5, 448]]))[0] == 3


def test_each_region_is_read_from_its_own_level():
    rng = np.random.default_rng(3)
    levels = [rng.normal(size=(n, n, 2)).astype(np.float32) for n in (80, 40, 20)]
    boxes = np.float32([[10, 20, 100, 90], [0, 0, 224, 240], [100, 50, 600, 630], [8, 8, 8, 8]])
    ours = pyramid_roi_align(levels, boxes, size=3)
    for box, level, found in zip(boxes, (3, 4, 5, 3), ours, strict=True):
        expected = loop(levels[level - 3], box / 2**level, 3, 2, True)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_half_precision_stays_half_precision():
    half = pyramid_roi_align([jnp.asarray(RAMP, jnp.bfloat16)], 8 * np.float32([[0, 0, 4, 4]]), size=2)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half[0, :, :, 0].astype(np.float32), [[2.5, 4.5], [10.5, 12.5]], rtol=1e-2)
